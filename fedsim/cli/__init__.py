"""The command line."""

from fedsim.cli.commands import app, main

__all__ = ["app", "main"]
