"""The page of a study: what it found in words, tables with intervals, curves, clients, layers, and how to repeat it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence

from fedsim import __version__
from fedsim.configuration.changed import value_text
from fedsim.display.page.arms import ArmStyle, arm_legend, arm_styles
from fedsim.display.page.parts import (
    Block,
    Cell,
    Commands,
    Facts,
    Figure,
    Figures,
    Page,
    Section,
    Sentences,
    Table,
    number_cell,
    text_cells,
)
from fedsim.display.page.render import render
from fedsim.display.page.study_curves import AXES, curve_figure
from fedsim.display.page.study_differences import forest
from fedsim.display.page.study_spread import client_spread, exchanged_layers, layer_scores
from fedsim.display.report import MISSING
from fedsim.study import words
from fedsim.study.config import StudyConfig
from fedsim.study.figures import CellFigures
from fedsim.study.measures import COMPARED
from fedsim.study.outcome import PairSummary, StudySummary
from fedsim.study.sheets import FAILED, Sheet, sheets

ByArm = Mapping[str, Sequence[CellFigures]]


def study_page(
    summary: StudySummary,
    cells: Sequence[CellFigures],
    study: StudyConfig,
    *,
    folder: str = "",
    choices: Sequence[Table] = (),
    commands: Sequence[str] = (),
) -> str:
    """Return the page of a study as HTML.

    Parameters
    ----------
    summary
        What it found.
    cells
        Its finished cells, with their curves and clients.
    study
        Its file.
    folder
        Its folder, as the commands name it.
    choices
        Tables of what a search tried and chose, if there was one.
    commands
        Commands that ran it, before those that repeat a single cell.
    """
    styles = arm_styles(summary.arms, summary.reference)
    of_dataset = {
        dataset: {arm: [c for c in cells if (c.dataset, c.arm) == (dataset, arm)] for arm in summary.arms}
        for dataset in summary.datasets
    }
    page = Page(
        kind="study",
        title=summary.name,
        lead=tuple(_lead(summary)),
        tiles=tuple(_tiles(summary)),
        sections=tuple(_sections(summary, study, of_dataset, styles, folder, choices, commands)),
        foot=f"Study {summary.name}, reference {summary.reference}. Written by fedsim {__version__}.",
    )
    return render(page)


def _lead(summary: StudySummary) -> Iterator[str]:
    for dataset in summary.datasets:
        where = f"On {dataset}, " if len(summary.datasets) > 1 else ""
        best = summary.best_arm(dataset)
        if best is None:
            yield _upper(f"{where}no run has a result.", summary)
            continue
        arm = best.arms[0]
        mean = words.mean_sd(summary.row(dataset, arm).figures["last"])
        metric = summary.row(dataset, arm).metric_name.replace("_", " ")
        leader = (
            f"{where}{words.and_list(best.arms)} {'has' if len(best.arms) == 1 else 'have'} the highest last {metric}"
        )
        yield f"{leader}, {mean}. {_verdicts(summary, dataset)}".strip()


def _verdicts(summary: StudySummary, dataset: str) -> str:
    """Say in a sentence which arms differ from the reference."""
    by_verdict: dict[str, list[str]] = {}
    for pair in _pairs(summary, dataset, "last"):
        by_verdict.setdefault(pair.verdict, []).append(pair.arm)
    said = {
        "better": "{arms} {are} shown to be better than {reference}",
        "worse": "{arms} {are} shown to be worse than {reference}",
        "not shown": "no difference between {arms} and {reference} is shown",
        "cannot show": "so few seeds can show no difference between {arms} and {reference}",
        "equal": "{arms} and {reference} are equal",
        "no pairs": "{arms} cannot be compared with {reference}",
    }
    parts = []
    for verdict, sentence in said.items():
        if arms := by_verdict.get(verdict):
            are = "is" if len(arms) == 1 else "are"
            all_others = len(arms) == len(summary.arms) - 1 > 1
            names = words.and_list(arms) if not all_others else _ALL.get(verdict, "the other arms")
            parts.append(sentence.format(arms=names, are=are, reference=summary.reference))
    return f"{_upper('; '.join(parts), summary)}." if parts else ""


_ALL = {"better": "all other arms", "worse": "all other arms"}


def _tiles(summary: StudySummary) -> Iterator[tuple[str, str, str]]:
    planned = sum(len(row.seeds) for row in summary.rows)
    yield str(len(summary.arms)), "arms", f"reference {summary.reference}"
    yield str(len(summary.datasets)), "data sets" if len(summary.datasets) > 1 else "data set", ""
    seeds = [len(row.seeds) for row in summary.rows]
    yield (
        str(max(seeds, default=0)),
        "seeds",
        f"at least {min(seeds)}" if seeds and min(seeds) < max(seeds) else "of each arm",
    )
    failed = f"{len(summary.failed)} failed or missing" if summary.failed else "all planned"
    yield str(planned - len(summary.failed)), "finished runs", failed


def _sections(
    summary: StudySummary,
    study: StudyConfig,
    of_dataset: Mapping[str, ByArm],
    styles: dict[str, ArmStyle],
    folder: str,
    choices: Sequence[Table],
    commands: Sequence[str],
) -> Iterator[Section]:
    results, *others = sheets(summary)
    yield Section("results", "Results", (_sheet(results),), _INTERVALS)
    forests, sentences = _forests(summary, styles), _sentences(summary)
    if forests or sentences:
        pictures = [Figures(tuple(forests))] if forests else []
        said = [Sentences(tuple(sentences), bullets=True)] if sentences else []
        yield Section("differences", "Differences", (*pictures, *said))
    if curves := _curves(summary, of_dataset, styles):
        yield Section("curves", "Curves", tuple(curves))
    tables = {sheet.title: _sheet(sheet) for sheet in others}
    spread = [
        client_spread(f"clients-{at}", _named(summary, d), arms, styles)
        for at, (d, arms) in enumerate(of_dataset.items())
    ]
    if figures := [each for each in spread if each]:
        table = [tables["Clients"]] if "Clients" in tables else []
        yield Section("clients", "How the clients fare", (Figures(tuple(figures)), *table))
    if layers := _layers(summary, of_dataset, styles):
        yield Section("layers", "Layers", (Figures(tuple(layers)),))
    if "Costs" in tables:
        yield Section("costs", "Costs", (tables["Costs"],), _COSTS)
    yield Section("configs", "What differs", tuple(_configs(study)))
    if choices:
        yield Section(
            "search", "Search", tuple(choices), "Every arm had the same budget, on examples that are not reported here."
        )
    if summary.failed:
        yield Section("failed", "Failed runs", (_failed(summary),))
    if summary.notes:
        yield Section("notes", "Notes", (Sentences(summary.notes, bullets=True),))
    yield Section("repeat", "Repeat it", tuple(_repeat(summary, of_dataset, folder, commands)))


_INTERVALS = "Mean ± standard deviation over seeds. Bold: shown to be better than every other arm."
_COSTS = "Means over seeds. To the target: over the seeds that reach it."


def _sheet(sheet: Sheet) -> Table:
    rows = tuple(
        tuple(Cell(c.cells[row].text, _sortable(c.cells[row].text, c.head), c.cells[row].bold) for c in sheet.columns)
        for row in range(len(sheet.columns[0].cells))
    )
    return Table(sheet.title, tuple(column.head for column in sheet.columns), rows)


_UNITS = {
    "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0,
}  # fmt: skip


def _sortable(text: str, head: str) -> float | None:
    """Return the number that a cell begins with, in its unit, to sort by; None for text."""
    if head in ("arm", "data set", FAILED) or text == MISSING:
        return None
    first, *rest = text.replace(",", "").split(" ")
    try:
        value = float(first.removeprefix("<") or rest[0])
    except (ValueError, IndexError):
        return {"reference": 0.0, "too": math.inf}.get(first)
    return value * _UNITS.get(rest[0], 1.0) if rest else value


def _forests(summary: StudySummary, styles: Mapping[str, ArmStyle]) -> list[Figure]:
    drawn = []
    for measure in COMPARED[:3]:
        for at, dataset in enumerate(summary.datasets):
            pairs = _pairs(summary, dataset, measure)
            metric = next(
                (row.metric_name for row in summary.rows if row.dataset == dataset and row.finished), "metric"
            )
            drawn.append(forest(f"forest-{measure}-{at}", _named(summary, dataset), measure, metric, pairs, styles))
    return [each for each in drawn if each is not None]


def _curves(summary: StudySummary, of_dataset: Mapping[str, ByArm], styles: dict[str, ArmStyle]) -> list[Figures]:
    """Return a row of figures for each axis, the legend above the first."""
    rows: list[Figures] = []
    for axis in AXES:
        drawn = [
            curve_figure(f"curve-{axis}-{at}", _named(summary, dataset), axis, arms, styles, _target(summary, dataset))
            for at, (dataset, arms) in enumerate(of_dataset.items())
        ]
        if figures := tuple(each for each in drawn if each is not None):
            rows.append(Figures(figures, () if rows else arm_legend(styles, summary.reference)))
    if all(len(row.figures) == 1 for row in rows):  # one data set: all in one row
        return [Figures(tuple(row.figures[0] for row in rows), rows[0].legend)] if rows else []
    return rows


def _layers(summary: StudySummary, of_dataset: Mapping[str, ByArm], styles: Mapping[str, ArmStyle]) -> list[Figure]:
    drawn = []
    for at, (dataset, arms) in enumerate(of_dataset.items()):
        name = _named(summary, dataset)
        drawn += [layer_scores(f"scores-{at}", name, arms, styles), exchanged_layers(f"layers-{at}", name, arms)]
    return [each for each in drawn if each is not None]


def _pairs(summary: StudySummary, dataset: str, measure: str) -> list[PairSummary]:
    return [pair for pair in summary.pairs if (pair.dataset, pair.measure) == (dataset, measure)]


def _named(summary: StudySummary, dataset: str) -> str:
    return dataset if len(summary.datasets) > 1 else ""


def _target(summary: StudySummary, dataset: str) -> float:
    return next((row.target for row in summary.rows if row.dataset == dataset and math.isfinite(row.target)), math.nan)


def _sentences(summary: StudySummary) -> list[str]:
    """Return what the comparisons of the last metric show, and which arms are the best."""
    found = [pair.sentence for pair in summary.pairs if pair.measure == "last"]
    found += [best.sentence for best in summary.best if best.measure == "last" and len(summary.arms) > 2]
    return [f"{_upper(sentence, summary)}." for sentence in found]


def _upper(text: str, summary: StudySummary) -> str:
    """Begin with a capital letter, unless the text begins with an arm's name."""
    return text if text.startswith(summary.arms) else f"{text[:1].upper()}{text[1:]}"


