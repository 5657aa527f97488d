"""What models write as a study's target and as what its search chooses by; curves of it; and responses of other rounds."""

import json
import math
import shutil

import pyarrow.parquet as pq
import pytest
import yaml
from byte_guard.models import save_model
from small_study import silent
from study_cells import summary_of
from support import tiny_values

from fedsim.core.errors import ConfigError
from fedsim.display.page.arms import arm_styles
from fedsim.display.page.study_differences import forest
from fedsim.display.page.study_page import study_page
from fedsim.records.recorded_run import load_run
from fedsim.study.cells import read_study
from fedsim.study.command import compare
from fedsim.study.config import StudyConfig
from fedsim.study.figures import CurvePoint
from fedsim.study.loading import load_study

GENERATE = {"every": 1, "examples": 20, "max_new_tokens": 6, "metrics": ["f1", "chrf"]}
ARMS = {"all": None}
SEARCH = {"keys": {"client.optimizer.lr": [0.001, 0.3]}, "rounds": 1, "metric": "chrf"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a function that writes a study of a decoder that answers questions."""
    decoder = save_model("llama", tmp_path_factory.mktemp("decoder") / "llama")

    def write(folder, arms=ARMS, generate=GENERATE, **keys):
        base = {
            "executor": "local",
            "rounds": 3,
            "model": {"path": decoder, "head": {"kind": "generation"}},
            "data": {"task": "questions", "train_examples": 60},
            "client": {"fuse": 2, "steps": 3},
            "layers": {"choose": "all", "score_batch_size": None},
            "partition": {"holdout_fraction": 0},
            "evaluation": {"every": 2, "generate": generate},
        }
        (folder / "base.yaml").write_text(yaml.safe_dump(tiny_values(base)))
        (folder / "study.yaml").write_text(yaml.safe_dump({"base": "base.yaml", "arms": arms, **keys}))
        return folder / "study.yaml"

    return write


@pytest.fixture(scope="module")
def done(written, tmp_path_factory):
    """Return a study with a target of chrF that no round but the first reaches at the earliest, and its summary."""
    folder = tmp_path_factory.mktemp("study")
    path = written(folder, target=1e-9, target_metric="chrf", search=SEARCH)
    return folder, compare(path, output=folder / "out", console=silent())


def test_the_target_is_reached_where_the_responses_reach_it(done):
    folder, summary = done
    (cell,) = summary.cells
    course = {row["round"]: row["generated_chrf"] for row in load_run(cell.folder).rounds.to_pylist()}
    first = min(round for round, value in course.items() if value >= 1e-9)
    assert (cell.target_metric, cell.target_round) == ("chrf", first)
    assert "The target is one of chrf of written responses, in the rounds in which the model wrote." in summary.notes
    assert {point.round: point.generated_chrf for point in cell.curve} == course and len(course) == 4
    assert [point.round for point in cell.curve if math.isnan(point.metric)] == [1]
    (row,) = pq.read_table(folder / "out" / "cells.parquet").to_pylist()
    assert [point["generated_chrf"] for point in row["curve"]] == list(course.values())
    assert row["curve"][1]["metric"] is None and row["curve"][1]["generated_rouge1"] is None
    assert load_study(folder / "out")[1].record() == summary.record()


def test_a_search_chooses_by_what_the_model_writes_at_the_end(done):
    folder, _ = done
    (choice,) = json.loads((folder / "out" / "search.json").read_text())
    found = []
    for number, trial in enumerate(choice["trials"]):
        run = folder / "out" / f"search/base/all/trial-{number}-seed-1000"
        found.append(json.loads((run / "summary.json").read_text())["generated"]["chrf"])
        assert trial["metrics"] == [found[-1]]
    assert found[0] != found[1]
    assert choice["chosen"] == {"client.optimizer.lr": SEARCH["keys"]["client.optimizer.lr"][found.index(max(found))]}


@pytest.mark.parametrize(
    ("measure", "words"),
    [
        ("generated.chrf", "chrF of written responses"),
        ("generated.exact_match", "Exact match of written responses"),
        ("personal_generated.f1", "Personalised F1 of written responses"),
        ("last", "Last global accuracy"),
    ],
)
def test_differences_name_a_metric_as_its_curves_do(measure, words):
    summary = summary_of({"d": {"a": [0.7, 0.9], "b": [0.8, 0.9]}}, {})
    drawn = forest("key", "", measure, "accuracy", summary.pairs, arm_styles(["a", "b"], "a"))
    assert drawn.title == f"{words} against a"


def test_the_page_has_a_curve_of_each_text_metric(done):
    page = (done[0] / "out" / "report.html").read_text()
    assert "F1 of written responses by round" in page and "chrF of written responses by round" in page
    assert "mean of chrF of written responses" in page
    assert "chrF of written responses by traffic" in page and "F1 of written responses by traffic" not in page


def test_curves_of_several_data_sets_and_seeds_are_those_of_the_runs_that_wrote():
    def curve(shift):
        return tuple(CurvePoint(r, 0.5, 10 * r, r, generated_f1=0.1 * r + shift) for r in (0, 1, 2))

    figures = {("d", "a", seed): {"curve": curve(seed / 100)} for seed in (0, 1)}
    figures |= {
        ("e", "a", seed): {"curve": (CurvePoint(0, 0.5, 0, 0.0), CurvePoint(2, 0.6, 9, 1.0))} for seed in (0, 1)
    }
    summary = summary_of({"d": {"a": [0.7, 0.9]}, "e": {"a": [0.7, 0.9]}}, figures)
    study = StudyConfig(base="b", arms={"a": None}, datasets={"d": None, "e": None}, seeds=(0, 1), name="s")
    page = study_page(summary, summary.cells, study)
    assert "F1 of written responses by round, d" in page and "written responses by round, e" not in page
    assert "Exact match of written" not in page and "by traffic, e" in page


MISTAKES = {
    "nothing is written": ({"generate": None}, "it writes nothing; give evaluation.generate.every"),
    "at the end alone": ({"generate": {**GENERATE, "every": 0}}, "it writes after the last one alone; set"),
    "another metric": ({"target_metric": "rouge1"}, r"=rouge1 is not among evaluation.generate.metrics=\[f1, chrf\]"),
    "a target in per cent": ({"target": 40}, "base: target=40 cannot be reached, since f1 is at most 1; 40 % is 0.4"),
    "no target": ({"target": None}, "target_metric says what a target is a value of, and there is none"),
    "no such data set": ({"target_metric": {"news": "f1"}}, "target_metric.news names the data set 'news', which does not"),
    "an arm that writes nothing": (
        {"arms": {"a": None, "b": {"evaluation.generate": None}}}, "arm b on data set base: target_metric=f1 is a metric of"
    ),
    "a search without responses": (
        {"target": None, "target_metric": None, "generate": None, "search": SEARCH},
        "search.metric=chrf is a metric of what the model writes, but it writes nothing; give evaluation.generate, such as",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_metric_that_runs_do_not_record_is_refused_in_one_sentence(written, tmp_path, name):
    changes, said = MISTAKES[name]
    with pytest.raises(ConfigError, match=said) as error:
        read_study(written(tmp_path, **{"target": 0.5, "target_metric": "f1", **changes}))
    assert "\n" not in str(error.value)


def test_a_search_needs_responses_of_the_end_alone(written, tmp_path):
    read_study(written(tmp_path, generate={**GENERATE, "every": 0}, search=SEARCH))


@pytest.mark.parametrize("every", [2, pytest.param(0, marks=pytest.mark.wide)])
def test_a_finished_cell_that_wrote_after_other_rounds_is_no_cell_of_the_study(done, written, tmp_path, every):
    lr = {"client.optimizer.lr": 0.001}
    chosen = json.loads((done[0] / "out" / "search.json").read_text())[0]["chosen"] or lr
    out = tmp_path / "out"
    shutil.copytree(done[0] / "out" / "cells", out / "cells")

    def again(**keys):
        path = written(tmp_path, name="study", set=chosen, **keys)
        return compare(path, output=out, console=silent())

    held = {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    (failed,) = again(generate={**GENERATE, "every": every}).failed
    assert f"it is finished, and evaluation.generate.every was 1 and is {every}: what its model was" in failed.sentence
    assert failed.sentence.endswith("leave evaluation.generate.every as it was, or delete the run and compare again")
    assert {path: path.read_bytes() for path in out.rglob("*.safetensors")} == held
    assert not again().failed
    # Responses of rounds that are gone from the records are noticed, too; those of the end can be written again.
    for file in out.glob("cells/*/*/*/generations*.parquet"):
        file.unlink()
    (failed,) = again().failed
    assert "it is finished without responses after round 1, and what its model was then is gone" in failed.sentence
