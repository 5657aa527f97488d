"""Where a run's results go: a path, or a URL that a local folder is copied to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedsim.config import Config
from fedsim.contents import check_usable, what_is_in
from fedsim.destination import Destination, DestinationError, is_url
from fedsim.mirror import Mirror
from fedsim.tracking import RunFolder


@dataclass(frozen=True)
class Place:
    """A folder that a run can be made in, or taken up again."""

    path: Path
    """The local folder that the run works in."""
    location: str
    """What the user calls it."""
    resume: bool
    """Whether there is a run to take up again."""
    mirror: Mirror | None = None
    """What copies the folder to a URL."""


@contextmanager
def open_place(config: Config, resume: bool, note: Callable[[str], None]) -> Iterator[Place]:
    """Check the place that a config names, before anything is started; what is to be copied has been copied on leaving.

    Raises
    ------
    ConfigError
        If it cannot be used as asked.
    DestinationError
        If a URL does not answer; on leaving, with the path of the local folder, which is kept then.
    """
    if config.output is None or not is_url(config.output):
        path = run_path(config, resume)
        resume = resume and what_is_in(path) != "nothing"
        RunFolder.check(path, resume=resume)
        yield Place(path, str(path), resume)
        return
    try:
        destination = Destination(config.output)
        held = destination.holds()
        resume = resume and held != "nothing"
        check_usable(held, destination.url, resume=resume)
        destination.check_writable()
    except DestinationError as error:
        raise DestinationError(
            f"{error}; check the address, the credentials and the network, or give another output=FOLDER"
        ) from error
    with Mirror(destination, note) as mirror:
        if resume:
            mirror.fetch()
        yield Place(mirror.path, destination.url, resume, mirror)


def run_path(config: Config, resume: bool) -> Path:
    """Return the run's folder: ``output``, or a new folder under ``runs``; with ``resume``, the newest that is there."""
    if config.output is not None:
        return Path(config.output)
    base = Path("runs") / (config.name or "run")
    number, path = 1, base
    while path.exists():
        following = base.with_name(f"{base.name}-{number + 1}")
        if resume and not following.exists():
            return path
        number, path = number + 1, following
    return path
