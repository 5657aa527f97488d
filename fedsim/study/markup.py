"""The tables and sentences of a study as markdown and as LaTeX."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fedsim.study import words
from fedsim.study.outcome import StudySummary
from fedsim.study.sheets import Column, Sheet, sheets

_MARKDOWN = re.compile(r"([\\|*_`<\[\]~])")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$", '"': "''", "±": r"$\pm$",
}  # fmt: skip
_NEGATIVE = re.compile(r"(?<![\w.-])-(?=\d)")


def markdown(summary: StudySummary) -> str:
    """Return a study's tables and sentences as markdown."""
    lines = [f"# {_md(summary.name)}", ""]
    for sheet in sheets(summary):
        lines += [f"## {sheet.title}", "", *_md_table(sheet), ""]
    if summary.pairs:
        lines += ["## Differences", "", *(f"- {_md(pair.sentence)}." for pair in summary.pairs), ""]
    if len(summary.arms) > 1:
        lines += ["## Best arms", "", *(f"- {_md(best.sentence)}." for best in summary.best), ""]
    mcnemar = list(_mcnemar(summary))
    if mcnemar:
        lines += ["## Same mistakes? (McNemar's exact test, by seed)", "", *(f"- {_md(line)}." for line in mcnemar), ""]
    return "\n".join([*lines, "## Notes", "", *(f"- {_md(note)}" for note in summary.notes), ""])


def latex(summary: StudySummary) -> str:
    r"""Return a study's tables as LaTeX, as wide as the text, for ``\usepackage{booktabs,graphicx}``, notes below the first."""
    lines = [f"% Study {' '.join(summary.name.split())}; needs \\usepackage{{booktabs,graphicx}}"]
    for sheet in sheets(summary):
        lines += ["", *_tex_table(summary, sheet)]
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """Escape text for LaTeX, on one line."""
    text = " ".join(text.split())
    pieces = []
    start = 0
    for minus in _NEGATIVE.finditer(text):
        pieces += [*(_LATEX.get(c, c) for c in text[start : minus.start()]), "$-$"]
        start = minus.end()
    return "".join([*pieces, *(_LATEX.get(c, c) for c in text[start:])])


def _md(text: str) -> str:
    """Escape text for markdown, on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _md_table(sheet: Sheet) -> Iterator[str]:
    yield _md_row([_md(column.head) for column in sheet.columns])
    yield _md_row([":---" if _is_text(column) else "---:" for column in sheet.columns])
    for row in range(len(sheet.columns[0].cells)):
        cells = [column.cells[row] for column in sheet.columns]
        yield _md_row([f"**{_md(cell.text)}**" if cell.bold else _md(cell.text) for cell in cells])


def _md_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _tex_table(summary: StudySummary, sheet: Sheet) -> Iterator[str]:
    columns = sheet.columns
    yield from (r"\begin{table}", r"\centering", rf"\caption{{{escape_latex(f'{summary.name}: {sheet.title}')}}}")
    widths = "".join(r"p{0.3\linewidth}" if c.prose else "l" if _is_text(c) else "r" for c in columns)
    yield from (r"\resizebox{\linewidth}{!}{%", rf"\begin{{tabular}}{{{widths}}}", r"\toprule")
    yield _tex_row([escape_latex(column.head) for column in columns])
    yield r"\midrule"
    for row in range(len(columns[0].cells)):
        if row and row % len(summary.arms) == 0:
            yield r"\addlinespace"
        cells = [column.cells[row] for column in columns]
        yield _tex_row([_bold(escape_latex(cell.text)) if cell.bold else escape_latex(cell.text) for cell in cells])
    yield from (r"\bottomrule", r"\end{tabular}}")
    if sheet.title == "Results":
        yield rf"\par\smallskip{{\footnotesize {escape_latex(' '.join(summary.notes))}}}"
    yield r"\end{table}"


def _tex_row(cells: list[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _bold(text: str) -> str:
    return rf"\textbf{{{text}}}"


def _is_text(column: Column) -> bool:
    return column.prose or column.head in ("arm", "data set")


def _mcnemar(summary: StudySummary) -> Iterator[str]:
    for pair in summary.pairs:
        for seed, found in (pair.mcnemar or {}).items():
            where = words.on_dataset(pair.dataset, summary.datasets)
            yield (
                f"seed {seed}{where}: only {pair.reference} is right on {words.count(found.only_first, 'example')}, only "
                f"{pair.arm} on {found.only_second}, p {words.p_value(found.p)}"
            )
