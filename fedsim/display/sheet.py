"""A table of texts, and the forms in which it leaves: Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sheet:
    """A table of texts as it is shown: on a terminal, on a page, in a paper."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[bool, ...] = ()
    """Whether each column is set to the right, as numbers are; if not given, none."""

    def aligned(self, column: int) -> bool:
        """Whether a column is set to the right."""
        return bool(self.right) and self.right[column]


def to_markdown(sheets: Sequence[Sheet]) -> str:
    """Return tables in GitHub's Markdown."""
    parts = []
    for sheet in sheets:
        rules = ["---:" if sheet.aligned(at) else "---" for at in range(len(sheet.columns))]
        lines = [_markdown_row(sheet.columns), _row(rules), *map(_markdown_row, sheet.rows)]
        parts.append("\n".join([f"**{_markdown(sheet.title)}**", "", *lines]))
    return "\n\n".join(parts) + "\n"


def to_latex(sheets: Sequence[Sheet]) -> str:
    """Return tables in LaTeX, for the package ``booktabs``."""
    parts = []
    for sheet in sheets:
        form = "".join("r" if sheet.aligned(at) else "l" for at in range(len(sheet.columns)))
        parts += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(sheet.title)}}}",
            rf"\begin{{tabular}}{{{form}}}",
            r"\toprule",
            _latex_row(sheet.columns),
            r"\midrule",
            *map(_latex_row, sheet.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    return "\n".join([r"% needs \usepackage{booktabs}", *parts])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_row(cells: Sequence[str]) -> str:
    return _row([_markdown(cell) for cell in cells])


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|~])", r"\\\1", " ".join(text.split()))


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "\N{PLUS-MINUS SIGN}": r"$\pm$", "\N{GREEK SMALL LETTER ALPHA}": r"$\alpha$",
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _latex_row(cells: Sequence[str]) -> str:
    return f"{' & '.join(map(_latex, cells))} \\\\"
