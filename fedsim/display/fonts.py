"""Fonts for names in any script: what the pictures' font lacks is taken from another font of this machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

FONT = "DejaVu Sans"
"""The pictures' font; it comes with matplotlib."""
_PLACEHOLDERS = "Last Resort"
"""A font that has a sign for every character, the same for all of a script."""


def fallbacks(text: str) -> tuple[list[str], str]:
    """Return names of fonts that have what the pictures' font lacks of a text, and the characters that none has."""
    from matplotlib import font_manager

    missing = {ord(character) for character in text} - _characters(font_manager.findfont(FONT))
    names: list[str] = []
    for name, path in _installed() if missing else ():
        found = missing & _characters(path)
        if found:
            font_manager.fontManager.addfont(path)
            names.append(name)
            missing -= found
        if not missing:
            break
    return names, "".join(map(chr, sorted(missing)))


def _installed() -> Iterator[tuple[str, str]]:
    """Yield family and file of each upright font, those for text before those for formulas and emoji."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    known = [entry.fname for entry in font_manager.fontManager.ttflist]
    # Matplotlib's own list is made once and kept: it does not know of fonts that were installed later.
    fonts: dict[str, str] = {}
    for path in dict.fromkeys([*sorted(font_manager.findSystemFonts()), *known]):
        with suppress(OSError, RuntimeError):  # of a kind that cannot be drawn, such as bitmaps in colour
            font = FT2Font(path)
            if font.family_name not in fonts and font.style_name in ("Regular", "Book", "Normal", "Medium"):
                fonts[font.family_name] = path
    usable = (name for name in fonts if not name.startswith(_PLACEHOLDERS))
    return ((name, fonts[name]) for name in sorted(usable, key=_rank))


def _rank(name: str) -> tuple[bool, bool, str]:
    special = any(word in name for word in ("Emoji", "Symbol", "STIX", "Math", "Mono", "Serif"))
    return special, not name.startswith(("Noto Sans", "DejaVu")), name


def _characters(path: str) -> set[int]:
    from matplotlib import font_manager

    try:
        return set(font_manager.get_font(path).get_charmap())
    except (OSError, RuntimeError):
        return set()


def unknown_sentence(characters: Iterable[str]) -> str:
    """Say which characters are drawn as boxes, and what would help."""
    shown = " ".join(list(characters)[:10])
    return f"no font of this machine has {shown}, drawn as boxes; install one that has, such as Noto Sans CJK"
