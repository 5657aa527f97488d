from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from support import ROOT

from fedsim.data.config import TaskConfig
from fedsim.display.course import chance, draw_metric_by_bytes, with_final
from fedsim.display.figure import DPI, PictureWarning, Stamp, new_figure, save
from fedsim.display.label_plot import class_colors
from fedsim.display.plots import (
    plot_bytes,
    plot_label_distribution,
    plot_layer_scores,
    plot_loss,
    plot_metric,
    write_plots,
)
from fedsim.display.score_plot import draw_scores
from fedsim.records.results import class_names
from fedsim.records.run_folder import RunFolder


def picture(path: Path, height_inches: float = 4.5) -> np.ndarray:
    """Return a PNG's pixels as [rows, columns, 3] after checking its size and that something is drawn."""
    from matplotlib.image import imread

    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = imread(path)[..., :3]
    assert pixels.shape[:2] == (round(height_inches * DPI), 8 * DPI)
    inked = (pixels < 0.9).any(axis=2).mean()
    assert 0.003 < inked < 0.8
    return pixels


def share_of(pixels: np.ndarray, color: str) -> float:
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return float((np.abs(pixels - wanted) < 0.01).all(axis=2).mean())


def rounds(count: int, **changes) -> dict[str, np.ndarray]:
    number = np.arange(count)
    nothing = np.full(count, np.nan)
    columns = {
        "round": number, "global_metric": 0.5 + number / 1000, "personalised_metric": nothing,
        "train_loss_first": 0.7 - number / 1000, "train_loss_last": 0.6 - number / 1000, "global_loss": nothing,
        "personalised_loss": nothing, "bytes_up": np.full(count, 2e6), "bytes_down": np.full(count, 1e6),
    }  # fmt: skip
    return {**columns, **changes}


BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#BBBBBB"


@pytest.mark.parametrize("count", [1, 20, 300])
def test_lines_of_any_length(tmp_path, count):
    assert share_of(picture(plot_metric(rounds(count), tmp_path / "m.png", "accuracy_f1")), BLUE) > 0
    assert share_of(picture(plot_loss(rounds(count), tmp_path / "l.png")), GREY) > 0
    assert not list(tmp_path.glob(".*"))


def test_rounds_without_an_evaluation_are_bridged(tmp_path):
    sparse = np.where(np.arange(20) % 5 == 4, 0.6, np.nan)
    pixels = picture(plot_metric(rounds(20, personalised_metric=sparse), tmp_path / "m.png", "accuracy"))
    assert share_of(pixels, ORANGE) > share_of(picture(plot_metric(rounds(20), tmp_path / "n.png", "accuracy")), ORANGE)


def test_nothing_measured_draws_nothing(tmp_path):
    nothing = np.full(3, np.nan)
    assert plot_metric(rounds(3, global_metric=nothing), tmp_path / "m.png") is None
    assert plot_bytes(rounds(3, bytes_up=nothing, bytes_down=nothing), tmp_path / "b.png") is None
    assert plot_loss({"round": np.arange(0)}, tmp_path / "l.png") is None
    assert not list(tmp_path.iterdir())


def test_the_metric_stands_against_the_traffic_so_far_with_chance_and_the_personalised_point():
    up = np.concatenate([[np.nan], np.full(9, 2e6)])  # nothing travels before the first round
    held = with_final(rounds(10, bytes_up=up, bytes_down=up / 2), 0.75)
    _, axes = new_figure("", "", "")
    assert draw_metric_by_bytes(axes, held, 0.5) == "MB"
    course, own, guessing = axes.get_lines()
    assert course.get_xdata().tolist() == [3.0 * number for number in range(10)]
    assert course.get_ydata().tolist() == held["global_metric"].tolist()
    assert (own.get_xdata().tolist(), own.get_ydata().tolist()) == ([27.0], [0.75])
    assert set(guessing.get_ydata()) == {0.5}
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in (course, own, guessing)}) == 3


@pytest.mark.parametrize(
    ("metric", "classes", "expected"),
    [("accuracy", 4, 0.25), ("matthews", 9, 0.0), ("accuracy", None, None), ("f1", 2, None)],
)
def test_chance_is_what_guessing_scores_where_that_is_known(metric, classes, expected):
    assert chance(metric, classes) == expected


@pytest.mark.parametrize(("clients", "classes"), [(1, 2), (40, 3), (41, 3), (1000, 10), (100, 30)])
def test_label_distribution_of_any_size(tmp_path, clients, classes):
    rng = np.random.default_rng(0)
    counts_NC = rng.multinomial(40, rng.dirichlet(np.ones(classes)), size=clients)
    counts_NC[0] = 0  # a client may hold nothing
    counts_NC[-1, 0] = 7
    names = [f"a class with a very long name {number}" for number in range(classes)]
    picture(plot_label_distribution(counts_NC, names, tmp_path / "d.png"), height_inches=6.4)


