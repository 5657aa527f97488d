"""Terminal and plot output: progress, tables and figures."""
