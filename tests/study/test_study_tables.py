"""Tables of a study: printed at any width, as markdown, LaTeX, CSV and Parquet."""

import csv
import io
import math
import re
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from study_cells import summary_of
from support import ROOT

from fedsim.core.errors import ConfigError, ResourceError
from fedsim.display.screen import Screen
from fedsim.study.exports import EXPORTS, export
from fedsim.study.figures import CurvePoint
from fedsim.study.markup import escape_latex, latex, markdown
from fedsim.study.statistics import estimate
from fedsim.study.table import StudyTable
from fedsim.study.words import mean_sd

BASE = [0.80, 0.81, 0.82, 0.79, 0.80, 0.83, 0.81]
GAINED = [round(value + gain, 4) for value, gain in zip(BASE, (0.01, 0.03, 0.02, 0.02, 0.03, 0.025, 0.02), strict=True)]
NASTY = 'out of {memory}: 50% & 3 | 4 GB_free\nof #1 [red]$5 *~^ <b> \\ "yes"'
"""The sentence of a failed cell, with what markdown, LaTeX and rich read as their own."""


def a_summary(**keys):
    """A study where one arm is clearly the best on one data set and nothing can be said on the other."""
    lasts = {
        "sst-2": {"fed_avg": BASE, "peptao": GAINED},
        "trec_6": {
            "fed_avg": [0.5, NASTY, NASTY, NASTY, None, math.nan, 0.5],
            "peptao": [0.6, 0.7, 0.6, 0.6, 0.6, 0.6, 0.6],
        },
    }
    figures = {
        ("sst-2", arm, seed): {
            "personalised": value + 0.01,
            "client_median": value,
            "target": 0.82,
            "target_round": 3 if value > 0.82 else None,
            "target_bytes": 3_000_000 if value > 0.82 else None,
            "exchanged_parameters": 20_480,
            "layers": (0, 2),
            "scores": (0.5, math.nan, 0.25),
            "curve": (CurvePoint(0, 0.5, 0, 0.0), CurvePoint(1, value, 10**12, 1.5)),
            "clients": {7: {"examples": 10.0, "before": 0.5, "after": math.nan}},
            "contents": {"partition": f"{seed}"},
        }
        for arm, values in {"fed_avg": BASE, "peptao": GAINED}.items()
        for seed, value in enumerate(values)
    }
    return summary_of(lasts, figures, **keys)


SUMMARY = a_summary()


def test_a_name_of_wide_characters_stays_on_one_line():
    said = io.StringIO()
    Console(file=said, width=80).print(StudyTable(summary_of({"d": {"ärm_中文": BASE, "b": GAINED}})))
    assert any(line.startswith(" ärm_中文 ") for line in said.getvalue().splitlines())


CELLS = sum(map(len, (row.seeds for row in SUMMARY.rows)))


def printed(width: int, summary=SUMMARY) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(StudyTable(summary))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [24, 55, 56, 80, 120, 240])
def test_a_terminal_of_any_width_shows_every_arm_its_mean_and_the_sentences(width):
    text = printed(width)
    assert all(len(line) <= width for line in text.splitlines())
    flat = "".join(text.split())
    for pair in SUMMARY.pairs:
        assert ("".join(pair.sentence.split()) in flat) == (pair.measure == "last")
    assert all("".join(note.split()) in flat for note in SUMMARY.notes)
    for title in ("sst-2", "trec_6"):
        assert re.search(rf"^{title} *$", text, re.M)
    for row in SUMMARY.rows:
        shown = "".join(f"{row.figures['last'].mean:.3f}")
        assert row.arm in text and shown in text


@pytest.mark.parametrize("width", [40, 80, 240])
def test_failed_cells_stand_in_the_table_with_their_sentence(width):
    text = printed(width)
    assert all(word in text for word in NASTY.split())
    assert text.count("{memory}") == 1  # once for the three seeds
    assert re.search(r"it has\s+not run", text)


