"""Where a run's results go: a path, or a URL that a local folder is copied to."""

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
    """A folder that a run can be made in, or taken up again."""

    path: Path
    """The local folder that the run works in."""
    location: str
    """What the user calls it."""
    resume: bool
    """Whether there is a run to take up again."""
    mirror: Sync | None = None
    """What copies the folder to a URL."""


@contextmanager
def open_location(config: Config, resume: bool, note: Callable[[str], None]) -> Iterator[RunLocation]:
    """Check the place that a config names, before anything is started; what is to be copied has been copied on leaving.

    A new folder under ``runs`` is made at once, so that no other run takes it; if it is empty on leaving, it is removed.

    Raises
    ------
    ConfigError
        If it cannot be used as asked.
    DestinationError
        If a URL does not answer; on leaving, with the path of the local folder, which is kept then.
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
            f"{error}; check the address, the credentials and the network, or give another output=FOLDER"
        ) from error
    with Sync(destination, note) as mirror:
        if resume:
            mirror.fetch()
        yield RunLocation(mirror.path, destination.url, resume, mirror)


def is_thrown_away(path: Path) -> bool:
    """Tell whether a path lies in the folder that Ray makes for the files of a job, and removes with them."""
    return _OF_A_JOB in path.absolute().as_posix()


def thrown_away(path: Path) -> str:
    """Say so, as the beginning of a sentence."""
    return f"results go to {path} in the job's own folder ({path.absolute()}), which Ray throws away with the job"


@contextmanager
def _local_path(config: Config, resume: bool) -> Iterator[Path]:
    """Give the run's folder: ``output``, or a new folder under ``runs``; with ``resume``, the newest that holds anything."""
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
        # No gap in the numbers: the newest run is looked for from the first one on.
        if made and not (following is not None and following.exists()):
            with suppress(OSError):
                path.rmdir()


def _numbered(base: Path) -> Iterator[Path]:
    """Yield ``base``, ``base-2``, ``base-3`` and so on."""
    yield base
    for number in count(2):
        yield base.with_name(f"{base.name}-{number}")


def _newest(base: Path) -> Path | None:
    """Return the last one of those that are there and hold anything."""
    there = takewhile(Path.exists, _numbered(base))
    return next((path for path in reversed(list(there)) if what_is_in(path) != "nothing"), None)


def _reserve(base: Path) -> tuple[Path, Path]:
    """Make the first one that is not there, and return it and the one after it; two runs at once get one each."""
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
