"""A plain reimplementation of the published algorithm: from its formulas, in NumPy and torch, without a line of the simulator.

What the parity tests compare with where the traces of the published code are not at hand. Nothing here imports
``fedsim``, ``clients``, ``server`` or ``partitions``, and no two modules share more than what is written here, so a
mistake of the simulator cannot hide in it. ``test_reference.py`` holds it against the traces themselves.

Prefixes are float64 arrays [P, L, 2, H] as in the traces: virtual tokens, layers, {key, value}, hidden size.
"""
