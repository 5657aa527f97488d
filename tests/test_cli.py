"""The commands as a user types them, in this process; mistakes end with one sentence and a documented status."""

import io
import os
import re
import subprocess
import sys

import pytest
import yaml
from support import ROOT, make_tiny, tiny_values

from fedsim import __version__
from fedsim.configuration.schema import read_config
from fedsim.planning.availability import availability_warning
from fedsim.records.location import open_location
from fedsim.records.run_folder import RunFolder


@pytest.fixture
def tiny_file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        yaml.safe_dump(
            tiny_values({"executor": "local", "layers": {"score_batch_size": None}, "tracking": {"plots": False}})
        )
    )
    return path


def test_run_prints_progress_and_a_final_table_and_picks_new_folders(fedsim, tiny_file, tmp_path):
    status, out, err = fedsim("run", tiny_file, "rounds=2")
    assert (status, err) == (0, "")
    assert len(re.findall(r"^round \d/2 ", out, re.MULTILINE)) == 2
    assert "fedpeptao" in out and "exchanged layers" in out
    status, out, _ = fedsim("run", tiny_file, "rounds=1", "--quiet")
    assert status == 0 and "round 1/1" not in out
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["tiny", "tiny-2"]
    status, out, _ = fedsim("run", tiny_file, "rounds=1", "--resume")
    assert status == 0 and "tiny-2 is finished" in out


def test_config_prints_what_can_be_run_again(fedsim, tiny_file, tmp_path):
    status, out, _ = fedsim("config", tiny_file, "client.optimizer.lr=0.5", "--plain")
    assert status == 0 and "    lr: 0.5" in out
    (tmp_path / "again.yaml").write_text(out)
    assert fedsim("config", "again.yaml", "--plain")[1] == out


def test_partition_prints_a_summary_and_saves_a_picture(fedsim, tiny_file, tmp_path):
    status, out, _ = fedsim("partition", tiny_file, "--output", "labels.png")
    assert status == 0 and "12 clients, 240 examples, 2 classes" in out
    assert (tmp_path / "labels.png").read_bytes().startswith(b"\x89PNG")
    assert "data:" not in out
    natural = ("partition.kind=by_column", "partition.column=author", "data.train_examples=600")
    status, out, _ = fedsim("partition", tiny_file, *natural)
    assert status == 0 and re.match(
        r"12 of the \d+ values of partition\.column 'author' are clients; the examples of", out
    )
    status, out, _ = fedsim("partition", tiny_file, *natural, "partition.clients=", "sampling.clients_per_round=5000")
    assert status == 0 and "warning: a run with this config is refused: partition.column 'author' gives" in out


def test_layers_prints_scores_share_and_choice(fedsim, tiny_file, tmp_path):
    status, out, _ = fedsim("layers", tiny_file, "--output", "scores.png")
    assert status == 0 and "2 of 4" in out
    assert len(re.findall(r"^ +\d +-?[\d.,]+ +\d\b", out, re.MULTILINE)) == 4
    assert out.count("yes") == 2
    assert (tmp_path / "scores.png").exists()
    status, out, _ = fedsim("layers", tiny_file, "layers.choose=bottom")
    assert status == 0 and "exchanged layers: 0-1 (layers.choose=bottom)" in out


def data_folder(path, train, validation="text,label\nfine,1\nbad,0\n"):
    path.mkdir()
    (path / "train.csv").write_text(train, encoding="utf-8")
    (path / "validation.csv").write_text(validation, encoding="utf-8")
    return path


