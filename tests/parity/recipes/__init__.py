"""Contents of a fixture folder: one module per kind of trace, each with a function ``traces(rng)``."""
