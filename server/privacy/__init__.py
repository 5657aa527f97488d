"""Client-level differential privacy: the server's noise, and what it amounts to."""
