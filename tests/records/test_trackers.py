"""Trackers: whatever one does, the run and the others have everything, and it is said once."""

import json
import threading
from contextlib import nullcontext

import pytest
from support import ROOT, make_tiny

import fedsim
from fedsim.core import plugins
from fedsim.core.errors import ConfigError
from fedsim.records.trackers.base import TrackedRun, Tracker, scalars, without_secrets
from fedsim.records.trackers.config import TrackingConfig
from fedsim.records.trackers.delivery import Delivery
from fedsim.records.trackers.trackers import Trackers
from fedsim.simulation.interrupt import RunInterrupted

CALLS = ("start", "round", "picture", "artifact", "finish")


class Diary(Tracker):
    """Keeps what it is told; with ``fails``, a call raises as many times."""

    def __init__(self, fails="", times=10**6):
        super().__init__()
        self.lines, self.fails, self.times = [], fails, times

    def _told(self, call, *what):
        if call == self.fails and self.times:
            self.times -= 1
            raise OSError(f"no route to {call}")
        self.lines.append((call, *what))

    def start(self, run, config, resumed):
        self._told("start", resumed)
        return "id-1"

    def go_back(self, first_round):
        self._told("go_back", first_round)

    def round(self, record):
        self._told("round", record["round"])

    def picture(self, name, path):
        self._told("picture", name)

    def artifact(self, path):
        self._told("artifact", path.name)

    def finish(self, summary, status):
        self._told("finish", summary.get("rounds"), status)


class Rewinding(Diary):
    can_go_back = True


class Listener:
    """What a run's own records and its user are told."""

    def __init__(self):
        self.events, self.notes = [], []

    def event(self, kind, **fields):
        self.events.append((kind, fields["tracker"], fields["reason"]))


def follow(folder, made, rounds, *, first_round=0, recorded=(), error=None, listener=None, flush_seconds=30.0):
    """Let trackers follow a run that does nothing but its rounds; return what was said."""
    listener = listener or Listener()
    trackers = Trackers(made, listener.event, listener.notes.append, flush_seconds)
    run = TrackedRun("run", folder, None, {})
    status = {RunInterrupted: "stopped"}
    block = trackers.following(run, {}, first_round, recorded, lambda error: status.get(type(error), "failed"))
    with pytest.raises(type(error)) if error is not None else nullcontext(), block:
        for number in rounds:
            trackers.round({"round": number})
        if error is not None:
            raise error
        trackers.results({"rounds": 3}, [folder / "metric.png"], [folder / "global.safetensors"])
    return listener


def whole(rounds, resumed=None):
    return [
        ("start", resumed), *(("round", number) for number in rounds),
        ("picture", "metric"), ("artifact", "global.safetensors"), ("finish", 3, "finished"),
    ]  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_a_tracker_that_fails_takes_nothing_from_the_others_and_is_named_once(tmp_path, call):
    good, bad = Diary(), Diary(call)
    said = follow(tmp_path, {"bad": bad, "good": good}, range(4))
    assert good.lines == whole(range(4))
    (failure,) = said.events
    assert failure[:2] == ("tracker_failed", "bad") and f"OSError: no route to {call}" in failure[2]
    assert sum("failed" in note for note in said.notes) == 1
    missed = {"start": 8, "round": 4}.get(call, 1)
    assert said.notes[-1].startswith(f"warning: the tracker bad missed {missed} calls")
    assert bad.lines == [line for line in whole(range(4)) if line[0] != call and call != "start"]


@pytest.mark.parametrize("call", CALLS)
def test_a_tracker_that_comes_back_gets_what_it_missed_in_order(tmp_path, call):
    bad = Diary(call, times=1)
    said = follow(tmp_path, {"bad": bad}, range(4))
    assert bad.lines == whole(range(4))
    assert len(said.events) == 1 and not any("missed" in note for note in said.notes)


def test_a_service_that_never_answers_holds_up_no_round_and_the_end_for_its_time_alone(tmp_path):
    answers, slow = threading.Event(), Diary()
    slow.round = lambda record: answers.wait(60)
    said = follow(tmp_path, {"slow": slow}, range(6), flush_seconds=0.01)
    assert len(said.events) == 1 and "flush_seconds" in said.events[0][2]
    assert any("missed" in note for note in said.notes)
    answers.set()


def test_a_line_is_bounded():
    go_on, done = threading.Event(), []
    line = Delivery("slow", most=3)
    for number in range(9):
        line.put("round", lambda number=number: (go_on.wait(60), done.append(number)))
    go_on.set()
    line.end()
    line.wait(30)
    assert done == [0, 1, 2] and line.missed == 6 and "3 calls are waiting" in line.reason


def test_a_resume_goes_on_with_the_same_id_and_sends_each_round_once(tmp_path):
    first, added = Diary(), Diary()
    follow(tmp_path, {"a": first}, range(6), error=RunInterrupted(2))
    assert first.lines[-1] == ("finish", None, "stopped")
    again = Diary()
    # Back to the checkpoint of round 3; the other one is new, and gets what is on record.
    records = [{"round": number} for number in range(4)]
    follow(tmp_path, {"a": again, "b": added}, range(4, 8), first_round=4, recorded=records)
    assert again.lines == whole((6, 7), "id-1")
    assert added.lines == whole(range(8))
    failed = Diary()
    follow(tmp_path, {"a": failed}, (8,), first_round=8, error=ValueError("a bug"))
    assert failed.lines == [("start", "id-1"), ("round", 8), ("finish", None, "failed")]