def names_drawn(monkeypatch, tmp_path, names) -> tuple[Figure, Path]:
    """Return the figure of a label distribution with these classes as it is saved, and its file."""
    figures = []
    monkeypatch.setattr(
        "fedsim.display.plots.save", lambda figure, *rest: figures.append(figure) or save(figure, *rest)
    )
    counts_NC = np.random.default_rng(0).multinomial(40, np.full(len(names), 1 / len(names)), size=5)
    path = plot_label_distribution(counts_NC, names, tmp_path / "d.png")
    return figures[0], path


def test_names_of_classes_are_drawn_as_they_are_and_never_as_formulas(monkeypatch, tmp_path):
    names = ["$", "$$", "$$$", "a $x^ {", "_hidden", "\\frac{", "%", "100 %$"]
    figure, path = names_drawn(monkeypatch, tmp_path, names)
    texts = figure.axes[0].get_legend().get_texts()
    assert [text.get_text() for text in texts] == names
    assert not any(text.get_parse_math() for text in texts)
    picture(path, height_inches=6.4)


def test_more_classes_than_colours_are_a_scale_with_some_names(monkeypatch, tmp_path):
    figure, path = names_drawn(monkeypatch, tmp_path, [f"pay $$ {number}" for number in range(150)])
    above, below, bar = figure.axes
    assert above.get_legend() is None and below.get_legend() is None
    assert bar.get_ylabel() == "class, 16 of 150 named"
    labels = [label.get_text() for label in bar.get_yticklabels()]
    assert labels[0] == r"pay \$\$ 0" and labels[-1] == r"pay \$\$ 149" and len(labels) == 16
    picture(path, height_inches=6.4)
    assert len({tuple(color) for color in class_colors(20)}) == 20
    assert len({tuple(color) for color in class_colors(150)}) == 150


def test_a_character_that_the_font_lacks_comes_from_another_font_and_one_that_none_has_is_told_once(
    monkeypatch, tmp_path, recwarn
):
    other, unknown = (
        "\N{COMBINING ENCLOSING CIRCLE}",
        "\U000e0fff",
    )  # one of the fonts for formulas that matplotlib brings
    figure, _ = names_drawn(monkeypatch, tmp_path, [f"a{other}", "b"])
    assert figure.axes[0].get_legend().get_texts()[0].get_fontfamily()[0] == "DejaVu Sans"
    assert len(figure.axes[0].get_legend().get_texts()[0].get_fontfamily()) > 1
    assert not recwarn.list
    names_drawn(monkeypatch, tmp_path, [f"c{unknown}", f"d{unknown}"])
    assert [type(each.message) for each in recwarn.list] == [PictureWarning]
    assert unknown in str(recwarn.list[0].message) and "install one that has" in str(recwarn.list[0].message)


def test_a_picture_that_fails_is_told_and_the_others_are_drawn(monkeypatch, tmp_path):
    def fail(*arguments):
        raise ValueError("of no use\nTraceback and more")

    monkeypatch.setattr("fedsim.display.plots.plot_loss", fail)
    notes = []
    with RunFolder.create(tmp_path / "a") as folder:
        folder.event("layers", layers=[1], scores=[0.5, 2.0])
        folder.round_record(
            {"round": 0, "global_metric": 0.5, "train_loss_last": 0.6, "bytes_up": 10, "bytes_down": 10}
        )
        folder.flush()
        counts_NC = np.ones((3, 2), dtype=int)
        written = write_plots(folder, counts_NC=counts_NC, class_names=["a", "b\U000e0fff"], note=notes.append)
    assert [path.name for path in written] == ["metric.png", "bytes.png", "label_distribution.png", "layer_scores.png"]
    assert notes[0] == "warning: the picture loss.png is left out: ValueError: of no use"
    assert len(notes) == 2 and notes[1].startswith(
        "warning: the picture label_distribution.png: no font of this machine"
    )