def _configs(study: StudyConfig) -> Iterator[Block]:
    """Yield what is the same in all runs, and the keys of arms and data sets side by side."""
    shared = [("config file", str(study.base)), *((key, value_text(value)) for key, value in study.set.items())]
    yield Facts(tuple(shared))
    for title, given in (("Keys of the arms", study.arms), ("Keys of the data sets", study.datasets)):
        keys = list(dict.fromkeys(key for held in given.values() if isinstance(held, dict) for key in held))
        files = {name: str(held) for name, held in given.items() if held is not None and not isinstance(held, dict)}
        if not keys and not files:
            continue
        columns = ("name", *(["config file"] if files else []), *keys)
        rows = tuple(
            text_cells(
                name,
                *([files.get(name, MISSING)] if files else []),
                *(value_text(held[key]) if isinstance(held, dict) and key in held else MISSING for key in keys),
            )
            for name, held in given.items()
        )
        yield Table(title, columns, rows, note=f"{MISSING}: as in the config file." if keys else "", sortable=False)


def _failed(summary: StudySummary) -> Table:
    rows = tuple(
        (*text_cells(cell.dataset, cell.arm), Cell(str(cell.seed), cell.seed), Cell(cell.sentence))
        for cell in summary.failed
    )
    return Table("Failed or missing runs", ("data set", "arm", "seed", "why"), rows)


def _repeat(
    summary: StudySummary, of_dataset: Mapping[str, ByArm], folder: str, commands: Sequence[str]
) -> Iterator[Block]:
    finished = [cell for arms in of_dataset.values() for cells in arms.values() for cell in cells]
    lines = [*commands, *([shlex.join(["fedsim", "report", folder])] if folder else [])]
    if finished:
        lines.append(shlex.join(["fedsim", "run", f"{finished[0].folder}/config.yaml", "output=runs/again"]))
    if lines:
        yield Commands(tuple(lines))
    versions = {name: str(version) for cell in finished for name, version in (cell.about.get("versions") or {}).items()}
    if versions:
        yield Facts(tuple(versions.items()))
    rows = tuple(
        (
            *text_cells(c.dataset, c.arm),
            Cell(str(c.seed), c.seed),
            number_cell(c.last),
            number_cell(c.best),
            Cell(c.folder),
        )
        for c in finished
    )
    if rows:
        yield Table("Runs", ("data set", "arm", "seed", "last", "best", "folder"), rows)