def test_a_tracker_that_can_take_rounds_back_is_asked_to(tmp_path):
    follow(tmp_path, {"a": Rewinding()}, range(6))
    again = Rewinding()
    follow(tmp_path, {"a": again}, (4, 5), first_round=4, recorded=[{"round": number} for number in range(4)])
    assert again.lines == [("start", "id-1"), ("go_back", 4), *whole((4, 5))[1:]]


def test_messages_hold_no_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    text = without_secrets("key 0123456789abcdef was refused by https://me:word@host/api")
    assert text == "key ... was refused by https://...@host/api"
    bad = Diary()
    bad.round = lambda record: {}["0123456789abcdef"]
    assert "0123456789abcdef" not in repr(vars(follow(tmp_path, {"bad": bad}, (0,))))


def test_all_trackers_see_the_same_names():
    record = {"round": 3, "global_metric": 0.5, "bytes_up": 7, "server_lr": float("nan"), "epsilon": None}
    assert scalars(record) == {"metric/global_metric": 0.5, "bytes/bytes_up": 7.0}


# -- plug-ins and configs ----------------------------------------------------------------------------------------------

PLUGIN = """
import fedsim
from fedsim.records.trackers.base import Tracker

@fedsim.register("tracker", "broken")
class Broken(Tracker):
    def __getattribute__(self, name):
        if name in ("start", "round", "picture", "artifact", "finish"):
            raise RuntimeError("broken")
        return super().__getattribute__(name)
"""


@pytest.fixture
def loaded(tmp_path):
    (tmp_path / "broken.py").write_text(PLUGIN)
    paths = (tmp_path / "broken.py", ROOT / "examples" / "lines_tracker.py")
    for path in paths:
        plugins.load_plugin(path)
    yield
    for path in paths:
        plugins.unload(path.name)


def test_a_run_with_trackers_of_a_plugin_has_the_bytes_of_one_without_and_goes_on_in_the_same_place(loaded, tmp_path):
    tracking = {"trackers": ["broken", "lines"], "group": "g", "plots": False}
    base = {"name": "run", "executor": "local", "client": {"fuse": 2}}
    tracked, plain = make_tiny(**base, tracking=tracking, params={"lines": {"file": "x"}}), make_tiny(**base)
    assert tracked.identity == plain.identity
    with fedsim.Run(tracked.replace(output=str(tmp_path / "run")), progress=False) as run:
        next(run), next(run)
    summary = fedsim.run(tracked.replace(output=str(tmp_path / "run")), resume=True, progress=False)
    fedsim.run(plain.replace(output=str(tmp_path / "plain")), progress=False)
    prompt = "prompt/global.safetensors"
    assert (tmp_path / "run" / prompt).read_bytes() == (tmp_path / "plain" / prompt).read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "run/x").read_text().splitlines()]
    assert [line[1] for line in lines if line[0] == "round"] == [0, 1, 2, 3]
    assert [line for line in lines if line[0] == "start"] == [["start", 3, "g", None], ["start", 3, "g", "run"]]
    assert [line[-1] for line in lines if line[0] == "finish"] == ["stopped", "finished"]
    assert lines[-1][1] == summary["global_metric"]
    assert ["artifact", "global.safetensors"] in lines
    failed = fedsim.load_run(tmp_path / "run").events("tracker_failed")
    assert [event["tracker"] for event in failed] == ["broken", "broken"]  # once in each process


@pytest.mark.parametrize(
    ("tracking", "expected"),
    [
        ({"wandb": {"projct": "x"}}, r"tracking\.wandb\.projct"),
        ({"mlflow": {"uri": "https://me:word@host"}}, "contains a password"),
        ({"trackers": ["wandb"]}, r"key of its own, tracking\.wandb"),
        ({"trackers": ["nobody"]}, "must be a plug-in's name"),
        ({"flush_seconds": 3}, "has no use"),
    ],
)
def test_mistakes_in_the_section_are_one_sentence(tracking, expected):
    with pytest.raises(ConfigError, match=expected) as error:
        make_tiny(tracking=tracking)
    assert "word@" not in str(error.value)


def test_names_of_trackers_follow_from_the_section():
    assert TrackingConfig().names == ()
    section = TrackingConfig.model_validate({"tensorboard": True, "mlflow": {}})
    assert section.names == ("tensorboard", "mlflow")


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_a_sentence_before_anything_is_written(tmp_path, monkeypatch, name):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    config = make_tiny(output=str(tmp_path / "run"), tracking={name: True if name == "tensorboard" else {}})
    with pytest.raises(ConfigError, match=rf'pip install "fedsim\[{name}\]"'):
        fedsim.run(config, progress=False)
    assert not (tmp_path / "run").exists()


def test_cells_of_a_study_share_a_group(tmp_path):
    from fedsim.study.cells import read_study

    (tmp_path / "base.yaml").write_text("tracking: {tensorboard: true}\n")
    arms = "{a: {}, b: {tracking.group: mine}, c: {tracking.tensorboard: false}}"
    (tmp_path / "study.yaml").write_text(
        f"name: house\nbase: base.yaml\ndatasets: {{d: {{}}}}\nseeds: [1]\narms: {arms}\n"
    )
    cells = read_study(tmp_path / "study.yaml").cells()
    assert {cell.arm: cell.config.tracking.group for cell in cells} == {"a": "house", "b": "mine", "c": None}