def test_a_wide_terminal_shows_more_columns_and_sentences_come_last():
    narrow, wide = printed(60), printed(300)
    head = wide.split("───")[0]
    assert "effect" not in narrow
    assert all(word in head for word in ("seeds", "95 % interval", "against", "effect", "target"))
    rule = next(line for line in printed(120).splitlines() if "failed" in line)
    assert rule.rstrip().endswith("failed") and 0 < rule.find("seeds") < rule.find("interval")


def test_only_what_the_statistics_support_is_bold():
    def bold(summary) -> list[str]:
        console = Screen(file=io.StringIO(), width=300, force_terminal=True, color_system="standard")
        console.print(StudyTable(summary))
        return re.findall(r"\x1b\[1m *(0\.\d+)", console.file.getvalue())

    mean = f"{SUMMARY.row('sst-2', 'peptao').figures['last'].mean:.3f}"
    assert bold(SUMMARY)[0] == mean
    assert re.findall(r"\*\*(0\.\d+)", markdown(SUMMARY))[0] == mean
    assert re.findall(r"\\textbf{(0\.\d+)", latex(SUMMARY))[0] == mean
    few = summary_of({"d": {"a": BASE[:5], "b": GAINED[:5]}})
    assert not bold(few) and "**" not in markdown(few) and "textbf" not in latex(few)


def test_markdown_tables_are_whole_whatever_the_words_hold():
    lines = [line for line in markdown(SUMMARY).splitlines() if line.startswith("|")]
    counts = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    tables = [n for n, line in enumerate(lines) if line.startswith("| data set")]
    assert len(lines) == len(tables) * (2 + len(SUMMARY.rows)) and len(tables) == 3
    assert all(len(set(counts[start : start + 2 + len(SUMMARY.rows)])) == 1 for start in tables)
    assert r"3 \| 4 GB\_free of #1 \[red\]$5 \*\~^ \<b> \\ " in markdown(SUMMARY)
    assert r"fed\_avg" in markdown(SUMMARY)


def test_latex_tables_are_whole_whatever_the_words_hold():
    text = latex(SUMMARY)
    stack = []
    for what, name in re.findall(r"\\(begin|end){(\w+)}", text):
        if what == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    bare = re.sub(r"\\[{}]", "", re.sub(r"\\\\", "", text))
    assert bare.count("{") == bare.count("}")
    for tabular in re.findall(r"\\begin{tabular}{([^\n]*)}\n(.*?)\\end{tabular}", text, re.S):
        columns = len(re.sub(r"p{[^}]*}", "p", tabular[0]))
        rows = [line for line in tabular[1].splitlines() if line.endswith(r" \\")]
        assert len(rows) == 1 + len(SUMMARY.rows)
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {columns - 1}
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(f"\\{rule}") == text.count(r"\begin{tabular}") == 3
    assert not re.search(r"(?<!\\)[_#%](?!\n)", text.split("\n", 1)[1])


def test_latex_is_escaped():
    assert escape_latex(NASTY) == (
        r"out of \{memory\}: 50\% \& 3 $|$ 4 GB\_free of \#1 [red]\$5 *\textasciitilde{}\textasciicircum{} $<$b$>$ "
        r"\textbackslash{} ''yes''"
    )
    assert escape_latex("-0.010 to 0.5 ± 0.1, seeds 0-2, sst-2") == r"$-$0.010 to 0.5 $\pm$ 0.1, seeds 0-2, sst-2"


@pytest.mark.parametrize(
    ("kind", "values", "text"),
    [
        ("metric", [0.5, 0.75], "0.625 ± 0.177"),
        ("metric", [0.5, 0.5], "0.500 ± 0.000"),
        ("round", [0, 2], "1 ± 1.4"),
        ("round", [300, 301], "300 ± 0.7"),
        ("count", [20480, 20480], "20,480"),
        ("bytes", [1_000_000, 3_000_000], "2 MB ± 1.41 MB"),
        ("seconds", [90], "1 min 30 s"),
        ("share", [], "-"),
    ],
)
def test_figures_are_printed_by_what_they_count_in(kind, values, text):
    assert mean_sd(estimate(dict(enumerate(values))), kind) == text


