"""``ray job submit`` on a real head: what a user types, what the log says, what the exit status is, where results go."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from contextlib import ExitStack

import pyarrow.parquet as pq
import pytest
import yaml
from house_run import HOUSE, house_values
from ray_heads import ray_head
from support import ROOT, sweep, tiny_values

import fedsim
from fedsim.configuration.schema import read_config
from fedsim.core.errors import ResourceError
from fedsim.core.plugins import load_plugin, unload
from fedsim.executors.cluster.connect import _check_reachable
from fedsim.planning.memory import estimate_memory
from fedsim.planning.model_shape import model_shape
from fedsim.prompts.prompt_file import GLOBAL_PROMPT

CONFIG = "configs/cluster/quickstart.yaml"
TINY = [
    "rounds=2",
    "data.train_examples=240",
    "data.validation_examples=60",
    "partition.clients=12",
    "sampling.clients_per_round=4",
    "client.epochs=1",
    "client.fuse=2",  # a trial on a busy machine might say otherwise, and so change last bits
    "tracking.plots=false",
]


@pytest.fixture(scope="module")
def head():
    with ray_head(num_cpus=2) as started:
        yield started


def submit(head, folder, *arguments, config=CONFIG, name=None):
    """Submit a job with this checkout as its working directory."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", head.dashboard]
    command += [] if name is None else ["--submission-id", name]
    command += ["--working-dir", str(ROOT), "--", "python", "-m", "fedsim", "run", str(config), *arguments]
    return subprocess.Popen(
        command, env=head.environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def look(head, folder, command, *arguments, **changes):
    """Run ``fedsim plan`` or ``fedsim doctor`` on the head's cluster."""
    program = [
        sys.executable,
        "-m",
        "fedsim",
        command,
        str(ROOT / CONFIG),
        *TINY,
        f"ray.address={head.gcs}",
        *arguments,
    ]
    environment = {**head.environment, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **changes}
    return subprocess.Popen(
        program, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """Load a plug-in and return a config of a run that needs it on two actors."""
    folder = tmp_path_factory.mktemp("house")
    path = folder / "house.yaml"
    values = {**house_values(folder / "files"), "group_size": 3, "name": "house"}
    values["ray"] = {"address": "auto", "actors": 2, "num_cpus_per_actor": 0.5}
    path.write_text(yaml.safe_dump(tiny_values(values)))
    plugin = load_plugin(HOUSE)
    yield path, plugin
    unload(HOUSE.name)


def test_a_job_shows_progress_and_writes_what_a_local_run_does_and_a_mistake_fails_with_its_sentence(
    head, house, tmp_path
):
    """The job's plug-in goes to the actors as source."""
    path, plugin = house
    job = submit(head, tmp_path, "--load", str(HOUSE), f"output={tmp_path / 'job'}", config=path, name="house-job")
    mistaken = submit(head, tmp_path, *TINY, "sampling.clients_per_round=13", f"output={tmp_path / 'mistake'}")
    # It takes Ray 20 seconds to give up: beside the jobs they cost nothing.
    stranger = look(head, tmp_path, "doctor", RAY_AUTH_TOKEN="0" * 64)
    fedsim.run(path, ["executor=local", f"output={tmp_path / 'local'}"], progress=False)

    shown = watched(head, job, "house")
    log, _ = job.communicate(timeout=200)
    assert job.returncode == 0, log
    assert re.findall(r"^round (\d)/2 .* ok +5 +failed 0 ", log, re.MULTILINE) == ["1", "2"]
    assert "succeeded" in log and "0 failed" in log
    own = head.ask("/api/jobs/house-job/logs")["logs"]  # what `ray job submit` says around it is in colour
    assert re.findall(r"[\x00-\x08\x0b-\x1f\x7f]", own) == []
    prompts = [tmp_path / name / "prompt" / GLOBAL_PROMPT for name in ("job", "local")]
    assert prompts[0].read_bytes() == prompts[1].read_bytes()
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("job", "local")]
    assert [each["plugins"] for each in summaries] == 2 * [{HOUSE.name: plugin.sha256}]

    found = summaries[0]["ray"]
    assert found["submission_id"] == "house-job" and found["namespace"] == f"fedsim/house/{found['run_id']}"
    assert [each.rpartition(":")[2] for each in found["metrics"]] == [head.metrics.rpartition(":")[2]]
    assert summaries[1]["ray"] is None and summaries[0]["config_hash"] == summaries[1]["config_hash"]
    (listed,) = [each for each in head.ask("/api/jobs/") if each["submission_id"] == "house-job"]
    assert listed["job_id"] == found["job_id"]
    assert actors_of(head, found["job_id"]) == {
        "fedsim/house/server": "fedsim/house/server",
        **{f"fedsim/house/client-{slot}": f"fedsim/house/client-{slot}: model, 0.5 CPU" for slot in range(2)},
    }
    assert_shown(shown, pq.read_table(tmp_path / "job" / "rounds.parquet").to_pylist())

    # What `fedsim plan` expects of an actor is what it took: the weights, which are shared, count as resident in each.
    config = read_config(path)
    memory = estimate_memory(config, model_shape(config.model), 120, 2)
    peaks = summaries[0]["peak_memory_bytes"]["workers"]
    assert len(peaks) == 2
    assert all(0.6 < peak / (memory.actor + memory.weights) < 1.6 for peak in peaks)

    log, _ = mistaken.communicate(timeout=200)
    assert mistaken.returncode != 0, log
    sentence = (
        "sampling.clients_per_round=13 is more than partition.clients=12; set sampling.clients_per_round=12 or less"
    )
    assert re.search(rf"^error: .*{re.escape(sentence)}$", log, re.MULTILINE), log
    assert "Traceback" not in log
    assert not (tmp_path / "mistake").exists()

    found, errors = stranger.communicate(timeout=200)
    assert (stranger.returncode, errors) == (1, "")
    assert re.search(
        r"^problem cluster: .*asks for a token, and RAY_AUTH_TOKEN is not the cluster's; set", found, re.M
    ), found


def watched(head, job, run):
    """Return the last value of each metric of a run until its job has ended and said it all."""
    shown, ended = {}, False
    deadline = time.monotonic() + 200
    while not ended and time.monotonic() < deadline:
        ended = job.poll() is not None
        shown |= head.metrics_of(run)
        time.sleep(0.2)
    return shown


def actors_of(head, job_id):
    """Return what the actors of a job say that they are, by name."""
    actors = head.ask("/api/v0/actors?detail=1")["data"]["result"]["result"]
    return {each["name"]: each["repr_name"] for each in actors if each["job_id"] == job_id}


def assert_shown(shown, rounds):
    """The metrics of a run that is over are those of its records."""
    last, rounds = rounds[-1], [each for each in rounds if each["round"]]
    assert shown["ray_fedsim_round",] == last["round"]
    assert shown["ray_fedsim_metric", "global"] == pytest.approx(last["global_metric"])
    assert shown["ray_fedsim_loss", "train"] == pytest.approx(last["train_loss_last"])
    columns = {
        **{("ray_fedsim_clients", name): f"clients_{name}" for name in ("ok", "failed", "retried", "absent", "late")},
        **{("ray_fedsim_traffic_bytes", name): f"bytes_{name}" for name in ("up", "down")},
        **{("ray_fedsim_phase_seconds", name): f"seconds_{name}" for name in ("train", "server", "evaluate")},
    }
    for key, column in columns.items():
        assert shown[key] == pytest.approx(sum(each[column] for each in rounds)), key


@pytest.mark.wide(alone="45 s: two jobs, one of them twice")
def test_a_job_that_is_stopped_saves_and_says_how_to_go_on_while_another_one_runs(head, tmp_path):
    """Both are found in the metrics by their names; the stopped one goes on from what it has saved."""
    arguments = [*TINY, "ray.actors=1", "ray.num_cpus_per_actor=0.5", f"output={tmp_path / 'run'}", "name=stopped"]
    other = submit(head, tmp_path, *TINY, "ray.actors=1", f"output={tmp_path / 'other'}", "name=other")
    job = submit(head, tmp_path, *arguments, "rounds=400", name="stopped-job")
    log = ""
    while not log.splitlines() or not log.splitlines()[-1].startswith("round   2/400"):
        line = job.stdout.readline()
        assert line, log
        log += line
    assert head.ask("/api/jobs/stopped-job/stop", "POST") == {"stopped": True}
    stopped = watched(head, job, "stopped")
    log += job.stdout.read()
    (saved,) = re.findall(
        r"^interrupted by SIGTERM: the state after round (\d+) is saved; submit the job again with --resume$", log, re.M
    )
    assert_shown(stopped, pq.read_table(tmp_path / "run" / "rounds.parquet").to_pylist())
    assert head.ask("/api/jobs/stopped-job")["status"] == "STOPPED"

    rounds = int(saved) + 1
    again = submit(head, tmp_path, *arguments, f"rounds={rounds}", "--resume", name="resumed-job")
    shown = watched(head, again, "stopped")
    logs = [each.communicate(timeout=200)[0] for each in (again, other)]
    assert (again.returncode, other.returncode) == (0, 0), logs
    assert shown["ray_fedsim_round",] == shown["ray_fedsim_rounds",] == rounds
    assert shown["ray_fedsim_clients", "ok"] == 4  # of its own round
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "other")]
    assert [each["rounds"] for each in summaries] == [rounds, 2]
    assert [each["ray"]["submission_id"] for each in summaries[:1]] == ["resumed-job"]
    assert head.metrics_of("nobody") == {}


