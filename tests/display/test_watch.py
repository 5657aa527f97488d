"""``fedsim watch``: what it reads of a log that grows, is cut back or dies, and how it shows runs and studies."""

import io
import json
import re

import pytest
from rich.cells import cell_len
from rich.console import Console
from support import ROOT
from terminals import on_a_terminal, plain_lines

from fedsim.core.errors import ConfigError
from fedsim.display.watch.command import open_watched, watch, why_failed
from fedsim.display.watch.run_state import RunState
from fedsim.display.watch.watched_run import WatchedRun
from fedsim.records.following import FollowedLog, LocalSource, is_held, source_of
from fedsim.records.run_folder import RunFolder
from fedsim.study.cells import read_study
from fedsim.study.folder import subject, write_json

ROUND = {"clients_ok": 5, "clients_failed": 0, "bytes_down": 100, "bytes_up": 300, "seconds_round": 2.0}


class Counting(LocalSource):
    """A folder that counts the bytes that are read of it."""

    taken = 0

    def read(self, name, start, most):
        part = super().read(name, start, most)
        self.taken += len(part or b"")
        return part


def begun(path, rounds=10):
    """Return the open folder of a run that has begun."""
    folder = RunFolder.create(path)
    folder.write_config(f"name: mine\nrounds: {rounds}\ndata: {{task: reviews}}\n")
    folder.event("layers", layers=[1, 3], num_layers=4)
    folder.event("start", round=0, global_metric=0.5)
    return folder


def train(folder, *numbers):
    for number in numbers:
        folder.event("round", round=number, global_metric=0.5 + number / 100, train_loss_last=1 / number, **ROUND)


def shown(place, width=80, **options):
    """Return what is found, and the lines that a pipe gets."""
    console = Console(file=io.StringIO(), width=width)
    found = watch(str(place), console, wait=lambda seconds: None, **options)
    return found, console.file.getvalue().splitlines()


# -- the log -----------------------------------------------------------------------------------------------------------


def test_a_look_reads_what_is_new_and_no_more(tmp_path):
    with begun(tmp_path / "run") as folder:
        source = Counting(tmp_path / "run")
        log = FollowedLog(source)
        train(folder, *range(1, 200))
        assert len(log.look().events) == 202
        source.taken = 0
        assert log.look().events == [] and source.taken <= 256
        train(folder, 200)
        assert [event["round"] for event in log.look().events] == [200]
        assert source.taken < 3 * 256 + 500


def test_half_a_line_waits_for_its_end(tmp_path):
    file = tmp_path / "metrics.jsonl"
    log = FollowedLog(LocalSource(tmp_path))
    assert log.look().events == []
    whole = json.dumps({"event": "note", "text": "ein Zeilenende\u2028, é"}, ensure_ascii=False).encode() + b"\n"
    for cut in range(len(whole)):
        file.write_bytes(whole + whole[:cut])
        assert len(log.look().events) == (1 if cut == 0 else 0)
    file.write_bytes(2 * whole)
    assert len(log.look().events) == 1


def test_a_log_that_was_cut_back_is_read_anew_even_if_it_is_longer_since(tmp_path):
    with begun(tmp_path / "run") as folder:
        train(folder, 1, 2, 3)
        watched = WatchedRun(tmp_path / "run")
        assert watched.look().last_round == 3
        folder.truncate(2)
        folder.event("recovered", round=1, reason="a node is gone")
        assert watched.look().last_round == 1 and watched.went_back
        assert "went back to the state after round 1: a node is gone" in watched.run.told[-1]
        folder.truncate(2)
        train(folder, 2, 3, 4, 5)
        assert watched.look().last_round == 5 and [each["round"] for each in watched.run.rounds] == [1, 2, 3, 4, 5]
        assert watched.run.total("bytes_up") == 5 * 300


def test_a_url_is_read_in_parts_too(tmp_path):
    import fsspec

    with begun(tmp_path / "run") as folder:
        train(folder, 1, 2)
        files = fsspec.filesystem("memory")
        files.put(str(tmp_path / "run"), "/watched", recursive=True)
        watched = open_watched("memory://watched")
        assert watched.look().last_round == 2 and watched.run.total_rounds == 10
        train(folder, 3)
        files.put(str(folder.metrics), "/watched/metrics.jsonl")
        assert watched.look().last_round == 3 and not watched.went_back
    found, _ = shown("memory://watched", once=True)
    assert (found["state"], found["rounds"], found["rounds_total"]) == ("running", 3, 10)
    assert source_of("memory://watched").read("none.json", 0, 10) is None


# -- what is known -----------------------------------------------------------------------------------------------------


def test_a_run_goes_on_ends_and_is_taken_up_again(tmp_path):
    with begun(tmp_path / "run", rounds=3) as folder:
        train(folder, 1, 2)
        watched = WatchedRun(tmp_path / "run")
        assert (watched.look().state, watched.run.name, watched.run.metric_name) == ("running", "mine", "accuracy")
        folder.event("stopped", reason="RunInterrupted", message="SIGINT")
        assert (watched.look().state, watched.run.ended) == ("interrupted", "interrupted: SIGINT")
        folder.event("resumed", round=2)
        assert (watched.look().state, watched.run.ended) == ("running", None)
        train(folder, 3)
        folder.event("stop", round=3, rule="patience", reason="no better for 2 rounds")
        folder.event("end", round=3, global_metric=0.53)
        assert (watched.look().state, watched.run.ended) == (
            "finished",
            "finished after round 3: no better for 2 rounds",
        )
        folder.event("stopped", reason="ClientError", message="client 3 failed")
        assert watched.look().state == "failed"


