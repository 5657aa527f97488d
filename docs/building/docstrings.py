"""Lets the site show docstrings as :func:`words.readable` makes them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from words import readable


class Readable(griffe.Extension):
    """Makes every docstring readable as it is found in the source."""

    def on_instance(self, *, obj: Any, **kwargs: Any) -> None:
        """Change an object's docstring."""
        if not obj.is_alias and obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)
