"""Fallback fonts: characters that the plots' font lacks come from another installed font."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

FONT = "DejaVu Sans"
"""The plots' font, shipped with matplotlib."""
_PLACEHOLDERS = "Last Resort"
"""Last-resort font with one placeholder glyph per script."""


def fallbacks(text: str) -> tuple[list[str], str]:
    """Return fonts that cover what the plots' font lacks of a text, and the characters that no font has."""
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
    """Yield family and file of each upright font, text fonts before those for formulas and emoji."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    known = [entry.fname for entry in font_manager.fontManager.ttflist]
    # Matplotlib caches its own list, which misses fonts installed later.
    fonts: dict[str, str] = {}
    for path in dict.fromkeys([*sorted(font_manager.findSystemFonts()), *known]):
        with suppress(OSError, RuntimeError):  # fonts that cannot be drawn, such as colour bitmaps
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
    """Return a note on which characters are drawn as boxes, and the remedy."""
    shown = " ".join(list(characters)[:10])
    return f"no font of this machine has {shown}, drawn as boxes; install one that has, such as Noto Sans CJK"
