"""The ``fedsim doctor`` command: run all checks and print one line for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fedsim.configuration.schema import Config, read_config
from fedsim.core.errors import FedsimError
from fedsim.doctor.cluster import address_finding, cluster_findings, node_facts
from fedsim.doctor.environment import environment_findings
from fedsim.doctor.findings import Finding, ok, problem
from fedsim.doctor.work import work_findings
from fedsim.records.remote import is_url

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}
_EMPTY = Path("/dev/null")
"""An empty config file: all keys at their defaults."""


def examine(words: Sequence[str], console: Console) -> list[Finding]:
    """Print one line per check as it is done; return all findings.

    Parameters
    ----------
    words
        A config file, if any, and overrides.
    """
    counts = dict.fromkeys(_STYLES, 0)
    found = []
    for finding in _findings(words):
        found.append(finding)
        counts[finding.status] += 1
        line = Text.assemble((f"{finding.status:<8}", _STYLES[finding.status]), f"{finding.what}: {finding.text}")
        console.print(line, soft_wrap=True)
    console.print(f"problems: {counts['problem']}, warnings: {counts['warning']}, ok: {counts['ok']}")
    return found


def _findings(words: Sequence[str]) -> Iterator[Finding]:
    own = node_facts()
    yield ok("versions", ", ".join(f"{package} {version}" for package, version in own.versions.items()))
    named = bool(words) and ("=" not in words[0] or Path(words[0]).is_file())
    path, overrides = (Path(words[0]), words[1:]) if named else (_EMPTY, words)
    try:
        config: Config | None = read_config(path, overrides)
    except FedsimError as error:
        config = None
        yield problem("config", str(error))
    starts_ray = config is None or (config.executor == "ray" and config.ray.address is None)
    output = (config.output if config else None) or "runs"
    folder = None if is_url(output) else Path(output)
    yield from environment_findings(own.machine, folder, starts_ray=starts_ray)
    if config is None:
        return
    if named:
        yield ok("config", f"{path} is valid")
        yield from work_findings(config)
    if config.executor == "local":
        return
    yield address_finding(config.ray)
    if config.ray.address is not None:
        yield ok("paths", "only the driver reads model and data, and writes results; other nodes need neither")
        yield from cluster_findings(config.ray, own)
