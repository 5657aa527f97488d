"""Check that an error is one plain sentence, and locate others."""

from __future__ import annotations

import traceback
from pathlib import Path

from fedsim.core.errors import ClientError, FedsimError

LONGEST_SENTENCE = 600
ROOT = f"{Path(__file__).parents[2]}/"


def judged(error: BaseException) -> str:
    """Return ``refused``, or FINDING and what is wrong."""
    if not isinstance(error, FedsimError):
        return f"FINDING {type(error).__name__}: {str(error)[:200]!r}, in {place(error)}"
    wrong = flaw(error)
    return "refused" if wrong is None else f"FINDING the sentence {wrong}: {str(error)[:300]!r}, in {place(error)}"


def flaw(error: Exception) -> str | None:
    """Return why a FedsimError is not one plain sentence, or None."""
    text = str(error)
    if not text.strip():
        return "is empty"
    if isinstance(error, ClientError):  # ends with the traceback of the client's own work
        return None
    if len(text.splitlines()) > 1:
        return "has several lines"
    if len(text) > LONGEST_SENTENCE:
        return f"has {len(text)} characters"
    words = ("Traceback (most", 'File "', "object at 0x", "For further information visit", "pydantic")
    return next((f"says {word}" for word in words if word in text), None)


def place(error: BaseException) -> str:
    """Return the innermost place in this project that an exception came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(ROOT) and frame.name != "_interrupt"]
    return f"{own[-1].filename.removeprefix(ROOT)}:{own[-1].lineno}" if own else "nowhere"
