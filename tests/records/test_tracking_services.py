"""W&B (offline), MLflow (a folder) and TensorBoard, for real: what a run sends is read back by each library or its format."""

import json
import math
import os
import pty
import struct
import subprocess
import sys

import pytest
from byte_guard.models import save_model
from support import ROOT, make_tiny, sweep

import fedsim
from fedsim.records.trackers.base import TrackedRun
from fedsim.records.trackers.config import MlflowConfig
from fedsim.records.trackers.tensorboard_tracker import TensorBoardTracker

METRIC = "metric/global_metric"
SECRETS = {"WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567", "MLFLOW_TRACKING_PASSWORD": "a-word-to-be-kept"}


@pytest.fixture
def quiet(tmp_path, monkeypatch):
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def wandb_records(folder):
    """Yield the records of all offline runs in a run folder, oldest file first: LevelDB's log format, protobuf within."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, at, whole = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if (left := 32768 - at % 32768) < 7:
                at += left
                continue
            _, length, kind = struct.unpack_from("<IHB", data, at)
            whole += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last part
                record = Record()
                record.ParseFromString(whole)
                yield record
                whole = b""


def steps_of(records):
    steps = []
    for record in records:
        items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        if METRIC in items:
            steps.append(int(json.loads(items["_step"])))
    return steps


def test_a_run_that_is_left_and_resumed_is_one_run_everywhere_with_each_round_once(tmp_path, quiet):
    pytest.importorskip("wandb", reason="pip install fedsim[wandb]")
    pytest.importorskip("mlflow", reason="pip install fedsim[mlflow]")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from mlflow import MlflowClient

    folder, store = tmp_path / "run", tmp_path / "store"
    tracking = {
        "plots": True,
        "tensorboard": True,
        "wandb": {"mode": "offline"},
        "mlflow": {"uri": str(store)},
        "group": "g",
    }
    config = make_tiny(name="tracked", executor="local", client={"fuse": 2}, tracking=tracking, output=str(folder))
    with fedsim.Run(config, progress=False) as run:
        next(run), next(run)
    ids = {name: each["id"] for name, each in json.loads((folder / "trackers.json").read_text()).items()}
    client = MlflowClient(tracking_uri=store.as_uri())
    assert client.get_run(ids["mlflow"]).info.status == "KILLED"
    summary = fedsim.run(config, resume=True, progress=False)
    assert {name: each["id"] for name, each in json.loads((folder / "trackers.json").read_text()).items()} == ids
    assert not fedsim.load_run(folder).events("tracker_failed")
    values = {row["round"]: row["global_metric"] for row in fedsim.load_run(folder).rounds.to_pylist()}

    # MLflow
    (found,) = client.search_runs([client.get_experiment_by_name("fedsim").experiment_id])
    assert found.info.run_id == ids["mlflow"] and found.info.status == "FINISHED"
    history = [(metric.step, metric.value) for metric in client.get_metric_history(ids["mlflow"], METRIC)]
    assert history == sorted(values.items())
    assert found.data.params["client.optimizer.lr"] == str(config.client.optimizer.lr)
    assert found.data.metrics["summary/best_global_metric"] == summary["best_global_metric"]
    tags = found.data.tags
    assert tags["fedsim.group"] == "g" and tags["fedsim.config_hash"] == summary["config_hash"]
    assert tags["fedsim.status"] == "finished"
    names = {item.path for place in ("", "plots", "prompt") for item in client.list_artifacts(ids["mlflow"], place)}
    assert {"config.yaml", "summary.json", "plots/metric.png", "prompt/global.safetensors"} <= names

    # Weights & Biases
    records = list(wandb_records(folder))
    assert steps_of(records) == [0, 1, 2, 3]
    assert {record.run.run_id for record in records if record.run.run_id} == {ids["wandb"]}
    assert {record.run.run_group for record in records if record.run.run_id} == {"g"}
    assert any(record.artifact.type == "prompt" for record in records)
    said = {
        "/".join(item.nested_key) or item.key: item.value_json for record in records for item in record.summary.update
    }
    assert json.loads(said["summary/best_global_metric"]) == summary["best_global_metric"]
    assert json.loads(said["status"]) == "finished"
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [255, 0]

    # TensorBoard
    events = reader.EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert [point.step for point in events.Scalars(METRIC)] == [0, 1, 2, 3]
    assert "metric" in events.Tags()["images"]

    held = [path for place in (folder, store) for path in place.rglob("*") if path.is_file()]
    assert len(held) > 50
    for secret in SECRETS.values():
        assert not [path for path in held if secret.encode() in path.read_bytes()]


WRITES = {"every": 2, "examples": 4, "at_start": True, "max_new_tokens": 4}
FIGURES = ("generated_exact_match", "generated_f1")


def told_by_mlflow(folder, name):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(folder.parent / "store").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("fedsim").experiment_id])
    history = client.get_metric_history(found.info.run_id, name)
    return [(metric.step, metric.value) for metric in history], found.data.metrics


def told_by_wandb(folder, name):
    history, said = [], {}
    for record in wandb_records(folder):
        items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        history += [(int(items["_step"]), items[name])] if name in items else []
        said |= {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.summary.update}
    return history, said


def told_by_tensorboard(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points = EventAccumulator(str(folder / "tensorboard")).Reload().Scalars(name)
    return [(point.step, point.value) for point in points], None


SERVICES = {
    "tensorboard": (told_by_tensorboard, True),
    "mlflow": (told_by_mlflow, None),
    "wandb": (told_by_wandb, {"mode": "offline"}),
}


@pytest.mark.parametrize("service", sweep(SERVICES, ["tensorboard"]))
def test_metrics_of_what_was_written_arrive_in_the_rounds_that_write(tmp_path, quiet, service):
    """And in no other round; of the end also those in the summary, where a service takes one."""
    pytest.importorskip(service, reason=f"pip install fedsim[{service}]")
    folder, (told, section) = tmp_path / "run", SERVICES[service]
    section = section or {"uri": str(tmp_path / "store")}
    summary = fedsim.run(
        make_tiny(
            executor="local",
            output=str(folder),
            model={"path": save_model("llama", tmp_path / "model"), "head": {"kind": "generation"}},
            data={"task": "questions"},
            client={"fuse": 2, "optimizer": {"lr": 0.05}},
            evaluation={"generate": WRITES},
            tracking={"plots": False, service: section},
        ),
        progress=False,
    )
    run = fedsim.load_run(folder)
    assert not run.events("tracker_failed")
    for name in FIGURES:
        expected = [(row["round"], row[name]) for row in run.rounds.to_pylist() if row[name] is not None]
        history, said = told(folder, f"generated/{name}")
        assert [step for step, _ in history] == [step for step, _ in expected] == [0, 2, 3]
        assert [value for _, value in history] == pytest.approx([value for _, value in expected])
        if said is not None:
            assert said[f"summary/generated.{name.removeprefix('generated_')}"] == expected[-1][1]
    assert summary["generated"]["f1"] == expected[-1][1]


def test_mlflow_gets_no_step_twice_whatever_was_noted(tmp_path, quiet):
    """A process can die between a round's arrival and the note of it."""
    pytest.importorskip("mlflow", reason="pip install fedsim[mlflow]")
    from fedsim.records.trackers.mlflow_tracker import MlflowTracker

    section = MlflowConfig(uri=str(tmp_path / "store"), experiment="one")
    run, known = TrackedRun("run", tmp_path, None, {}), None
    for rounds in ((1, 2, 3), (2, 3, 4)):
        tracker = MlflowTracker(section)
        known = tracker.start(run, {"rounds": len(rounds)}, known)
        for number in rounds:
            tracker.round({"round": number, "global_metric": 0.5, "train_loss_last": None if number == 2 else 1.0})
    history = tracker._client.get_metric_history(known, METRIC)
    assert [metric.step for metric in history] == [1, 2, 3, 4]


