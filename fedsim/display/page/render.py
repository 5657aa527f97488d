"""From a page's parts to HTML: one file that loads nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from fedsim.display.page.parts import Page

_FILES = Path(__file__).parent / "files"
"""Template, stylesheet and script, which are package data."""


def render(page: Page) -> str:
    """Return a page as HTML; all texts are escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FILES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (Markup((_FILES / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    html = environment.get_template("page.html").render(page=page, style=style, script=script)
    # Of file names with bytes that are not UTF-8; a page can hold them as question marks alone.
    return html.encode("utf-8", errors="replace").decode("utf-8")
