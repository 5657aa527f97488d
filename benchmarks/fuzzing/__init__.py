"""Cases of ``python -m benchmarks.fuzz``: one module per kind of input, and how cases are run and judged."""
