"""Cells that are commands of their own: the tests marked for a GPU, and whole runs on Ray with fractions of one."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import torch

from benchmarks.gpu_report.figures import Figure
from benchmarks.gpu_report.shapes import ModelSize, random_model
from clients.backbone.loading import load_tokenizer
from clients.config import ModelConfig

ROOT = Path(__file__).resolve().parents[2]
LEAST_SECONDS = 60.0
"""Even at the end of the budget, so that a command that has begun can end."""
ROUNDS, COHORT, EXAMPLES = 4, 32, 16


class CommandError(Exception):
    """A command failed, or took too long."""


def gpu_tests(seconds_left: float) -> list[Figure]:
    """Run the tests marked for a GPU; return how many passed, failed and were skipped."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command.append("tests/clients/test_on_gpu.py")
        # pytest's own status is 1 where tests fail, which the counts tell.
        _, said = _run(command, seconds_left, allowed=(0, 1))
        if not report.exists():
            raise CommandError(f"pytest left no report: {said}")
        return counts_of(report.read_text(encoding="utf-8"))


def counts_of(junit_xml: str) -> list[Figure]:
    """Return the counts of a report of pytest; the note names the tests that failed."""
    cases = list(ElementTree.fromstring(junit_xml).iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    names = ", ".join(str(case.get("name")) for case in bad)
    return [
        Figure("passed", "tests", (float(len(cases) - len(bad) - skipped),)),
        Figure("failed", "tests", (float(len(bad)),), aims={"value": 0.0}, note=names),
        Figure("skipped", "tests", (float(skipped),)),
    ]


def ray_runs(size: ModelSize, device: torch.device, actors: Sequence[int], seconds_left: float) -> list[Figure]:
    """Run ``fedsim run`` with one actor that has the whole GPU, and with several that share it.

    Parameters
    ----------
    actors
        Of each run; the first is what the others are compared with.
    """
    figures: list[Figure] = []
    until = time.monotonic() + seconds_left
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        save_readable(size, device, model)
        for count in actors:
            out = Path(folder) / f"run-{count}"
            words = [*run_words(size, model, count, on_gpu=device.type == "cuda"), f"output={out}"]
            share = f"1/{count} of the GPU each" if device.type == "cuda" else "on CPUs"
            name = f"{count} actor{'s' if count > 1 else ''}, {share}"
            try:
                _run([sys.executable, "-m", "fedsim", "run", *words], until - time.monotonic())
                figures.append(round_figure(name, out / "metrics.jsonl", figures[0].name if figures else ""))
            except CommandError as error:  # what the other run has shown is kept
                figures.append(Figure(name, "s a round", note=str(error)))
    return figures


def save_readable(size: ModelSize, device: torch.device, folder: Path) -> None:
    """Write a random model of this shape with the tokenizer of the embedded model, and as many words as it knows."""
    tokenizer = load_tokenizer(ModelConfig())
    words = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id}
    words |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = random_model(size.family, {**size.values, **words}, device)
    model.to("cpu", torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run_words(size: ModelSize, model: Path, actors: int, *, on_gpu: bool) -> list[str]:
    """Return config and overrides of a run in which every round trains 32 clients for two steps."""
    place = (
        ["model.device=cuda", "ray.num_gpus=1", f"ray.num_gpus_per_actor=1/{actors}", f"ray.actors={actors}"]
        if on_gpu
        else ["model.device=cpu", f"ray.num_cpus={actors}", f"ray.actors={actors}"]
    )
    return [
        str(ROOT / "configs/quickstart.yaml"),
        f"rounds={ROUNDS}",
        f"model.path={model}",
        "model.head.kind=classifier",
        "model.dtype=bfloat16",
        f"prompt.length={size.prompt_length}",
        "layers=",
        "layers.choose=all",
        "server.kind=fedavg",
        "partition=",
        "partition.kind=iid",
        f"partition.clients={2 * COHORT}",
        f"data.train_examples={2 * COHORT * EXAMPLES}",
        f"sampling.clients_per_round={COHORT}",
        f"group_size={COHORT // actors}",
        "client.epochs=1",
        f"evaluation.every={ROUNDS}",
        "tracking.plots=false",
        *place,
    ]


def round_figure(name: str, metrics: Path, base: str) -> Figure:
    """Return the training seconds of the rounds after the first, from a run's events; the note tells its start."""
    events = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    rounds = [event for event in events if event["event"] == "round"]
    if len(rounds) < 2:
        raise CommandError(f"a run of {name} ended after {len(rounds)} of {ROUNDS} rounds")
    failed = sum(event["clients_failed"] for event in rounds)
    if failed:
        raise CommandError(f"{failed} clients of a run of {name} failed")
    times = tuple(event["seconds_train"] for event in rounds[1:])
    updates = statistics.median(event["clients_ok"] for event in rounds) / statistics.median(times)
    note = f"{updates:.1f} clients/s; first round after {rounds[0]['seconds']:.1f} s"
    return Figure(name, "s a round", times, base=base, note=note)


def _run(command: Sequence[str], seconds: float, allowed: tuple[int, ...] = (0,)) -> tuple[int, str]:
    """Run a command in the checkout; return its status and the last line that it printed."""
    limit = max(LEAST_SECONDS, seconds)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=_environment(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        raise CommandError(f"{' '.join(command[1:4])} had not ended after {limit:.0f} s") from None
    finally:
        if process.poll() is None:
            _end(process)
    lines = [line.strip() for line in printed.splitlines() if line.strip()] or ["nothing was printed"]
    if process.returncode not in allowed:
        raise CommandError(f"{' '.join(command[1:4])} ended with status {process.returncode}: {lines[-1][:300]}")
    return process.returncode, lines[-1]


def _end(process: subprocess.Popen[str]) -> None:
    """Interrupt a run, which ends its Ray with it; kill it where that takes too long."""
    process.terminate()
    try:
        process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its own session: it and what it started
        process.communicate()


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with this checkout first among the places of imports."""
    paths = [str(ROOT), *filter(None, [own.get("PYTHONPATH")])]
    return {**own, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