def test_csv_has_every_cell_and_every_pair(tmp_path):
    paths = export(SUMMARY, "csv", tmp_path / "new")
    assert [path.name for path in paths] == ["cells.csv", "pairs.csv"]
    cells, pairs = (list(csv.DictReader(path.open(newline=""))) for path in paths)
    assert len(cells) == CELLS and len(pairs) == len(SUMMARY.pairs)
    failed = [cell for cell in cells if cell["status"] == "failed"]
    assert [cell["sentence"] for cell in failed] == [NASTY, NASTY, NASTY, "it has not run"]
    assert [cell["last"] for cell in cells if cell["status"] == "finished"][-7:] == ["0.6", "0.7", *["0.6"] * 5]
    assert [float(cell["last"]) for cell in cells[:7]] == BASE
    assert [pair["sentence"] for pair in pairs] == [pair.sentence for pair in SUMMARY.pairs]


def test_parquet_has_all_figures_of_every_cell_and_null_for_what_is_no_number(tmp_path):
    cells, pairs = (pq.read_table(path).to_pylist() for path in export(SUMMARY, "parquet", tmp_path))
    assert len(cells) == CELLS and len(pairs) == len(SUMMARY.pairs)
    first = cells[0]
    assert (first["dataset"], first["arm"], first["seed"], first["status"]) == ("sst-2", "fed_avg", 0, "finished")
    assert (first["last"], first["best"], first["target_round"]) == (BASE[0], None, None)
    assert first["layers"] == [0, 2] and first["scores"] == [0.5, None, 0.25]
    assert first["curve"][1]["bytes"] == 10**12 and first["curve"][0]["seconds_modelled"] is None
    assert first["clients"] == [{"client": 7, "examples": 10.0, "before": 0.5, "after": None, "rounds": None}]
    assert first["contents"] == '{"partition": "0"}'
    pair = SUMMARY.pair("sst-2", "peptao")
    assert (pairs[0]["p_holm"], pairs[0]["low"], pairs[0]["wins"]) == (pair.p_holm, pair.difference.low, 7)
    assert [row["sd"] is None for row in pairs] == [row.difference.n < 2 for row in SUMMARY.pairs]


def test_parquet_without_any_finished_cell_has_the_same_columns(tmp_path):
    nothing = summary_of({"d": {"a": ["failed"], "b": ["failed"]}})
    schemas = []
    for summary in (SUMMARY, nothing):
        schemas.append([pq.read_schema(path) for path in export(summary, "parquet", tmp_path)])
    assert schemas[0] == schemas[1]
    for kind in ("md", "latex", "csv"):
        assert all(path.stat().st_size for path in export(nothing, kind, tmp_path))
    assert "failed" in printed(80, nothing) and "cannot be compared" in printed(80, nothing)


def test_mcnemar_stands_in_markdown():
    summary = summary_of({"d": {"a": [0.5], "b": [1.0]}}, correct=lambda cell: [True, cell.arm == "b"])
    assert "- seed 0: only a is right on 0 examples, only b on 1, p = 1." in markdown(summary)


def test_a_mistake_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="'pdf' is no kind of file; one of"):
        export(SUMMARY, "pdf", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        export(SUMMARY, "md", tmp_path / "file")
    assert set(EXPORTS) == {"md", "latex", "csv", "parquet"}


def test_what_compares_nothing_imports_no_scipy():
    code = "import sys, fedsim.study.summary, fedsim.study.table, fedsim.study.exports; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert not {"scipy", "torch", "pyarrow", "matplotlib", "pandas"} & set(done.stdout.split())