def test_the_time_left_is_that_of_the_last_rounds():
    state = RunState(total_rounds=10)
    events = [{"event": "start", "seconds": 5.0, "round": 0}]
    events += [{"event": "round", "round": n, "seconds": 5.0 + 3 * n, **ROUND} for n in range(1, 5)]
    state.add(events)
    assert (state.seconds_per_round, state.seconds_left) == (3.0, 18.0)
    assert RunState().seconds_left is None


def test_a_run_that_died_is_silent_and_one_that_is_written_to_is_not(tmp_path):
    with begun(tmp_path / "run") as folder:
        train(folder, 1)
        if is_held(folder.metrics) is None:
            pytest.skip("this system does not list its locks")
        found, _ = shown(tmp_path / "run", once=True)
        assert found["state"] == "running" and not why_failed(found)
    found, lines = shown(tmp_path / "run")
    assert found["state"] == "silent" and why_failed(found)
    assert "it has not ended, but nothing has been written since 20" in lines[-1]


def test_what_is_watched_must_be_a_run_or_a_study(tmp_path):
    for place, words in ((tmp_path, "neither a run nor a study is in"), (tmp_path / "none", "there is no folder")):
        with pytest.raises(ConfigError, match=words):
            open_watched(str(place))


# -- how it is shown ---------------------------------------------------------------------------------------------------


def test_a_pipe_gets_each_round_once_and_the_end(tmp_path):
    with begun(tmp_path / "run", rounds=12) as folder:
        train(folder, *range(1, 11))
        steps = iter(range(11, 13))

        def wait(seconds):
            if (number := next(steps, None)) is None:
                folder.event("end", round=12, global_metric=0.62)
            else:
                train(folder, number)

        console = Console(file=io.StringIO(), width=80)
        found = watch(str(tmp_path / "run"), console, wait=wait)
    lines = console.file.getvalue().splitlines()
    rounds = [int(line.split()[1].partition("/")[0]) for line in lines if line.startswith("round ")]
    assert rounds == [*range(3, 11), 11, 12] and found["rounds"] == 12
    assert lines[-1].startswith("state  finished  round 12/12  after round 12")


def test_ctrl_c_ends_the_look_and_not_the_run(tmp_path):
    def pressed(seconds):
        raise KeyboardInterrupt

    with begun(tmp_path / "run"):
        console = Console(file=io.StringIO(), width=80)
        assert watch(str(tmp_path / "run"), console, wait=pressed)["state"] == "running"
    assert "the run goes on by itself" in console.file.getvalue()


def test_a_study_shows_what_is_done_what_goes_on_and_what_has_failed(tmp_path):
    base = ROOT / "configs" / "quickstart.yaml"
    (tmp_path / "study.yaml").write_text(f"name: both\nbase: {base}\narms: {{a: null, b: {{rounds: 7}}}}\nseeds: 2\n")
    path = tmp_path / "out"
    path.mkdir()
    write_json(path / "study.json", subject(read_study(tmp_path / "study.yaml")))
    (path / "cells/base/a/seed-0").mkdir(parents=True)
    (path / "cells/base/a/seed-0/summary.json").write_text("{}")
    write_json(path / "failures.json", [{"dataset": "base", "arm": "a", "seed": 1, "reason": "too few clients"}])
    (path / "cells/base/b").mkdir(parents=True)
    with begun(path / "cells/base/b/seed-0", rounds=7) as folder:
        train(folder, 1, 2)
        found, lines = shown(path, once=True)
        drawn = Console(file=io.StringIO(), width=80)
        drawn.print(open_looked(path).picture(80))
    assert (found["cells"], found["finished"], found["failed"]) == (4, 1, 1)
    assert found["running"] == [{"cell": "base, b, seed 0", "rounds": 2, "rounds_total": 7, "metric": 0.52}]
    assert lines[1] == "run    base, b, seed 0  round 2/7  metric 0.5200"
    assert "failed: base, a, seed 1" in drawn.file.getvalue()


def open_looked(path):
    watched = open_watched(str(path))
    watched.look()
    return watched


@pytest.mark.parametrize("columns", [80, pytest.param(200, marks=pytest.mark.wide)])
def test_a_real_terminal_gets_a_picture_that_fits(tmp_path, columns):
    with begun(tmp_path / "run", rounds=60) as folder:
        train(folder, *range(1, 61))
        folder.event("client_failure", round=60, client=3, message="no memory left on the device, " * 10)
        folder.event("end", round=60, global_metric=1.1)
    status, output = on_a_terminal(columns, "-m", "fedsim", "watch", str(tmp_path / "run"))
    lines = plain_lines(output)
    assert status == 0 and "\x1b[" in output
    assert max(map(cell_len, lines)) <= columns
    assert any("finished" in line and "mine" in line for line in lines)
    assert any("client 3 failed in round 60" in line for line in lines)
    assert any(re.search("[▁▂▃▄▅▆▇█]{20}", line) for line in lines)


def test_a_notebook_gets_one_block_that_is_replaced(tmp_path, monkeypatch):
    class Page:
        blocks = []  # noqa: RUF012

        def update(self, block):
            self.blocks.append(block)

    def display(block):
        Page().update(block)
        return Page()

    monkeypatch.setattr("fedsim.display.watch.command.notebook_display", lambda: display)
    with begun(tmp_path / "run") as folder:
        train(folder, 1, 2)
        folder.event("end", round=2, global_metric=0.52)
    _, lines = shown(tmp_path / "run")
    assert not lines and "0.5200" in Page.blocks[-1].html and "finished" in Page.blocks[-1].text
