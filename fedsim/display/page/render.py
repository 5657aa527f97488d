"""From a page's parts to HTML: one file that loads nothing."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from jinja2 import Environment

    from fedsim.display.page.parts import Page

_FILES = Path(__file__).parent / "files"
"""Template, stylesheet and script, which are package data."""


def render(page: Page) -> str:
    """Return a page as HTML; all texts are escaped."""
    style, script = (Markup((_FILES / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    html = _environment().get_template("page.html").render(page=page, style=style, script=script)
    # Of file names with bytes that are not UTF-8; a page can hold them as question marks alone.
    return html.encode("utf-8", errors="replace").decode("utf-8")


@cache
def _environment() -> Environment:
    """Return what compiles the template, once for all pages of a run."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(_FILES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
