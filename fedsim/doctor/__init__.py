"""``fedsim doctor``: checks that this machine and every cluster node have what a run needs."""
