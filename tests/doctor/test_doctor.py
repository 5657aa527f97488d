"""``fedsim doctor``: each thing that can be wrong is found and answered with what would be right; never a traceback."""

import hashlib
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support import ROOT

from clients.backbone import model_files
from clients.backbone.location import locate
from clients.config import ModelConfig
from fedsim import cli
from fedsim.doctor.cluster import _versions
from fedsim.doctor.environment import environment_findings
from fedsim.planning.machine import Gpu, Machine, cpu_limit, disk_bytes, this_machine, visible_gpus
from fedsim.records.run_folder import RunFolder

QUICK = str(ROOT / "configs" / "quickstart.yaml")
GB = 10**9
SOUND = Machine("here", 8, None, 32 * GB, 30 * GB, 16 * GB, 16 * GB, ())


@pytest.fixture
def plain(monkeypatch):
    """Let the environment say nothing of Ray and uv."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "UV_RUN_RECURSION_DEPTH"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def doctor(plain, capsys, tmp_path):
    """Return a function that runs ``fedsim doctor ARGUMENTS`` and returns (status, lines as (status, what, text))."""
    plain.chdir(tmp_path)

    def call(*arguments):
        plain.setattr(sys, "argv", ["fedsim", "doctor", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert not err
        report, _, following = out.partition("next: ")
        *lines, last = report.splitlines()
        assert not following or last.startswith("problems: 0,")
        found = [re.fullmatch(r"(ok|warning|problem) +([^:]*): (.*)", line).groups() for line in lines]
        counts = [sum(status == name for status, _, _ in found) for name in ("problem", "warning", "ok")]
        assert last == "problems: {}, warnings: {}, ok: {}".format(*counts)
        assert ended.value.code in ((1,) if counts[0] else (0, None))
        return {what: (status, text) for status, what, text in found}

    return call


def of(what, machine=SOUND, output=Path()):
    (found,) = [finding for finding in environment_findings(machine, output) if finding.what.startswith(what)]
    return found.status, found.text


def test_a_sound_machine_is_sound(plain):
    statuses = {finding.what: finding.status for finding in environment_findings(SOUND, Path())}
    behind_a_url = {finding.what for finding in environment_findings(SOUND, None)}
    assert statuses.keys() - behind_a_url == {"free disk for results"}
    assert len(statuses) == 10
    assert all(status != "problem" for status in statuses.values())
    assert statuses["processors"] == statuses["memory"] == statuses["shared memory (/dev/shm)"] == "ok"


MACHINES = {
    "a container with fewer processors": (
        {"cpu_limit": 2.0}, "processors", "ok", "8 processors, of which the container may use 2"
    ),
    "a container with a part of one": ({"cpu_limit": 0.5}, "processors", "warning", "give the container more"),
    "docker's shared memory": (
        {"shared_bytes": 64 * 2**20, "shared_free_bytes": 64 * 2**20}, "shared memory", "warning", "docker run --shm-size"
    ),
    "no shared memory": ({"shared_bytes": None, "shared_free_bytes": None}, "shared memory", "warning", "missing"),
    "a GPU": ({"gpus": (Gpu("H100", 80 * GB, 79 * GB),)}, "GPU 0", "ok", "H100, 79 GB free of 80 GB"),
    "a GPU in use": ({"gpus": (Gpu("H100", 80 * GB, 9 * GB),)}, "GPU 0", "warning", "in use by another process"),
}  # fmt: skip


@pytest.mark.parametrize("name", MACHINES)
def test_machines(plain, name):
    changes, what, status, text = MACHINES[name]
    found = of(what, replace(SOUND, **changes))
    assert found[0] == status and text in found[1]


def test_a_count_of_all_processors_of_a_container_is_a_problem(plain):
    plain.setenv("RAY_USE_MULTIPROCESSING_CPU_COUNT", "1")
    assert of("processors", replace(SOUND, cpu_limit=2.0))[0] == "problem"
    assert of("processors")[0] == "ok"


def test_authentication(plain, tmp_path):
    plain.setenv("HOME", str(tmp_path))
    assert of("Ray's authentication")[0] == "ok"
    plain.setenv("RAY_AUTH_MODE", "token")
    assert of("Ray's authentication") == (
        "problem", "RAY_AUTH_MODE=token, but there is no token; set RAY_AUTH_TOKEN to the cluster's"
    )  # fmt: skip
    plain.setenv("RAY_AUTH_TOKEN", "secret")
    status, text = of("Ray's authentication")
    assert (status, text) == ("ok", "RAY_AUTH_MODE=token, token from RAY_AUTH_TOKEN")
    plain.delenv("RAY_AUTH_TOKEN")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    assert of("Ray's authentication") == ("ok", f"RAY_AUTH_MODE=token, token from {tmp_path}/.ray/auth_token")


def test_uv_run_and_a_home_that_is_not_there(plain, tmp_path):
    plain.setenv("UV_RUN_RECURSION_DEPTH", "1")
    plain.setenv("HOME", str(tmp_path / "nobody"))
    assert of("uv run")[0] == of("home folder")[0] == "warning"
    plain.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    assert of("uv run")[0] == "ok"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_limit_of_a_control_group(tmp_path, files, expected):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cpu_limit(tmp_path) == expected


def test_gpus_are_those_that_are_visible(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho '0, GPU-aa11, NVIDIA H100 80GB HBM3, 81559, 81000'\necho '1, GPU-bb22, NVIDIA H100, [N/A], [N/A]'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    first = Gpu("NVIDIA H100 80GB HBM3", 81559 * 2**20, 81000 * 2**20)
    assert visible_gpus() == (first, Gpu("NVIDIA H100", 0, 0))
    for visible in ("0", "GPU-aa"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert visible_gpus() == (first,)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == ()


def test_this_machine_is_as_the_system_says(tmp_path):
    import psutil

    machine = this_machine()
    assert machine.memory_bytes <= psutil.virtual_memory().total
    assert 0 < machine.memory_free_bytes < machine.memory_bytes
    assert disk_bytes(tmp_path / "not" / "yet") == pytest.approx(disk_bytes(tmp_path), rel=0.01)


def test_without_a_config_it_looks_at_this_machine(doctor):
    found = doctor()
    assert found["versions"][1].startswith("fedsim ") and "torch 2." in found["versions"][1]
    assert found["RAY_ADDRESS"] == ("ok", "not set")
    assert "model" not in found


def test_with_a_config_it_finds_model_data_and_place_for_results(doctor):
    found = doctor(QUICK)
    weights = Path(locate(ModelConfig())) / "model.safetensors"
    assert found["model"][1].endswith(hashlib.sha256(weights.read_bytes()).hexdigest()[:16])
    assert found["data"][1].startswith("reviews: 4,200 training and 900 validation examples for 100 clients, sha256 ")
    assert found["results"] == ("ok", "go to a new folder runs/quickstart")
    again, other = doctor(QUICK), doctor(QUICK, "data.train_examples=400")
    assert again["data"] == found["data"] != other["data"]


MISTAKES = {
    "no config": (["nothing.yaml"], "config", "there is no config file nothing.yaml"),
    "a wrong key": (["ray.adress=auto"], "config", "did you mean 'ray.address'"),
    "no data": ([QUICK, "data.task=sst2", "data.path=no/such"], "data", "no/such"),
    "no model": ([QUICK, "model.path=./no/such"], "model", "./no/such is not a folder"),
    "somebody else's folder": ([QUICK, "output=thesis"], "results", "thesis"),
    "somebody else's folder by URL": (
        [QUICK, "output=file://{tmp}/thesis"],
        "results",
        "holds files but no fedsim run",
    ),
    "a run that is there": ([QUICK, "output=done"], "results", "already holds a run"),
    "a run that is there, by URL": ([QUICK, "output=file://{tmp}/done"], "results", "already holds a run"),
    "a folder in a file": (
        [QUICK, "output=thesis/chapter1.txt/x"],
        "results",
        "chapter1.txt cannot be written to (Not a dir",
    ),
    "cuda without a share of a GPU": ([QUICK, "model.device=cuda"], "config", "set ray.num_gpus_per_actor=1"),
    "no cluster": (["ray.address=127.0.0.1:1"], "cluster", "no Ray cluster answers at"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_a_problem_and_the_rest_is_looked_at_all_the_same(doctor, tmp_path, name):
    import ray

    if name == "no cluster" and ray.is_initialized():
        pytest.skip("this process has joined the session's Ray")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with RunFolder.create(tmp_path / "done") as run:
        run.event("round", round=1)
    arguments, what, text = MISTAKES[name]
    found = doctor(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert found[what][0] == "problem" and text in found[what][1]
    assert {"processors", "memory", "home folder"} <= found.keys()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that not even root can write to")
def test_copies_beside_a_models_weights_are_not_looked_at(doctor, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(locate(ModelConfig()), model)
    before = doctor(QUICK, f"model.path={model}")["model"]
    shutil.copy(model / "model.safetensors", model / "consolidated.safetensors")
    assert before[0] == "ok" and doctor(QUICK, f"model.path={model}")["model"] == before


def test_what_a_model_lacks_is_a_problem_before_a_run(doctor, tmp_path, monkeypatch):
    model = tmp_path / "model"
    shutil.copytree(locate(ModelConfig()), model)
    (model / "tokenizer.json").rename(model / "tokenizer.model")
    monkeypatch.setattr(model_files, "_is_installed", lambda module: False)
    status, text = doctor(QUICK, f"model.path={model}")["model"]
    assert status == "problem" and "pip install 'fedsim[sentencepiece]'" in text
    (model / "config.json").write_text('{"architectures": ["RobertaForMaskedLM"]}')
    status, text = doctor(QUICK, f"model.path={model}")["model"]
    assert status == "problem" and 'add "model_type": "roberta"' in text


def test_a_working_folder_that_cannot_be_written_is_a_problem_where_results_go_there(doctor, plain, tmp_path):
    plain.chdir("/proc")
    status, text = doctor(QUICK)["results"]
    assert status == "problem" and text.startswith("/proc cannot be written to (")
    assert doctor(QUICK, f"output={tmp_path / 'run'}")["results"][0] == "ok"


def test_a_folder_for_temporary_files_that_cannot_be_written_is_a_problem_where_a_ray_is_started(doctor, plain):
    plain.setenv("RAY_TMPDIR", "/none")
    what = "free disk for temporary files"
    status, text = doctor(QUICK)[what]
    assert status == "problem" and "/none cannot be written to (" in text and "RAY_TMPDIR" in text
    assert doctor(QUICK, "executor=local")[what][0] == "ok"


def test_a_stale_address_in_the_environment_is_a_problem_where_it_would_be_used(doctor, plain):
    plain.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert doctor("ray.address=auto")["RAY_ADDRESS"][0] == "problem"
    status, text = doctor()["RAY_ADDRESS"]
    assert status == "ok" and "is not used" in text


def test_versions_of_a_node_are_compared():
    own = {"fedsim": "0.1", "torch": "2.13.0", "pyarrow": "26"}
    assert _versions("node 1", own, dict(own)).status == "ok"
    assert _versions("node 1", own, {**own, "pyarrow": "25"}).status == "warning"
    found = _versions("node 1", own, {"fedsim": "0.1", "torch": "2.6.0", "pyarrow": "26"})
    assert found.status == "problem" and found.text.startswith("torch 2.6.0 (here 2.13.0); install the same")
