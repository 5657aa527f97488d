"""Entries of legends: the colour, dash and marker of a line, as small pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

_OPEN = Markup('<svg viewBox="0 0 24 9" aria-hidden="true">')
_MARKERS = {
    "o": '<circle cx="12" cy="4.5" r="2.6"/>',
    "s": '<rect x="9.6" y="2.1" width="4.8" height="4.8"/>',
    "D": '<path d="M12 1.2l3.3 3.3-3.3 3.3-3.3-3.3z"/>',
    "^": '<path d="M12 1.4l3.2 5.6h-6.4z"/>',
    "v": '<path d="M12 7.6l3.2-5.6h-6.4z"/>',
    "P": '<path d="M10.8 1.3h2.4v2h2v2.4h-2v2h-2.4v-2h-2v-2.4h2z"/>',
    "X": '<path d="M9 3l1.5-1.5 1.5 1.5 1.5-1.5 1.5 1.5-1.5 1.5 1.5 1.5-1.5 1.5-1.5-1.5-1.5 1.5-1.5-1.5 1.5-1.5z"/>',
}


def patch(color: Any) -> Markup:
    """Return a filled box."""
    return _OPEN + Markup('<rect x="6" width="12" height="9" rx="1.5" style="fill: {}"/></svg>').format(
        css_color(color)
    )


def line(color: Any, dash: Sequence[float], marker: str) -> Markup:
    """Return a line with its marker."""
    dashes = Markup(' stroke-dasharray="{}"').format(" ".join(f"{1.4 * part:g}" for part in dash)) if dash else ""
    return _OPEN + Markup(
        '<g style="fill: {0}; stroke: {0}"><path d="M0 4.5h24" stroke-width="1.8"{1}/><g stroke-width="0">{2}</g></g></svg>'
    ).format(css_color(color), dashes, Markup(_MARKERS.get(marker, "")))


def css_color(color: Any) -> str:
    """Return a matplotlib colour for CSS; one of the palette follows the page's."""
    from matplotlib.colors import to_hex

    from fedsim.display.page.inline import variable

    return variable(to_hex(color))
