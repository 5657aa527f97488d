"""Figures as SVG inside a page: text as text, ids of their own, colours that follow the page's."""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from fedsim.display.figure import literal, write_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_COLORS = (
    "222222", "777777", "dddddd", "ffffff", "444444", "0072b2", "d55e00", "009e73", "bbbbbb", "e69f00", "56b4e9", "cc79a7",
    "332288", "ddcc77", "44aa99", "cc6677", "88ccee", "882255", "117733", "999933", "aa4499",
)  # fmt: skip
"""Colours that have a variable in the page's stylesheet, with another value on a dark ground."""
_COLOR = re.compile(f"#({'|'.join(_COLORS)})\\b", re.IGNORECASE)
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONT = re.compile(r"font: (?:(\d+) )?([\d.]+)px [^;]*(;|$)")
_DIGITS = re.compile(r"(\.\d\d)\d+")
"""Digits beyond hundredths of a point, which nobody sees."""
_NO_TURN = re.compile(r"rotate\(-0 [^)]*\) ?")
_FAMILY = re.compile(r"font-family:[^;]*(;|$)")
SERIES = "series-"
"""Prefix of the matplotlib ``gid`` of a group that a legend can highlight."""


def inline(figure: Figure, key: str, title: str, text: str, hover: Axes | None = None) -> Markup:
    """Return a figure as an SVG element to be put into HTML.

    Parameters
    ----------
    key
        Prefix of all ids.
    title, text
        Its accessible name and description.
    hover
        Axes whose x values the page's script looks up in the figure's table of data.
    """
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    literal(figure, warn=False)
    file = io.BytesIO()
    write_svg(figure, file)
    root = ElementTree.fromstring(file.getvalue())
    _clean(root, key)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{key}-title {key}-desc")
    root.set("preserveAspectRatio", "xMinYMin meet")
    if hover is not None:
        root.set("data-hover", json.dumps(_reach(figure, hover)))
    for position, (tag, content) in enumerate((("title", title), ("desc", text))):
        element = ElementTree.Element(tag, {"id": f"{key}-{tag}"})
        element.text = content
        root.insert(position, element)
    # All of it comes from matplotlib's own escaped XML or is escaped here.
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _reach(figure: Figure, axes: Axes) -> dict[str, object]:
    """Return where axes lie in the picture, and the x values at their ends."""
    width, height = (72 * inches for inches in figure.get_size_inches())
    box, (low, high) = axes.get_position(), axes.get_xlim()
    return {
        "left": round(box.x0 * width, 1),
        "right": round(box.x1 * width, 1),
        "top": round((1 - box.y1) * height, 1),
        "bottom": round((1 - box.y0) * height, 1),
        "from": low,
        "to": high,
    }


def _clean(root: ElementTree.Element, key: str) -> None:
    """Drop what only a file needs, and give ids that are referred to the key as prefix."""
    for parent in list(root.iter()):
        for child in list(parent):
            only_style = child.tag == f"{_SVG}defs" and all(each.tag == f"{_SVG}style" for each in child)
            if only_style or child.tag == f"{_SVG}metadata":
                parent.remove(child)
    used = {name for element in root.iter() for value in element.attrib.values() for name in _REFERENCE.findall(value)}
    used |= {element.attrib[_HREF].removeprefix("#") for element in root.iter() if _HREF in element.attrib}
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        attributes = dict(element.attrib)
        element.attrib.clear()
        for name, value in attributes.items():
            if name == "id":
                if value in used:
                    element.set("id", f"{key}-{value}")
                if value.startswith(SERIES):
                    element.set("data-series", value.removeprefix(SERIES))
            elif name == _HREF:
                element.set("href", f"#{key}-{value.removeprefix('#')}")
            elif not name.startswith("{") and (styled := _styled(value, key)):
                element.set(name, styled)
        for blank in ("text", "tail"):
            if not (getattr(element, blank) or "").strip():
                setattr(element, blank, None)


def _styled(value: str, key: str) -> str:
    value = " ".join(_NO_TURN.sub("", _REFERENCE.sub(lambda match: f"url(#{key}-{match[1]})", value)).split())
    return variable(_DIGITS.sub(r"\1", _FAMILY.sub("", _FONT.sub(_size, value))))


def _size(font: re.Match[str]) -> str:
    """Keep a font's size and weight; its family is the page's."""
    weight = f"; font-weight: {font[1]}" if font[1] else ""
    return f"font-size: {font[2]}px{weight}{font[3]}"


def variable(style: str) -> str:
    """Replace the palette's colours in a style by the page's variables."""
    return _COLOR.sub(lambda match: f"var(--c{match[1].lower()})", style)
