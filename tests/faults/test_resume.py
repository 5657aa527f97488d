"""Real signals to the driver: what is saved, and that a resumed run ends with the same bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from support import ROOT, limit_files, make_tiny, merged, on_line, sweep, tiny_values

import fedsim
from fedsim.core.errors import CheckpointError, ConfigError, ResourceError
from fedsim.records.checkpoint import newest_round
from fedsim.records.run_folder import RunFolder
from fedsim.simulation.interrupt import RunInterrupted

# fuse is given: a trial could settle it differently in two runs, and so change last bits.
CONFIG = {"rounds": 6, "executor": "local", "client": {"fuse": 2}, "tracking": {"plots": False}}


def start(path: Path, output: Path, *arguments: str) -> subprocess.Popen:
    """Start a run in a new session, as in a separate terminal."""
    path.write_text(yaml.safe_dump(tiny_values(CONFIG)))
    command = [sys.executable, "-m", "fedsim", "run", str(path), f"output={output}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        environment.pop(name, None)
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def wait_for_round(process: subprocess.Popen, number: int) -> None:
    for line in process.stdout:
        if line.startswith(f"round {number}/"):
            return
    raise AssertionError(f"round {number} never came: {process.stderr.read()}")


def records(output: Path) -> list[dict]:
    kept = ("round", "global_metric", "global_loss", "train_loss_last", "clients_ok", "bytes_up", "update_norm")
    events = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: event[key] for key in kept} for event in events if event["event"] == "round"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    fedsim.run(make_tiny(**CONFIG, output=str(folder)), progress=False)
    return folder


def assert_same(output: Path, undisturbed: Path) -> None:
    prompt = Path("prompt") / "global.safetensors"
    assert (output / prompt).read_bytes() == (undisturbed / prompt).read_bytes()
    assert records(output) == records(undisturbed)
    ended, expected = (json.loads((folder / "summary.json").read_text()) for folder in (output, undisturbed))
    for key in (
        "global_metric", "best_global_metric", "best_global_round", "personalised_metric", "best_personalised_metric",
        "best_personalised_round", "client_steps", "bytes_up", "bytes_down",
    ):  # fmt: skip
        assert ended[key] == expected[key], key
    # No two runs take as long; what was spent before the end of a process is in the sum all the same.
    seconds = pq.read_table(output / "rounds.parquet")["seconds_longest_client"].to_pylist()
    assert len(seconds) == 7 and ended["seconds_published"] == pytest.approx(sum(seconds[1:]), rel=1e-12)


def test_sigterm_saves_even_between_checkpoints_and_the_run_resumes_to_the_same_bytes(undisturbed, tmp_path, capsys):
    output = tmp_path / "run"
    process = start(tmp_path / "run.yaml", output, "checkpoint.every=100")
    wait_for_round(process, 2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    saved = newest_round(output / "checkpoints")
    assert errors == f"interrupted by SIGTERM: the state after round {saved} is saved; continue with --resume\n"
    assert not (output / "summary.json").exists()
    assert list((output / "checkpoints").glob("*.safetensors"))

    fedsim.run(make_tiny(**CONFIG, output=str(output)), resume=True, progress=False)
    assert "resuming" in capsys.readouterr().out
    assert_same(output, undisturbed)


def test_the_best_rounds_and_the_published_time_are_those_of_the_whole_run(tmp_path):
    """The server takes steps so long that the best round is not the last; it lies before the interrupt."""
    worse = {"server": {"kind": "fedavg", "lr": 100.0}, "evaluation": {"personalised_every": 1}}
    config = merged(CONFIG, worse)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    summary = fedsim.run(make_tiny(**config, output=str(whole)), progress=False)
    rows = pq.read_table(whole / "rounds.parquet").to_pylist()[1:]
    for which in ("global", "personalised"):
        values = [row[f"{which}_metric"] for row in rows]
        assert summary[f"best_{which}_metric"] == max(values)
        assert summary[f"best_{which}_round"] == 1 + values.index(max(values))
        assert summary[f"{which}_metric"] == values[-1]
    assert (
        summary["best_personalised_round"] < 4 and summary["best_personalised_metric"] > summary["personalised_metric"]
    )

    with pytest.raises(RunInterrupted):
        stop = on_line("round 4/6", lambda: signal.raise_signal(signal.SIGTERM))
        fedsim.run(make_tiny(**config, output=str(stopped)), console=stop)
    fedsim.run(make_tiny(**config, output=str(stopped)), resume=True, progress=False)
    assert_same(stopped, whole)


def test_ctrl_c_on_a_ray_of_its_own_saves_and_leaves_no_process_behind(undisturbed, tmp_path):
    output = tmp_path / "run"
    process = start(tmp_path / "run.yaml", output, "executor=ray", "ray.actors=1")
    wait_for_round(process, 2)
    children = psutil.Process(process.pid).children(recursive=True)
    assert sum("ray::ClientActor" in " ".join(child.cmdline()) for child in children) == 1
    os.killpg(process.pid, signal.SIGINT)  # in a terminal it reaches every process of the group
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, errors
    assert "is saved; continue with --resume" in errors
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert not (output / "summary.json").exists()

    fedsim.run(make_tiny(**CONFIG, output=str(output)), resume=True, progress=False)
    assert_same(output, undisturbed)


@pytest.mark.parametrize("number", sweep([1, 4], [1]))
def test_runs_killed_at_random_moments_resume_to_the_same_bytes(number):
    command = [sys.executable, "-m", "benchmarks.kill_points", f"--points={number}", "--json"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    points = json.loads(ended.stdout.splitlines()[-1])
    assert len(points) == number
    assert all(point["same_prompt"] and point["same_records"] for point in points)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_resume_refuses_another_config_and_leaves_a_finished_run_alone(tiny_config, tmp_path, capsys):
    output = str(tmp_path / "run")
    first = fedsim.run(tiny_config(rounds=2, executor="local", output=output), progress=False)
    before = contents(tmp_path)
    for changes, sentence in (
        (
            {"prompt": {"length": 5}},
            r"belongs to another configuration: prompt.length was 4 and is 5; resume with the same",
        ),
        ({"rounds": 1}, "has already done 2 rounds, more than rounds=1; set rounds=2 or more"),
    ):
        console = on_line("phase", lambda: None)
        with pytest.raises(CheckpointError, match=sentence):
            config = tiny_config(**merged({"rounds": 2, "executor": "local", "output": output}, changes))
            fedsim.run(config, resume=True, console=console)
        assert console.file.getvalue() == ""  # nothing has been prepared
        assert contents(tmp_path) == before
    again = fedsim.run(tiny_config(rounds=2, executor="local", output=output), resume=True, progress=False)
    assert again["global_metric"] == first["global_metric"]
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="already holds a run"):
        fedsim.run(tiny_config(rounds=2, executor="local", output=output), progress=False)


def test_a_finished_run_can_be_carried_on_with_more_rounds(tmp_path):
    short, long = tmp_path / "short", tmp_path / "long"
    fedsim.run(make_tiny(**CONFIG | {"rounds": 2}, output=str(short)), progress=False)
    carried = fedsim.run(make_tiny(**CONFIG | {"rounds": 4}, output=str(short)), resume=True, progress=False)
    straight = fedsim.run(make_tiny(**CONFIG | {"rounds": 4}, output=str(long)), progress=False)
    prompt = Path("prompt") / "global.safetensors"
    assert (short / prompt).read_bytes() == (long / prompt).read_bytes()
    assert carried["client_updates"] == straight["client_updates"] == 20


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_in_use_is_noticed_before_anything_is_prepared(tmp_path, resume):
    output = tmp_path / "run"
    with RunFolder.create(output) as folder:
        if resume:
            folder.event("layers", layers=[0])
        console = on_line("phase", lambda: None)
        with pytest.raises(ConfigError, match="is in use by a run that is still running"):
            fedsim.run(make_tiny(**CONFIG, output=str(output)), resume=resume, console=console)
    assert "phase" not in console.file.getvalue()


@pytest.mark.parametrize(
    ("line", "overlap", "saved", "kept"),
    [
        ("phase  tokenising", True, None, "no round has been saved; start it again"),
        ("phase  starting workers", True, None, "no round has been saved; start it again"),
        ("start ", False, None, "no round has been saved; start over with --resume"),
        ("start ", True, 1, "the state after round 1 is saved; continue with --resume"),  # told as round 1 trains
        ("round 2/6", True, 3, "the state after round 3 is saved; continue with --resume"),  # told as round 3 trains
    ],
)
def test_an_interrupted_run_says_what_is_saved_and_its_advice_holds(tmp_path, line, overlap, saved, kept):
    changes = {"checkpoint": {"every": 100}, "evaluation": {"overlap": overlap}}
    config = make_tiny(**CONFIG, output=str(tmp_path / "run"), **changes)
    with pytest.raises(RunInterrupted) as interrupted:
        fedsim.run(config, console=on_line(line, lambda: signal.raise_signal(signal.SIGTERM)))
    assert interrupted.value.kept == kept
    assert newest_round(tmp_path / "run" / "checkpoints") == saved
    with pytest.raises(RunInterrupted):  # the way that it names is open
        stop = on_line("round 5/6", lambda: signal.raise_signal(signal.SIGTERM))
        fedsim.run(config, resume="--resume" in kept, console=stop)


def test_a_full_disk_in_a_round_is_a_sentence_and_costs_that_round_only(undisturbed, tmp_path):
    output = tmp_path / "run"
    config = make_tiny(**CONFIG, output=str(output))
    console = on_line("round 3/6", lambda: limit_files(3000))  # the tables are larger
    try:
        with pytest.raises(ResourceError, match=r"rounds\.parquet cannot be written: File too large; fix this, then"):
            fedsim.run(config, console=console)
    finally:
        limit_files(-1)
    assert "the state after round 3 cannot be saved" in console.file.getvalue()
    assert "; the last one saved is that after round 2\n" in console.file.getvalue()
    fedsim.run(config, resume=True, progress=False)
    assert_same(output, undisturbed)


def test_a_run_whose_folder_is_removed_ends_with_a_sentence(tmp_path):
    output = tmp_path / "run"
    console = on_line("round 2/6", lambda: shutil.rmtree(output))
    with pytest.raises(ResourceError, match=r"run/rounds\.parquet cannot be written: No such file or directory"):
        fedsim.run(make_tiny(**CONFIG, output=str(output)), console=console)
    assert "the state after round 2 cannot be saved" in console.file.getvalue()
    assert "; no earlier state is saved\n" in console.file.getvalue()
    assert not output.exists()


@pytest.mark.parametrize(
    ("break_it", "warning"),
    [
        (lambda plots: plots.touch(), "warning: there are no pictures: PATH/plots cannot be made: File exists\n"),
        (
            lambda plots: (plots / "loss.png").mkdir(parents=True),
            "warning: the picture loss.png is left out: the picture PATH/plots/loss.png cannot be written: Is a directory\n",
        ),
    ],
)
def test_pictures_that_cannot_be_written_cost_a_warning_and_no_run(tmp_path, break_it, warning):
    output = tmp_path / "run"
    config = make_tiny(**merged(CONFIG, {"rounds": 1, "tracking": {"plots": True}}), output=str(output))
    console = on_line("round 1/1", lambda: break_it(output / "plots"))
    summary = fedsim.run(config, console=console)
    shown = console.file.getvalue()
    assert warning.replace("PATH", str(output)) in shown and shown.count("warning: ") == 1
    assert json.loads((output / "summary.json").read_text())["rounds"] == summary["rounds"] == 1
    assert fedsim.run(config, resume=True, progress=False)["rounds"] == 1  # finished: there is nothing to do again
