"""How the arms of a study are told apart: by colour, dash and marker, the same in all figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.display.figure import BLACK, BLUE, GREEN, ORANGE, PINK, SKY, YELLOW
from fedsim.display.page.inline import SERIES
from fedsim.display.page.parts import Key
from fedsim.display.page.swatches import line

_COLORS = (BLUE, ORANGE, GREEN, PINK, YELLOW, SKY)
_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.6), (1.2, 1.2), (5, 1.4, 1.2, 1.4), (3, 1, 1, 1, 1, 1))
_MARKERS = "sD^vPX"


@dataclass(frozen=True)
class ArmStyle:
    """Colour, dash and marker of an arm."""

    series: str
    """Name of its groups in figures, for the legend to highlight."""
    color: str
    dash: tuple[float, ...]
    marker: str
    width: float = 1.6

    @property
    def gid(self) -> str:
        """The group's name for matplotlib."""
        return f"{SERIES}{self.series}"

    def line(self) -> dict[str, Any]:
        """Return keywords of a line without markers."""
        return {"color": self.color, "ls": (0, self.dash) if self.dash else "-", "lw": self.width, "gid": self.gid}

    def key(self, name: str) -> Key:
        """Return the arm's entry in a legend."""
        return Key(name, line(self.color, self.dash, self.marker), self.series)


def arm_styles(arms: Sequence[str], reference: str) -> dict[str, ArmStyle]:
    """Return a style for each arm; the reference's is dark, solid and wide."""
    styles = {}
    number = 0
    for at, arm in enumerate(arms):
        if arm == reference:
            styles[arm] = ArmStyle(str(at), BLACK, (), "o", 2.3)
            continue
        color, marker = _COLORS[number % len(_COLORS)], _MARKERS[number % len(_MARKERS)]
        # Another dash with each turn of the colours, and different ones for neighbours.
        dash = _DASHES[(number + number // len(_COLORS)) % len(_DASHES)]
        styles[arm] = ArmStyle(str(at), color, dash, marker)
        number += 1
    return styles


def arm_legend(styles: dict[str, ArmStyle], reference: str) -> tuple[Key, ...]:
    """Return the legend of all arms."""
    return tuple(style.key(f"{arm} (reference)" if arm == reference else arm) for arm, style in styles.items())
