"""Parts of pages that are made from the code: a page names one by a comment, ``<!-- made: NAME -->``."""

from __future__ import annotations

import re
from collections.abc import Callable

import commands
import config_keys
import file_fields

MAKERS: dict[str, Callable[[], str]] = {
    "config keys": config_keys.markdown,
    "commands": commands.markdown,
    "files": file_fields.markdown,
}
"""What makes each part."""
MARK = re.compile(r"^<!-- made: ([\w ]+) -->$", re.M)


def filled(text: str) -> str:
    """Return a page with what its comments name."""
    return MARK.sub(lambda found: MAKERS[found[1]](), text)