def test_plan_and_doctor_look_at_every_node_and_leave_the_cluster_as_it_was(head, tmp_path):
    looks = [look(head, tmp_path, "plan"), look(head, tmp_path, "doctor", f"output={tmp_path / 'run'}")]
    (plan, plan_errors), (found, doctor_errors) = (each.communicate(timeout=200) for each in looks)
    assert (looks[0].returncode, plan_errors, looks[1].returncode, doctor_errors) == (0, "", 0, ""), plan + found
    assert re.search(r"cluster +1 node at ray.address=", plan)
    assert re.search(r"actors +2, 1 CPUs each", plan)
    assert re.search(r"a round +4 clients in 2 work groups: 1 wave on 2 actors", plan)
    assert re.search(r"^ok +cluster: 1 node at ray.address=\S+, 2 CPUs and 0 GPUs free$", found, re.M), found
    assert re.search(r"^ok +node 0, \S+, versions: as here$", found, re.M), found
    assert re.search(r"^\w+ +node 0, \S+, room: .*object store 157 MB", found, re.M), found


def test_a_plan_that_does_not_fit_the_cluster_is_refused_with_one_that_does(head, tmp_path):
    plan = look(head, tmp_path, "plan", "ray.actors=3", "ray.num_cpus_per_actor=1")
    out, errors = plan.communicate(timeout=100)
    assert (plan.returncode, out) == (3, "")
    assert errors.startswith("error: ray.actors=3 needs 3 actors of 1 CPUs each, but only 2 fit; set ray.actors=2")
    assert errors.count("\n") == 1


