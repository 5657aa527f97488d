"""The command line."""

from fedsim.cli.commands import app
from fedsim.cli.machine import give_json

give_json(app)

from fedsim.cli.main import main  # noqa: E402 - every command has its option --json by then

__all__ = ["app", "main"]
