"""Results behind a URL: in memory (fsspec), and in a folder reached as ``file://`` (PyArrow)."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem
from rich.console import Console
from support import ROOT, merged, on_line, tiny_values

import fedsim
import fedsim.records.remote
import fedsim.records.sync
from fedsim import load_prompt
from fedsim.core.errors import ConfigError
from fedsim.prompts.prompt_file import local_prompt
from fedsim.records.checkpoint import Checkpoint, load_latest, save_checkpoint
from fedsim.records.remote import Remote, RemoteError, is_url
from fedsim.records.run_folder import RunFolder
from fedsim.records.sync import Sync
from fedsim.simulation.interrupt import RunInterrupted

PROMPT = "prompt/global.safetensors"
# A trial would settle client.fuse by time, and bits depend on it.
QUICK = {
    "rounds": 8,
    "executor": "local",
    "tracking": {"plots": False},
    "layers": {"choose": "all"},
    "client": {"fuse": 2},
}


class Unsteady(MemoryFileSystem):
    """A file system in memory that fails on demand, in the middle of a file as well."""

    protocol = "unsteady"
    store: dict = {}  # noqa: RUF012 - as in the class above, whose instances share one store
    pseudo_dirs = [""]  # noqa: RUF012
    cachable = False
    calls_until_failure: float = float("inf")
    seconds_per_call: float = 0.0

    @classmethod
    def count(cls) -> None:
        time.sleep(cls.seconds_per_call)
        cls.calls_until_failure -= 1
        if cls.calls_until_failure < 0:
            raise OSError("the network is gone")

    def _open(self, path, mode="rb", **arguments):
        file = super()._open(path, mode, **arguments)
        if "w" in mode:
            write = file.write

            def write_half(data: bytes) -> int:
                write(data[: len(data) // 2])
                self.count()
                write(data[len(data) // 2 :])
                return len(data)

            file.write = write_half
        return file

    def mv(self, *arguments, **options):
        self.count()
        super().mv(*arguments, **options)

    def rm_file(self, path):
        self.count()
        super().rm_file(path)


fsspec.register_implementation("unsteady", Unsteady)


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files: nothing but what a test expects is left in it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(Unsteady, "calls_until_failure", float("inf"))
    monkeypatch.setattr(fedsim.records.sync, "_LAST_PAUSES_SECONDS", (0.01, 0.01))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def url():
    return f"memory://results-{uuid.uuid4().hex}/run"


@pytest.fixture(scope="module")
def local_run(tmp_path_factory):
    from support import make_tiny

    folder = tmp_path_factory.mktemp("local") / "run"
    fedsim.run(make_tiny(**QUICK, output=str(folder)), progress=False)
    return folder


def content(url: str, name: str) -> bytes:
    return fsspec.open(f"{url}/{name}").open().read()


def names(url: str) -> set[str]:
    return set(Remote(url).files())


def test_a_run_behind_a_url_is_the_run_in_a_folder(tiny_config, url, local_run):
    summary = fedsim.run(tiny_config(**QUICK, output=url), progress=False)
    assert summary["folder"] == url
    assert content(url, PROMPT) == (local_run / PROMPT).read_bytes()
    assert json.loads(content(url, "summary.json"))["folder"] == url
    local = {path.relative_to(local_run).as_posix() for path in local_run.rglob("*") if path.is_file()}
    assert names(url) == local
    texts = ["a fine film", "a dull film"]
    np.testing.assert_array_equal(load_prompt(url).scores(texts), load_prompt(local_run).scores(texts))
    with local_prompt(f"{url}/{PROMPT}") as path:
        assert path.read_bytes() == (local_run / PROMPT).read_bytes()

    with pytest.raises(ConfigError, match=rf"^{url} already holds a run; continue it with --resume or choose another"):
        fedsim.run(tiny_config(**QUICK, output=url), progress=False)
    before = content(url, "metrics.jsonl")
    assert fedsim.run(tiny_config(**QUICK, output=url), resume=True, progress=False) == summary
    assert content(url, "metrics.jsonl") == before


def test_an_interrupted_run_goes_on_from_the_url(tiny_config, url, local_run):
    console = on_line("round 2/", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(RunInterrupted):
        fedsim.run(tiny_config(**QUICK, output=url), console=console)
    assert "summary.json" not in names(url)
    assert json.loads(content(url, "metrics.jsonl").splitlines()[-1])["event"] == "stopped"
    console = Console(file=io.StringIO(), width=200)
    fedsim.run(tiny_config(**QUICK, output=url), resume=True, console=console)
    assert f"resuming {url} after round" in console.file.getvalue()
    assert content(url, PROMPT) == (local_run / PROMPT).read_bytes()
    assert {name for name in names(url) if name.startswith("checkpoints/")} == {
        f"checkpoints/round-00000{number}.{kind}" for number in (7, 8) for kind in ("safetensors", "sha256")
    }


def test_a_run_killed_in_another_process_goes_on_from_the_url(tiny_config, tmp_path, temporary, local_run):
    url = f"file://{tmp_path}/results/run"
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(tiny_values(QUICK)))
    process = subprocess.Popen(
        [sys.executable, "-m", "fedsim", "run", str(config), f"output={url}"],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "TMPDIR": str(temporary)},
    )
    there = tmp_path / "results" / "run"
    while process.poll() is None and not list(there.glob("checkpoints/*.sha256")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(list(temporary.glob(f"fedsim-run-{process.pid}-*"))) == 1  # swept by the next run
    console = Console(file=io.StringIO(), width=200)
    fedsim.run(tiny_config(**QUICK, output=url), resume=True, console=console)
    assert f"resuming {url} after round" in console.file.getvalue()
    assert (there / PROMPT).read_bytes() == (local_run / PROMPT).read_bytes()


def test_a_folder_of_somebody_else_is_left_alone(tiny_config, tmp_path, url):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "metrics.jsonl").write_text('{"event": "created"}\n')
    with fsspec.open(f"{url}/notes.txt", "w") as file:
        file.write("mine")
    for place in (url, f"file://{theirs}", f"file://{theirs}/metrics.jsonl"):
        for resume in (False, True):
            with pytest.raises(ConfigError, match=f"^{place} holds files but no fedsim run; choose a new or empty"):
                fedsim.run(tiny_config(**QUICK, output=place), resume=resume, progress=False)
    assert names(url) == {"notes.txt"} and [path.name for path in theirs.iterdir()] == ["metrics.jsonl"]


def test_a_refused_start_does_not_spoil_its_url(tiny_config, tmp_path, url):
    with RunFolder.create(tmp_path / "refused") as folder:
        folder.write_config("rounds: 3\n")
        folder.event("stopped", reason="ResourceError", message="3 actors do not fit")
    for path in folder.path.iterdir():
        Remote(url).upload(path, path.name)
    assert Remote(url).holds() == "nothing"
    fedsim.run(tiny_config(**merged(QUICK, {"rounds": 1}), output=url), progress=False)
    assert Remote(url).holds() == "run"
    assert b"do not fit" not in content(url, "metrics.jsonl")


def test_a_copy_that_fails_for_a_while_costs_a_note_and_nothing_else(tiny_config, local_run):
    url = f"unsteady://{uuid.uuid4().hex}/run"

    def fail() -> None:
        Unsteady.calls_until_failure = 0

    def work() -> None:
        Unsteady.calls_until_failure = float("inf")

    class Trouble(io.StringIO):
        def write(self, text: str) -> int:
            if text.startswith("round  1/"):
                fail()
            if "the run continues" in text:
                work()
            return super().write(text)

    console = Console(file=Trouble(), width=300)
    changes = merged(QUICK, {"rounds": 14})
    fedsim.run(tiny_config(**changes, output=url), console=console)
    notes = [line for line in console.file.getvalue().splitlines() if line.startswith("warning")]
    assert len(notes) == 1
    assert re.match(rf"warning: {url} cannot be written \(.*\): .*the network is gone; the run continues", notes[0])
    assert json.loads(content(url, "summary.json"))["rounds"] == 14
    assert not [name for name in names(url) if name.startswith("checkpoints/round-00000")]


def test_a_destination_that_is_gone_at_the_end_leaves_the_run_here(tiny_config, temporary, local_run):
    def fail() -> None:
        Unsteady.calls_until_failure = 0

    url = f"unsteady://{uuid.uuid4().hex}/run"
    with pytest.raises(RemoteError) as error:
        fedsim.run(tiny_config(**QUICK, output=url), console=on_line("round 3/", fail))
    kept = Path(
        re.search(r"the network is gone; copy (\S+) there, or continue with --resume", str(error.value)).group(1)
    )
    assert kept.is_relative_to(temporary)
    assert (kept / PROMPT).read_bytes() == (local_run / PROMPT).read_bytes()
    assert json.loads((kept / "summary.json").read_text())["rounds"] == 8

    # What has arrived before is whole.
    Unsteady.calls_until_failure = float("inf")
    fedsim.run(tiny_config(**QUICK, output=url), resume=True, progress=False)
    assert content(url, PROMPT) == (local_run / PROMPT).read_bytes()
    assert kept.is_dir()
    for path in [*sorted(kept.rglob("*"), reverse=True), kept, kept.parent]:
        path.rmdir() if path.is_dir() else path.unlink()


def checkpoint(number: int) -> Checkpoint:
    return Checkpoint(number, (0,), {}, {}, {"vector_F": np.full(1000, float(number))}, ())


def test_a_copy_may_break_off_anywhere(tmp_path):
    """After each of its steps, torn files included, a run there can be resumed from the old or the new checkpoint."""
    seen = set()
    for calls in range(100):
        Unsteady.calls_until_failure = float("inf")
        destination = Remote(f"unsteady://{uuid.uuid4().hex}")
        with Sync(destination, print) as mirror:
            save_checkpoint(mirror.path / "checkpoints", checkpoint(1), keep=1)
            (mirror.path / "metrics.jsonl").write_text("1\n")
            mirror._copy()
            (mirror.path / "metrics.jsonl").write_text("1\n2\n")
            save_checkpoint(mirror.path / "checkpoints", checkpoint(2), keep=1)
            Unsteady.calls_until_failure = calls
            try:
                mirror._copy()
                whole = True
            except RemoteError:
                whole = False
            Unsteady.calls_until_failure = float("inf")
            with Sync(destination, print) as other:
                other.fetch()
                latest, passed_over = load_latest(other.path / "checkpoints")
                assert latest is not None and all("has no checksum" in sentence for sentence in passed_over)
                assert latest.server["vector_F"][0] == latest.round
                lines = (other.path / "metrics.jsonl").read_text().splitlines()
                assert int(lines[-1]) >= latest.round  # records are never behind
                seen.add(latest.round)
                assert not whole or set(destination.files()) == {
                    "metrics.jsonl",
                    "checkpoints/round-000002.safetensors",
                    "checkpoints/round-000002.sha256",
                }
        if whole:
            break
    assert whole and calls >= 6 and seen == {1, 2}


def test_a_run_that_could_be_fetched_in_part_only_is_left_as_it_is_there(tmp_path, monkeypatch):
    url = f"memory://{uuid.uuid4().hex}"
    with Sync(Remote(url), print) as mirror:
        (mirror.path / "a").write_text("text")
        (mirror.path / "metrics.jsonl").write_text("1\n2\n")

    def half(self, name: str, path: Path, size: int | None = None) -> None:
        path.write_text("1\n")
        raise RemoteError("the network is gone")

    with monkeypatch.context() as broken, pytest.raises(RemoteError), Sync(Remote(url), print) as mirror:
        broken.setattr(Remote, "download", half)
        mirror.fetch()
    assert content(url, "metrics.jsonl") == b"1\n2\n" and content(url, "a") == b"text"


def test_a_destination_that_does_not_answer_is_a_sentence_in_bounded_time(tiny_config, monkeypatch):
    monkeypatch.setattr(fedsim.records.remote, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(Unsteady, "seconds_per_call", 1.0)
    with pytest.raises(RemoteError, match=r"^unsteady://x/run cannot be written: no answer within 0.2 s; check the"):
        fedsim.run(tiny_config(**QUICK, output="unsteady://x/run"), progress=False)
    time.sleep(1.0)  # until the thread that was left behind has ended


@pytest.mark.parametrize(
    ("place", "sentence"),
    {
        "s3:/bucket/run": "is not a valid URL; give one such as s3://bucket/folder",
        "s3://": "is not a valid URL; give one such as s3://bucket/folder",
        "http://[": "is not a valid URL .Invalid IPv6 URL.; give one",
        "s4://bucket/run": "has a scheme that neither PyArrow nor fsspec knows .did you mean 's3'\\?.; give s3://",
        "s3://key:word@bucket/run": "^s3://key:...@bucket/run contains a password",
        "file:///proc/run": "^file:///proc/run cannot be written: .*; check the address, the credentials and the network",
        "http://127.0.0.1:9/run": "cannot be written: its kind of URL does not allow it",
        "s3://bucket/run?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1": "cannot be read: .*AWS Error",
    }.items(),
)
def test_mistakes_in_a_url_are_a_sentence(tiny_config, monkeypatch, place, sentence):
    for name, value in {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((ConfigError, RemoteError), match=sentence) as error:
        fedsim.run(tiny_config(**QUICK, output=place), progress=False)
    assert "word@" not in str(error.value) and "\n" not in str(error.value)


def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, url):
    for name in ("../x", "a/../../x", "/etc/x", "..", "C:/x"):
        with pytest.raises(ConfigError, match="points outside the folder"):
            Remote(url).download(name, tmp_path / "x")


def test_paths_are_not_taken_for_urls():
    assert not any(map(is_url, ("runs/a", "/tmp/a", "a:b", "C:/runs", "C:\\runs", "./s3:x")))
    assert all(map(is_url, ("s3://b", "memory://x", "gs:/b/x", Path("s3://b/x"))))
