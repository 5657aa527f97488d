"""Checks that everything a run needs is there: this machine, the cluster's nodes, model and data (``fedsim doctor``)."""