def test_tensorboard_hides_what_is_taken_back(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for resumed, rounds in ((None, (1, 2, 3)), ("run", (3,))):
        board = TensorBoardTracker()
        board.start(TrackedRun("run", tmp_path, None, {}), {"rounds": 3}, resumed)
        if resumed:
            board.go_back(3)
        for number in rounds:
            missing = {"personalised_metric": None, "server_lr": math.nan}
            board.round({"round": number, "global_metric": len(rounds) * number / 10, "bytes_up": 5, **missing})
        board.finish({}, "stopped")
    events = reader.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {METRIC, "bytes/bytes_up"}
    points = [(point.step, round(point.value, 4)) for point in events.Scalars(METRIC)]
    assert points == [(1, 0.3), (2, 0.6), (3, 0.3)]


def test_a_run_goes_on_without_services_that_cannot_be_written_to(tmp_path, quiet):
    pytest.importorskip("mlflow", reason="pip install fedsim[mlflow]")
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("no folder")
    tracking = {"tensorboard": True, "mlflow": {"uri": str(tmp_path / "file" / "store")}, "plots": False}
    config = make_tiny(executor="local", rounds=1, client={"fuse": 2}, tracking=tracking, output=str(tmp_path / "run"))
    with fedsim.Run(config, progress=False) as run:
        (tmp_path / "run" / "tensorboard").write_text("in the way")
        summary = run.finish()
    assert summary["rounds"] == 1
    failed = {event["tracker"]: event["reason"] for event in fedsim.load_run(tmp_path / "run").events("tracker_failed")}
    assert set(failed) == {"tensorboard", "mlflow"}, failed


NO_KEY = """
from pathlib import Path
from fedsim.records.trackers.base import TrackedRun
from fedsim.records.trackers.config import WandbConfig
from fedsim.records.trackers.wandb_tracker import WandbTracker
try:
    WandbTracker(WandbConfig(mode="online"), 1.0).start(TrackedRun("run", Path("."), None, {}), {}, None)
except Exception as error:
    print(error)
"""


def test_wandb_without_a_key_does_not_ask_for_one_in_the_terminal(tmp_path):
    """In a process of its own: wandb reads its settings once."""
    pytest.importorskip("wandb", reason="pip install fedsim[wandb]")
    ours, theirs = pty.openpty()
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    env |= {"HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_ERROR_REPORTING": "false"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    words = [sys.executable, "-c", NO_KEY]
    try:
        done = subprocess.run(
            words, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, env=env, cwd=tmp_path, timeout=120
        )
    finally:
        os.close(ours), os.close(theirs)
    assert b"wandb login" in done.stdout
