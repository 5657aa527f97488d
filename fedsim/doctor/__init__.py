"""``fedsim doctor``: is everything there that a run needs, on this machine and on every node of the cluster?"""
