"""Runs with a cache: the same bits as without one, whether it is empty, warm or damaged."""

import pytest
from kept_runs import ALL, results
from support import UPPER, make_tiny

import fedsim
from fedsim.kept.store import KINDS, entries


class Runs:
    """Does runs of one config and holds their notes."""

    def __init__(self, folder):
        self.folder, self.cache, self.number = folder, folder / "cache", 0

    def __call__(self, **changes):
        self.number += 1
        path = self.folder / str(self.number)
        config = make_tiny(
            **{"output": str(path), "executor": "local", "rounds": 2, "cache": {"folder": str(self.cache)}, **changes}
        )
        return path, fedsim.run(config, progress=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def first(runs):
    return runs()


def test_a_second_run_takes_everything_and_ends_with_the_same_bits(runs, first):
    path, summary = first
    assert summary["cache"] == {"taken": {}, "written": ALL}
    again, found = runs()
    assert found["cache"] == {"taken": ALL, "written": {}}
    assert results(again) == results(path)
    assert found["contents"] == summary["contents"] and found["fuse"] == summary["fuse"]


def test_frozen_layers_that_the_start_did_not_cache_change_nothing(runs):
    """With an evaluation that was kept, round 1 is the first to compute the hidden states below the prompts."""
    (cold, wrote), (warm, took) = (runs(**UPPER, evaluation={"batch_size": 20}) for _ in range(2))
    assert (wrote["cache"]["written"]["start"], took["cache"]["taken"]["start"]) == (1, 1)
    assert took["trunk_cache"] is not None and results(warm) == results(cold)


def test_without_a_cache_the_bits_are_the_same_and_nothing_is_written(runs, first):
    path, summary = first
    before = {entry.path.name for entry in entries(runs.cache)}
    fuse = summary["fuse"] if summary["fuse"] > 1 else "off"
    plain, found = runs(cache={"enabled": False}, client={"fuse": fuse})
    assert found["cache"] is None and results(plain) == results(path)
    assert {entry.path.name for entry in entries(runs.cache)} == before


def test_a_resumed_run_has_the_identity_of_one_without_a_cache(runs, first):
    config = make_tiny(cache={"folder": str(runs.cache), "max_gigabytes": 2})
    assert config.identity == make_tiny(cache={"enabled": False}).identity == make_tiny().identity


def test_damaged_entries_are_computed_again_with_one_note_each(runs, first, capsys):
    path, _ = first
    # Without the trial's answer another number of clients could share passes.
    damaged = [entry for entry in entries(runs.cache) if entry.kind != "fuse"]
    for number, entry in enumerate(damaged):
        content = entry.path.read_bytes()
        entry.path.write_bytes(content[: len(content) // 2] if number % 2 else content[:-1] + b"?")
    capsys.readouterr()
    again, summary = runs()
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cache:")]
    assert len(notes) == 4 and all("made again" in note for note in notes)
    assert summary["cache"] == {"taken": {"fuse": 1}, "written": {"tokens": 2, "scores": 1, "start": 1}}
    assert results(again) == results(path)
    assert runs()[1]["cache"] == {"taken": ALL, "written": {}}


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({"client": {"optimizer": {"lr": 0.01}}, "rounds": 1}, ALL),
        ({"server": {"kind": "fedavg"}}, {"tokens": 2, "scores": 1, "start": 1}),
        ({"seed": 1}, {"fuse": 0, "tokens": 0, "scores": 0, "start": 0}),
        ({"prompt": {"length": 5}}, {"tokens": 2}),
        ({"layers": {"score_batch_size": 4}}, {"tokens": 2}),
        ({"evaluation": {"batch_size": 16}}, {"tokens": 2, "scores": 1, "fuse": 1}),
        ({"data": {"validation_examples": 50}}, {"tokens": 1, "scores": 1, "fuse": 1}),
    ],
)
def test_a_run_takes_what_its_changes_do_not_touch(runs, first, change, taken):
    changed = runs(**change)[1]["cache"]["taken"]
    expected = {kind: taken.get(kind, 0) for kind in KINDS}
    others = {kind for kind in ("start", "fuse") if kind not in taken}  # the same layers may be chosen after all
    assert {kind: changed.get(kind, 0) for kind in KINDS if kind not in others} == {
        kind: number for kind, number in expected.items() if kind not in others
    }


def test_a_folder_that_cannot_be_used_costs_a_note_and_no_bits(runs, first, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    capsys.readouterr()
    again, summary = runs(cache={"folder": str(tmp_path / "file" / "cache")}, client={"fuse": first[1]["fuse"]})
    out = capsys.readouterr().out
    assert out.count("cache:") == 1 and results(again) == results(first[0])
    assert summary["cache"] == {"taken": {}, "written": {}}
