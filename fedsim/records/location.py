"""Run locations: where results go, a local path or a URL that a local folder is synced to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path

from fedsim.configuration.schema import Config
from fedsim.core.errors import ConfigError
from fedsim.records.folder_check import check_usable, what_is_in
from fedsim.records.remote import Remote, RemoteError, is_url
from fedsim.records.run_folder import RunFolder
from fedsim.records.sync import Sync

_OF_A_JOB = "/runtime_resources/working_dir_files/"


@dataclass(frozen=True)
class RunLocation:
    """A folder in which a run can be started or resumed."""

    path: Path
    """Local folder that the run works in."""
    location: str
    """Path or URL as the user gave it."""
    resume: bool
    """Whether it holds a run to resume."""
    mirror: Sync | None = None
    """Sync of the folder to a URL, if any."""


@contextmanager
def open_location(config: Config, resume: bool, note: Callable[[str], None]) -> Iterator[RunLocation]:
    """Check a config's run location before anything starts; a sync is complete when the block ends.

    A new folder under ``runs`` is created at once, so that no other run takes it, and removed if still empty at the end.

    Raises
    ------
    ConfigError
        If it cannot be used as requested.
    RemoteError
        If a URL does not answer; at the end of the block, with the path of the local folder, which is then kept.
    """
    if config.output is None or not is_url(config.output):
        with _local_path(config, resume) as path:
            resume = resume and what_is_in(path) != "nothing"
            RunFolder.check(path, resume=resume)
            if is_thrown_away(path):
                note(f"warning: {thrown_away(path)}; give output=FOLDER with a path elsewhere, or a URL")
            yield RunLocation(path, str(path), resume)
        return
    try:
        destination = Remote(config.output)
        held = destination.holds()
        resume = resume and held != "nothing"
        check_usable(held, destination.url, resume=resume)
        destination.check_writable()
    except RemoteError as error:
        raise RemoteError(
            f"{error}; check the address, the credentials and the network, or set another output=FOLDER"
        ) from error
    with Sync(destination, note) as mirror:
        if resume:
            mirror.fetch()
        yield RunLocation(mirror.path, destination.url, resume, mirror)


def is_thrown_away(path: Path) -> bool:
    """Whether a path lies in the working directory that Ray creates for a job and removes with it."""
    return _OF_A_JOB in path.absolute().as_posix()


def thrown_away(path: Path) -> str:
    """Return the beginning of a warning about it."""
    return f"results go to {path} in the job's own folder ({path.absolute()}), which Ray deletes with the job"


@contextmanager
def _local_path(config: Config, resume: bool) -> Iterator[Path]:
    """Return the run's folder: ``output``, or a new folder under ``runs``; with ``resume``, the newest non-empty one."""
    base = Path("runs") / (config.name or "run")
    following: Path | None = None
    if config.output is not None:
        path = Path(config.output)
        made = not path.exists()
    elif resume and (newest := _newest(base)) is not None:
        path, made = newest, False
    else:
        path, following = _reserve(base)
        made = True
    try:
        yield path
    finally:
        # Leave no gap in the numbers: the search for the newest run starts at the first.
        if made and not (following is not None and following.exists()):
            with suppress(OSError):
                path.rmdir()


def _numbered(base: Path) -> Iterator[Path]:
    """Yield ``base``, ``base-2``, ``base-3`` and so on."""
    yield base
    for number in count(2):
        yield base.with_name(f"{base.name}-{number}")


def _newest(base: Path) -> Path | None:
    """Return the last existing folder that is not empty."""
    there = takewhile(Path.exists, _numbered(base))
    return next((path for path in reversed(list(there)) if what_is_in(path) != "nothing"), None)


def _reserve(base: Path) -> tuple[Path, Path]:
    """Create the first folder that does not exist; return it and the next name. Concurrent runs get one each."""
    paths = _numbered(base)
    try:
        base.parent.mkdir(exist_ok=True)
        for path in paths:
            with suppress(FileExistsError):
                path.mkdir()
                return path, next(paths)
    except OSError as error:
        raise ConfigError(
            f"{base} cannot be written ({error.strerror}); choose another folder with output=FOLDER"
        ) from error
    raise AssertionError("there is always a next one")
