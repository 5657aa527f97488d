"""What stands in a folder of fixtures: one module for each kind of trace, each with a function ``traces(rng)``."""
