"""The scaling study of ``fedsim scale``: what happens as clients, cohort and actors grow, and where the time goes."""