def foreign(tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.txt").write_text("years of work")
    return folder


OWN_TASK = (
    'data.task={name: own, fields: [text], labels: ["0", "1"], label_words: [bad, good], template: "{text} : <mask>"}'
)
UNREADABLE_TASK = 'data.task={name: own, fields: [text], labels: ["0", "1"]}'
SPLIT_WORD_TASK = OWN_TASK.replace("good", "xylophonist")
GOOD_ROWS = "text,label\n" + "".join(f"words number {i},{i % 2}\n" for i in range(40))

MISTAKES = {
    "no config file": (lambda tmp: ["nothing.yaml"], "there is no config file nothing.yaml"),
    "config is a folder": (lambda tmp: [tmp], "cannot read the config file"),
    "unknown task": (lambda tmp: ["data.task=sst3"], "sst2"),
    "embedded source lacks the task": (lambda tmp: ["data.task=rte"], "rte"),
    "data path missing": (lambda tmp: ["data.task=sst2", "data.path=no/such/folder"], "no/such/folder"),
    "empty data folder": (lambda tmp: ["data.task=sst2", f"data.path={tmp}"], "train"),
    "unknown label": (
        lambda tmp: [OWN_TASK, f"data.path={data_folder(tmp / 'd', GOOD_ROWS + 'more,7' + chr(10))}"],
        "train.csv",
    ),
    "empty text": (
        lambda tmp: [OWN_TASK, f"data.path={data_folder(tmp / 'd', GOOD_ROWS + ' ,1' + chr(10))}"],
        "train.csv",
    ),
    "missing column": (
        lambda tmp: [OWN_TASK, f"data.path={data_folder(tmp / 'd', GOOD_ROWS.replace('text', 'sentence'))}"],
        "sentence",
    ),
    "more training examples than there are": (lambda tmp: ["data.train_examples=1000000"], "train_examples"),
    "verbalizer without template": (
        lambda tmp: [
            'data.task={name: own, fields: [text], labels: ["0", "1"]}',
            f"data.path={data_folder(tmp / 'd', GOOD_ROWS)}",
        ],
        "template",
    ),
    "more clients than examples": (lambda tmp: ["partition.clients=500"], "partition.clients"),
    "clients too small": (lambda tmp: ["partition.min_size=100"], "min_size"),
    "no such column": (lambda tmp: ["partition.kind=by_column", "partition.column=writer"], "writer"),
    "too many classes a client": (
        lambda tmp: ["partition.kind=label_shards", "partition.classes_per_client=5"],
        "classes_per_client",
    ),
    "model folder missing": (lambda tmp: ["model.path=./no/such/model"], "no/such/model"),
    "folder without a model": (lambda tmp: [f"model.path={tmp}"], "config.json"),
    "package not installed": (lambda tmp: ["model.path=null", "model.package=no_such_package"], "pip install"),
    "layer out of range": (lambda tmp: ["layers.choose=fixed", "layers.fixed=[0, 9]"], "0 to 3"),
    "text longer than positions": (
        lambda tmp: [
            "data.max_length=5000",
            OWN_TASK,
            f"data.path={data_folder(tmp / 'd', GOOD_ROWS + 'long ' * 4000 + ',1' + chr(10))}",
        ],
        "data.max_length=",
    ),
    "cuda without a GPU": (lambda tmp: ["model.device=cuda"], "model.device"),
    "output is somebody else's folder": (lambda tmp: [f"output={foreign(tmp)}"], "holds files but no fedsim run"),
    "output is a file": (lambda tmp: [f"output={tmp / 'tiny.yaml'}"], "tiny.yaml"),
    "unreachable cluster": (lambda tmp: ["executor=ray", "ray.address=127.0.0.1:1"], "ray.address=127.0.0.1:1"),
}

ELSEWHERE = ("unreachable cluster", "cuda without a GPU")
"""What may be no mistake another time, or on another machine."""


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_data_model_or_resources_is_answered_with_one_sentence(fedsim, tiny_file, tmp_path, name):
    import ray

    make, expected = MISTAKES[name]
    if name == "unreachable cluster" and ray.is_initialized():
        pytest.skip("this process has joined the session's Ray")
    arguments = make(tmp_path)
    if any(str(argument).startswith(f"data.path={tmp_path / 'd'}") for argument in arguments):
        arguments += ["data.train_examples=null", "data.validation_examples=null"]
    config = arguments[:1] if name in ("no config file", "config is a folder") else [tiny_file, *arguments]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    status, out, err = fedsim("run", *config)
    assert status == (3 if name in ELSEWHERE else 2), out + err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert expected in err
    assert "Traceback" not in out + err
    assert {path: path.read_bytes() for path in before} == before
    assert not (tmp_path / "runs" / "tiny" / "summary.json").exists()


def test_runs_that_begin_at_the_same_time_get_folders_of_their_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = make_tiny(name="both", executor="local")
    runs = tmp_path / "runs"
    with open_location(config, False, print) as first, open_location(config, True, print) as second:
        assert [first.path.name, second.path.name] == ["both", "both-2"]
        assert not second.resume  # there is nothing to take up yet
        with RunFolder.create(second.path) as folder:
            folder.event("layers", layers=[0])
    assert [path.name for path in sorted(runs.iterdir())] == ["both", "both-2"]  # no gap before the newest
    with open_location(config, True, print) as again, open_location(config, False, print) as third:
        assert (again.path.name, again.resume, third.path.name) == ("both-2", True, "both-3")
    assert [path.name for path in sorted(runs.iterdir())] == ["both", "both-2"]


def test_a_mistake_leaves_no_folder(fedsim, tiny_file, tmp_path):
    for output in ([], ["output=run"]):
        status, _, err = fedsim("run", tiny_file, "data.task=rte", *output)
        assert status == 2, err
    assert not (tmp_path / "run").exists() and not list(tmp_path.glob("runs/*"))


def test_too_few_clients_in_reach_for_the_rule_are_told_at_the_start(fedsim, tiny_file):
    rule = ["server.aggregation=multi_krum", "client.correction=none", "sampling.dropout=0.9"]
    status, out, err = fedsim("run", tiny_file, *rule)
    warning = out.splitlines()[0]
    assert warning.startswith("warning: with sampling.dropout=0.9 about 0.5 of a round's 5 clients are in reach")
    assert "multi_krum needs 2 f + 3 = 3 clients for f=0 attackers, not 1" in warning
    assert status == 1 and "1 clients of its cohort are left" in err


@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_clients_in_reach_that_are_enough_are_nothing_to_tell(dropout):
    sampling = {"dropout": dropout, "clients_per_round": 12}
    server = {"aggregation": "multi_krum"}
    assert availability_warning(make_tiny(server=server, sampling=sampling, client={"correction": "none"})) is None


@pytest.mark.parametrize("at", ["typer", "fedsim.core.errors"])
def test_ctrl_c_during_the_first_imports_ends_quietly(at):
    code = f"""
import os, runpy, signal, sys

class Press:
    def find_spec(self, name, path=None, target=None):
        if name == {at!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Press())
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would this
sys.argv = ["fedsim", "version"]
runpy.run_module("fedsim", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


UNUSUAL = "[red] 日本 #1 é"


@pytest.fixture
def unusual(tmp_path):
    """Return what a run with unusual names everywhere is given: config file and overrides."""
    rows = "text,label\n" + "".join(f"words number {i},{('$ [b]坏', 'goed é')[i % 2]}\n" for i in range(240))
    data = data_folder(tmp_path / f"data {UNUSUAL}", rows, rows)
    values = tiny_values({"executor": "local", "rounds": 1, "layers": {"score_batch_size": None}, "data": {"task": {
        "name": "評価 [i]", "fields": ["text"], "labels": ["$ [b]坏", "goed é"], "label_words": ["terrible", "great"],
        "template": "{text} : <mask>"}}})  # fmt: skip
    path = tmp_path / f"tiny {UNUSUAL}.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return path, f"data.path={data}"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_are_shown_as_they_are_and_escaped_where_the_output_lacks_a_character(
    fedsim, unusual, monkeypatch, tmp_path, encoding
):
    output = f"output={tmp_path}/run {UNUSUAL}"
    commands = {
        "run": [*unusual, output, "tracking.plots=true", "layers.choose=all", "prompt.position_offset=paper"],
        "partition": [*unusual, "--output", f"p {UNUSUAL}.png"],
        "layers": [*unusual, "--output", f"s {UNUSUAL}.png"],
        "plan": [*unusual, "executor=ray", "ray.num_cpus=2"],
        "doctor": [*unusual, output.replace("run", "other")],
        "config": [*unusual, output],
        "export": [f"{tmp_path}/run {UNUSUAL}", "--to", "peft"],
    }
    for command, arguments in commands.items():
        stream = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding=encoding, write_through=True))
        monkeypatch.setenv("COLUMNS", "300")
        status, _, err = fedsim(command, *arguments)
        assert status in (0, 1 if command == "doctor" else 0), (command, err)
        shown = stream.getvalue().decode(encoding)
        name = UNUSUAL.encode(encoding, "backslashreplace").decode(encoding)
        if command == "config":  # with YAML's escapes: its output must be a valid config
            (tmp_path / "again.yaml").write_text(shown, encoding="utf-8")
            assert read_config(tmp_path / "again.yaml").output == output.removeprefix("output=")
        else:
            assert command == "plan" or name in shown, (command, shown)
        assert "Traceback" not in shown + err
    assert (tmp_path / f"run {UNUSUAL}" / "plots" / "label_distribution.png").exists()


def test_the_version_is_an_option_as_well(fedsim):
    assert fedsim("--version") == fedsim("version") == (0, f"{__version__}\n", "")


def test_a_config_whose_path_has_an_equals_sign_is_examined_as_one(fedsim, tiny_file, tmp_path):
    (tmp_path / "lr=0.1").mkdir()
    path = tiny_file.rename(tmp_path / "lr=0.1" / "tiny.yaml")
    assert f"config: {path} is valid" in fedsim("doctor", path)[1]


def test_results_in_the_folder_of_a_job_are_told_at_the_start(fedsim, tiny_file, tmp_path, monkeypatch):
    job = tmp_path / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    job.mkdir(parents=True)
    monkeypatch.chdir(job)
    for output, told in (([], "runs/tiny"), (["output=mine"], "mine"), ([f"output={tmp_path}/kept"], None)):
        out = fedsim("run", tiny_file, "rounds=1", *output)[1]
        warning = (
            f"warning: results go to {told} in the job's own folder ({job / str(told)}), which Ray deletes with the job; "
            "give output=FOLDER with a path elsewhere, or a URL\n"
        )
        assert out.startswith(warning) if told else "warning" not in out
    assert "results: results go to other in the job's own folder" in fedsim("doctor", tiny_file, "output=other")[1]


USERS_OWN = ("server.py", "clients/__init__.py", "partitions.py", "configs/__init__.py")


def test_modules_of_the_users_own_that_are_called_like_ours_are_no_matter(tmp_path):
    for name in USERS_OWN:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise RuntimeError('not ours')\n")
    (tmp_path / "run.yaml").write_text("rounds: 3\n")
    (tmp_path / "mine.py").write_text(
        "import fedsim.configuration.schema, server.core, clients.config, partitions.base\n"
        f"assert all(m.__file__.startswith({str(ROOT)!r}) for m in (server, clients, partitions))\n"
    )
    for arguments in (["-m", "fedsim", "config", "run.yaml", "--plain"], ["mine.py"]):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_a_module_of_the_users_own_that_is_loaded_already_is_named(tmp_path):
    (tmp_path / "server.py").touch()
    code = "import server\ntry:\n    import fedsim\nexcept ImportError as error:\n    print(error)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    named = f"another module of that name is loaded already, from {tmp_path / 'server.py'}; rename"
    assert named in done.stdout and done.stderr == ""


def test_a_plain_clone_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "fedsim", "version"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout)
