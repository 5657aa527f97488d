"""What ``python -m benchmarks.fuzz`` tries: one module for each kind of input, and how cases are run and judged."""
