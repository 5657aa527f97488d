"""The methods: each file holds both halves of one, its keys beside it. They know :mod:`fedsim.core` alone, and no torch."""
