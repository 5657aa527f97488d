"""Measured comparisons, each runnable by one command."""

import os

# What an earlier run has kept would not be measured; benchmarks.startup measures starts with and without it.
os.environ.setdefault("FEDSIM_CACHE", "off")
