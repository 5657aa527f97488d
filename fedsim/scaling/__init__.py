"""Scaling studies (``fedsim scale``): how time, memory and traffic grow with clients, cohort and actors."""
