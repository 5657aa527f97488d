"""The page of a study: what it found in words, tables with intervals, curves, clients, layers, and how to repeat it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim import __version__
from fedsim.data.response_rules import OF_RESPONSES
from fedsim.display.page.arms import ArmStyle, arm_legend, arm_styles
from fedsim.display.page.parts import (
    Figure,
    Figures,
    Page,
    Section,
    Sentences,
)
from fedsim.display.page.render import render
from fedsim.display.page.run_figures import label_figures
from fedsim.display.page.study_curves import curve_rows, text_metric
from fedsim.display.page.study_differences import forest
from fedsim.display.page.study_spread import client_spread, exchanged_layers, layer_scores
from fedsim.display.page.study_tables import configs, failed_table, mistakes_table, repeat, search_table, sheet_table
from fedsim.display.run_words import CLASSES, LABELS
from fedsim.records.columns import TEXT_METRIC_WORDS
from fedsim.records.labels import read_labels
from fedsim.study import words
from fedsim.study.config import StudyConfig
from fedsim.study.figures import CellFigures
from fedsim.study.measures import COMPARED, GENERATED, MEASURES
from fedsim.study.outcome import PairSummary, StudySummary
from fedsim.study.sheets import sheets

ByArm = Mapping[str, Sequence[CellFigures]]


def study_page(
    summary: StudySummary,
    cells: Sequence[CellFigures],
    study: StudyConfig,
    *,
    folder: str = "",
    search: Sequence[Mapping[str, Any]] = (),
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
    search
        What the search chose and tried, as ``search.json`` of the folder has it: :meth:`fedsim.study.search.Choice.record`.
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
        sections=tuple(_sections(summary, study, of_dataset, styles, folder, search, commands)),
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
        figure = summary.row(dataset, arm).figures["last"]
        mean = f", {words.mean_sd(figure)}"
        if best.shared:
            own = f"{words.mean_sd(figure)} over its own {figure.n}"
            mean = f" on the {len(best.shared)} seeds that all arms have ({own})"
        metric = summary.row(dataset, arm).metric_name.replace("_", " ")
        leader = (
            f"{where}{words.and_list(best.arms)} {'has' if len(best.arms) == 1 else 'have'} the highest last {metric}"
        )
        yield f"{leader}{mean}. {_verdicts(summary, dataset)}".strip()


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
    search: Sequence[Mapping[str, Any]],
    commands: Sequence[str],
) -> Iterator[Section]:
    results, *others = sheets(summary)
    yield Section("results", "Results", (sheet_table(results),), _INTERVALS)
    forests, sentences = _forests(summary, styles), _sentences(summary)
    if forests or sentences:
        pictures = [Figures(tuple(forests))] if forests else []
        said = [Sentences(tuple(sentences), bullets=True)] if sentences else []
        yield Section("differences", "Differences", (*pictures, *said))
    if curves := curve_rows(summary, of_dataset, styles):
        yield Section("curves", "Curves", tuple(curves))
    tables = {sheet.title: sheet_table(sheet) for sheet in others}
    if "Written responses" in tables:
        yield Section("written", "Written responses", (tables["Written responses"],), _WRITTEN)
    spread = [
        client_spread(f"clients-{at}", _named(summary, d), arms, styles)
        for at, (d, arms) in enumerate(of_dataset.items())
    ]
    if figures := [each for each in spread if each]:
        table = [tables["Clients"]] if "Clients" in tables else []
        yield Section("clients", "How the clients fare", (Figures(tuple(figures)), *table))
    if layers := _layers(summary, of_dataset, styles):
        yield Section("layers", "Layers", (Figures(tuple(layers), arm_legend(styles, summary.reference)),))
    if held := _labels(summary, of_dataset):
        yield Section("labels", "Who holds what", tuple(held), _LABELS)
    if "Costs" in tables:
        yield Section("costs", "Costs", (tables["Costs"],), _COSTS)
    if "Simulated devices" in tables:
        yield Section("world", "Simulated devices", (tables["Simulated devices"],), _WORLD)
    if mistakes := mistakes_table(summary):
        yield Section("mistakes", "Same mistakes?", (mistakes,), _MISTAKES)
    yield Section("configs", "What differs", tuple(configs(study)))
    if search:
        yield Section("search", "Search", (search_table(search, _judged_by(study)),), _SEARCH)
    if summary.failed:
        yield Section("failed", "Failed runs", (failed_table(summary),))
    if summary.notes:
        yield Section("notes", "Notes", (Sentences(summary.notes, bullets=True),))
    yield Section("repeat", "Repeat it", tuple(repeat(summary.cells, folder, commands)))


_INTERVALS = "Mean ± standard deviation over seeds. Bold: shown to be better than every other arm."
_MISTAKES = "Both runs of a seed on the same validation examples; p of McNemar's exact test."
_SEARCH = (
    "Every arm had the same budget. Settings are chosen on training examples that are held out for this; the figures above are "
    "on others."
)
_LABELS = (
    "Of one seed; another seed deals the examples out anew, and all arms with the same seed have the same clients."
)
_WRITTEN = "What the models write by themselves, compared to the responses of the data (evaluation.generate)."
_WORLD = (
    "Who was left out: without bias the slowest fifth of the clients has a fifth of the results that count. Clients without a "
    "result hold examples that the model never saw."
)
_COSTS = "Means over seeds. To the target: over the seeds that reach it."


def _judged_by(study: StudyConfig) -> str:
    """Return what a search goes by in words."""
    by = study.search.metric if study.search is not None else None
    return (
        f"{text_metric(by)} of written responses"
        if isinstance(by, str) and by in TEXT_METRIC_WORDS
        else "the last metric"
    )


def _forests(summary: StudySummary, styles: Mapping[str, ArmStyle]) -> list[Figure]:
    drawn = []
    for measure in (*COMPARED[:3], *GENERATED):
        for at, dataset in enumerate(summary.datasets):
            pairs = _pairs(summary, dataset, measure)
            metric = next(
                (row.metric_name for row in summary.rows if row.dataset == dataset and row.finished), "metric"
            )
            drawn.append(forest(f"forest-{measure}-{at}", _named(summary, dataset), measure, metric, pairs, styles))
    return [each for each in drawn if each is not None]


def _layers(summary: StudySummary, of_dataset: Mapping[str, ByArm], styles: Mapping[str, ArmStyle]) -> list[Figure]:
    """Return the scores on all data sets, then what is exchanged on them."""
    arms = [(at, _named(summary, dataset), arms) for at, (dataset, arms) in enumerate(of_dataset.items())]
    drawn = [layer_scores(f"scores-{at}", name, each, styles) for at, name, each in arms]
    drawn += [exchanged_layers(f"layers-{at}", name, each) for at, name, each in arms]
    return [each for each in drawn if each is not None]


def _labels(summary: StudySummary, of_dataset: Mapping[str, ByArm]) -> list[Figures]:
    """Return who holds what on each data set, of the first run whose folder is at hand."""
    found = []
    for at, (dataset, arms) in enumerate(of_dataset.items()):
        paths = (Path(cell.folder) / "labels.parquet" for cells in arms.values() for cell in cells)
        labels = next((held for path in paths if (held := read_labels(path)) is not None), None)
        if labels is not None:
            where = f", {dataset}" if len(summary.datasets) > 1 else ""
            of_responses = any(cell.metric_name == OF_RESPONSES for cells in arms.values() for cell in cells)
            called = LABELS if of_responses else CLASSES
            found.append(label_figures(*labels, key=f"labels-{at}", where=where, words=called))
    return found


def _pairs(summary: StudySummary, dataset: str, measure: str) -> list[PairSummary]:
    return [pair for pair in summary.pairs if (pair.dataset, pair.measure) == (dataset, measure)]


def _named(summary: StudySummary, dataset: str) -> str:
    return dataset if len(summary.datasets) > 1 else ""


def _sentences(summary: StudySummary) -> list[str]:
    """Return what the comparisons of the last metric and of written responses show, and which arms are the best."""
    told = [measure for measure in COMPARED if measure == "last" or MEASURES[measure].kind == "text"]
    found = [pair.sentence for pair in summary.pairs if pair.measure in told]
    found += [best.sentence for best in summary.best if best.measure in told and len(summary.arms) > 2]
    return [f"{_upper(sentence, summary)}." for sentence in found]


def _upper(text: str, summary: StudySummary) -> str:
    """Begin with a capital letter, unless the text begins with an arm's name."""
    return text if text.startswith(summary.arms) else f"{text[:1].upper()}{text[1:]}"