@pytest.mark.wide(alone="20 s: test_compare.py has the same study without a job")
def test_a_study_is_a_job_as_well(head, tmp_path):
    """Its runs go to actors of the cluster, and end with the bytes of the same run by itself."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", head.dashboard]
    command += [
        "--working-dir",
        str(ROOT),
        "--",
        "python",
        "-m",
        "fedsim",
        "compare",
        "configs/studies/quickstart.yaml",
    ]
    command += [*TINY, "ray.address=auto", "--output", str(tmp_path / "study")]
    done = subprocess.run(
        command,
        env=head.environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout
    assert "2 runs at a time" in done.stdout
    cell = "cells/base/fedavg_all/seed-2"
    config = read_config(tmp_path / "study" / cell / "config.yaml", [f"output={tmp_path / 'alone'}", "executor=local"])
    fedsim.run(config, progress=False)
    alone, there = (folder / "prompt" / GLOBAL_PROMPT for folder in (tmp_path / "alone", tmp_path / "study" / cell))
    assert alone.read_bytes() == there.read_bytes()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"RAY_AUTH_TOKEN": None, "RAY_AUTH_TOKEN_PATH": "/nowhere"}, "RAY_AUTH_TOKEN is not set"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "RAY_AUTH_TOKEN is not the cluster's"),
        ({"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE=token is not set"),
    ],
)
def test_a_cluster_with_a_token_says_at_once_what_who_joins_has_to_set(head, monkeypatch, changes, said):
    for name, value in {
        **{key: head.environment[key] for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")},
        **changes,
    }.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    if said is None:
        _check_reachable(head.gcs)
        return
    with pytest.raises(ResourceError) as refused:
        _check_reachable(head.gcs)
    remedy = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to its head's token"
    assert str(refused.value) == f"ray.address={head.gcs} asks for a token, and {said}; {remedy}"


@pytest.mark.parametrize("mode", sweep(["token", "disabled"], ["token"]))
def test_a_run_from_a_shell_joins_a_cluster_with_and_without_a_token(head, tmp_path, mode):
    with ExitStack() as stack:
        joined = head if mode == "token" else stack.enter_context(ray_head(num_cpus=2, mode="disabled"))
        run = look(joined, tmp_path, "run", f"output={tmp_path / 'run'}", "rounds=1", "ray.actors=1")
        out, errors = run.communicate(timeout=200)
    assert (run.returncode, errors) == (0, ""), out
