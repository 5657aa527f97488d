"""Executors that run work groups: in this process or on Ray actors, with the same bits."""