def test_neither_a_backend_nor_a_style_of_the_user_has_a_part_in_pictures(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\naxes.facecolor: black\nfont.size: 30\n")
    script = (
        "import os, pathlib, fedsim.display.plots as plots;"
        "plots.plot_layer_scores([1.0, 200.0], [1], pathlib.Path('s.png'));"
        "assert os.environ['MPLBACKEND'] == 'module://no_such_notebook.backend'"
    )
    environment = {**os.environ, "MPLBACKEND": "module://no_such_notebook.backend", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, env=environment)
    here = plot_layer_scores([1.0, 200.0], [1], tmp_path / "here.png")
    assert (tmp_path / "s.png").read_bytes() == here.read_bytes()


def test_classes_are_called_as_in_the_data():
    task = TaskConfig(name="t", fields=("x",), labels=("0", "1"), label_words=("bad", "good"))
    assert class_names(task) == ("0 (bad)", "1 (good)")
    assert class_names(task.model_copy(update={"labels": ("neg", "pos\n1")})) == ("neg", r"pos\n1")
    assert class_names(task.model_copy(update={"label_words": None})) == ("0", "1")


@pytest.mark.parametrize("clients", [12, 1000])
def test_label_distribution_areas_stand_in_proportion_to_the_counts(tmp_path, clients):
    counts_NC = np.tile([30, 10], (clients, 1))
    pixels = picture(plot_label_distribution(counts_NC, ["no", "yes"], tmp_path / "d.png"), height_inches=6.4)
    ratio = share_of(pixels, "#332288") / share_of(pixels, "#DDCC77")
    assert ratio == pytest.approx(3.0, rel=0.1)


def test_layer_scores_mark_the_chosen_layers_on_an_axis_that_shows_how_they_differ():
    _, axes = new_figure("", "", "")
    draw_scores(axes, [500.0, 502.0, 501.0, 503.0], [1, 3], [[499.5, 501, 500, 502], [500.5, 503, 502, 504]])
    exchanged, others, _ = axes.get_lines()
    assert (exchanged.get_xdata().tolist(), others.get_xdata().tolist()) == ([1, 3], [0, 2])
    assert exchanged.get_marker() != others.get_marker() and exchanged.get_color() != others.get_color()
    low, high = axes.get_ylim()
    assert 498 < low < 499.5 and 504 < high < 506
    assert sum(len(lines.get_segments()) for lines in axes.collections) == 4  # the spread of each layer


@pytest.mark.parametrize("scores", [[5.0, 5.0], [0.0, 0.0], [-3.0, -3.0]])
def test_equal_layer_scores_stand_on_one_line(scores):
    _, axes = new_figure("", "", "")
    draw_scores(axes, scores, [0])
    low, high = axes.get_ylim()
    assert low < scores[0] < high


def test_a_stamp_is_written_into_the_picture_and_the_svg_beside_it_whatever_its_characters(tmp_path):
    stamp = Stamp("a <b> & 'c' $x_", svg=True)
    path = plot_loss(rounds(4), tmp_path / "l.png", stamp)
    texts = [
        "".join(text.itertext())
        for text in ElementTree.parse(tmp_path / "l.svg").iter("{http://www.w3.org/2000/svg}text")
    ]
    assert stamp.text in texts and "Loss by round" in texts
    before = (tmp_path / "l.svg").read_bytes()
    assert plot_loss(rounds(4), path, stamp) == path and (tmp_path / "l.svg").read_bytes() == before


@pytest.mark.parametrize(
    "scores", [[3.0], [1.0, 1e5, np.nan], [-2.0, 4.0, np.inf], list(range(1, 81)), [np.nan, np.nan]]
)
def test_layer_scores_of_any_kind(tmp_path, scores):
    path = plot_layer_scores(scores, [0], tmp_path / "s.png")
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_pictures_can_be_made_again_from_the_folder(tmp_path):
    with RunFolder.create(tmp_path / "a") as folder:
        assert write_plots(folder) == []
        folder.event("layers", layers=[1], scores=[0.5, float("nan"), 2.0])
        for number in range(4):
            record = {"round": number, "global_metric": 0.5, "train_loss_last": 0.6, "bytes_up": 10, "bytes_down": 10}
            folder.round_record(record)
        folder.flush()
        folder.write_summary({"metric_name": "matthews"})
        written = write_plots(folder, counts_NC=np.ones((3, 2), dtype=int))
        names = ["metric.png", "loss.png", "bytes.png", "label_distribution.png", "layer_scores.png"]
        assert [path.name for path in written] == names
        before = {path: path.read_bytes() for path in written if path.name != "label_distribution.png"}
        assert write_plots(folder) == list(before)
        assert all(path.read_bytes() == data for path, data in before.items())


def test_layers_chosen_without_scores_have_no_picture(tmp_path):
    with RunFolder.create(tmp_path / "a") as folder:
        folder.event("layers", layers=[0, 1], scores=None)
        assert write_plots(folder) == []


def test_matplotlib_is_imported_only_when_something_is_drawn_and_pyplot_never(tmp_path):
    script = (
        "import sys, numpy, pathlib, fedsim.display.plots as plots; assert 'matplotlib' not in sys.modules;"
        f"plots.plot_layer_scores([1.0, 2.0], [1], pathlib.Path({str(tmp_path / 's.png')!r}));"
        "assert 'matplotlib.pyplot' not in sys.modules and 'pyarrow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
