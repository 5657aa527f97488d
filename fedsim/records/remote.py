"""A remote folder (``s3://``, ``gs://``, ``memory://``, ...), read and written file by file with timeouts.

PyArrow's file systems serve ``s3``, ``gs``, ``abfs``, ``hdfs`` and ``file``; all other schemes go to fsspec.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import threading
import uuid
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from fedsim.core.errors import ConfigError, ResourceError, suggestion
from fedsim.records.folder_check import LONGEST_START_BYTES, Held, what_log_says

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

T = TypeVar("T")

ANSWER_SECONDS = 30.0
"""Time limit for an answer: a listing, a removal, the first byte of a file."""
_SLOWEST_BYTES_PER_SECOND = 2**18
_CHUNK_BYTES = 2**22
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_PUT_AT_ONE_STROKE = ("s3", "gs", "gcs", "abfs", "az", "adl", "oci")
"""Object stores, where a file appears only once complete. Elsewhere it is written to a temporary name and renamed."""


def is_url(place: object) -> bool:
    """Whether a text is a URL rather than a path; ``s3:/bucket``, a URL that went through ``Path``, counts as one."""
    return _URL.match(str(place)) is not None


def refuse_url(path: Path | None, option: str) -> None:
    """Refuse a URL where a local path is required.

    Raises
    ------
    ConfigError
        Naming ``option``.
    """
    if path is not None and is_url(path):
        raise ConfigError(f"{option} {path}: this must be a local path; copy it to the URL afterwards")


class RemoteError(ResourceError):
    """A remote does not answer, or answers with an error."""


class Remote:
    """A remote folder.

    Attributes
    ----------
    url
        As given, without a slash at the end.

    Raises
    ------
    ConfigError
        If the URL is malformed, holds a password, or is of an unknown kind.
    RemoteError
        If the remote does not answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url if "?" in url else url.rstrip("/")
        _check(url)
        self._system, self._root = self._within(ANSWER_SECONDS, "be opened", lambda: _open(url))
        self._atomic = urlsplit(url).scheme.lower() in _PUT_AT_ONE_STROKE
        self._folders: set[str] = set()

    def holds(self) -> Held:
        """Classify the folder: absent or empty, a run, or anything else."""

        def look() -> Held:
            from pyarrow.fs import FileSelector, FileType

            kind = self._system.get_file_info(self._root).type
            if kind == FileType.NotFound:
                return "nothing"
            if kind == FileType.File:
                return "foreign"
            inside = self._system.get_file_info(FileSelector(self._root, allow_not_found=True))
            if all(_is_passing(info.base_name) for info in inside):
                return "nothing"
            if not any(info.base_name == "metrics.jsonl" and info.type == FileType.File for info in inside):
                return "foreign"
            with self._system.open_input_stream(f"{self._root}/metrics.jsonl") as stream:
                head = stream.read(LONGEST_START_BYTES)
            return what_log_says(head, {info.base_name for info in inside if not _is_passing(info.base_name)})

        return self._within(ANSWER_SECONDS, "be read", look)

    def check_writable(self) -> None:
        """Check write access by writing and removing a small file."""
        name = f".{uuid.uuid4().hex}.tmp"

        def write() -> None:
            self._make_folder(self._root)
            with self._system.open_output_stream(f"{self._root}/{name}") as stream:
                stream.write(b"fedsim")
            self._system.delete_file(f"{self._root}/{name}")

        self._within(ANSWER_SECONDS, "be written", write)

    def files(self) -> dict[str, int]:
        """Return the paths of all files within the folder, relative to it, with their sizes in bytes."""

        def look() -> dict[str, int]:
            from pyarrow.fs import FileSelector, FileType

            found = self._system.get_file_info(FileSelector(self._root, recursive=True, allow_not_found=True))
            inside = [info for info in found if info.type == FileType.File and not _is_passing(info.base_name)]
            return {_relative(info.path, self._root): info.size or 0 for info in inside}

        return self._within(ANSWER_SECONDS, "be read", look)

    def download(self, name: str, path: Path, size: int | None = None) -> None:
        """Download one file.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        """
        _refuse_way_out(name, self.url)

        def copy() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._system.open_input_stream(f"{self._root}/{name}") as stream, path.open("wb") as file:
                while chunk := stream.read(_CHUNK_BYTES):
                    file.write(chunk)

        self._within(_transfer_seconds(size), f"be read ({name})", copy, passed_on=FileNotFoundError)

    def read(self, name: str, start: int, most: int) -> bytes | None:
        """Return up to ``most`` bytes of a file from ``start``; None if there is no such file, nothing beyond its end."""

        def part() -> bytes | None:
            try:
                with self._system.open_input_file(f"{self._root}/{name}") as file:
                    if start >= file.size():
                        return b""
                    file.seek(start)
                    return bytes(file.read(most))
            except FileNotFoundError:
                return None

        return self._within(_transfer_seconds(most), f"be read ({name})", part)

    def upload(self, path: Path, name: str) -> None:
        """Upload one file; readers see either all of it or what was there before.

        Raises
        ------
        FileNotFoundError
            If ``path`` is gone.
        """
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self._within(_transfer_seconds(size), f"be written ({name})", lambda: self._put(file, size, name))

    def remove(self, name: str) -> None:
        """Remove one file, if it exists."""

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._system.delete_file(f"{self._root}/{name}")

        self._within(ANSWER_SECONDS, f"be written ({name})", remove)

    def _put(self, file: Any, size: int, name: str) -> None:
        target = f"{self._root}/{name}"
        folder, _, base = target.rpartition("/")
        self._make_folder(folder)
        # A log that grows meanwhile is copied up to its length at the start.
        written = target if self._atomic else f"{folder}/.{base}.tmp"
        with self._system.open_output_stream(written) as stream:
            while size > 0 and (chunk := file.read(min(size, _CHUNK_BYTES))):
                stream.write(chunk)
                size -= len(chunk)
        if written != target:
            self._system.move(written, target)

    def _make_folder(self, folder: str) -> None:
        # Object stores have no folders: creating one would leave an empty object behind.
        if not self._atomic and folder not in self._folders:
            self._system.create_dir(folder, recursive=True)
            self._folders.add(folder)

    def _within(self, seconds: float, what: str, work: Callable[[], T], passed_on: type[Exception] = ConfigError) -> T:
        """Run ``work`` in a thread, abandoned if it takes too long, and turn its errors into one sentence."""
        answers: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                answers.put((work(), None))
            except Exception as error:
                answers.put((None, error))

        threading.Thread(target=run, name="fedsim-destination", daemon=True).start()
        try:
            result, error = answers.get(timeout=seconds)
        except queue.Empty:
            raise RemoteError(f"{self.url} cannot {what}: no answer within {seconds:.3g} s") from None
        if isinstance(error, passed_on):
            raise error
        if isinstance(error, NotImplementedError):
            raise RemoteError(f"{self.url} cannot {what}: its kind of URL does not allow it") from error
        if error is not None:
            raise RemoteError(f"{self.url} cannot {what}: {_first_sentence(error)}") from error
        return result  # type: ignore[return-value]


def _check(url: str) -> None:
    try:
        parts = urlsplit(url)
    except ValueError as error:  # an invalid host in brackets
        raise ConfigError(
            f"{url} is not a valid URL ({error}); give one such as s3://bucket/folder, or a path"
        ) from None
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", url) or not (parts.netloc or parts.path.strip("/")):
        raise ConfigError(f"{url} is not a valid URL; give one such as s3://bucket/folder, or a path")
    if parts.password:
        shown = url.replace(f":{parts.password}@", ":...@", 1)
        raise ConfigError(
            f"{shown} contains a password, which would be recorded with the run; pass credentials in environment variables"
        )


def _open(url: str) -> tuple[FileSystem, str]:
    """Return the file system and the folder's path in it."""
    import pyarrow as pa
    from pyarrow import fs

    try:
        system, root = fs.FileSystem.from_uri(url)
    except pa.ArrowInvalid as error:
        if "nrecognized filesystem type" not in str(error):
            raise
    else:
        return system, root.rstrip("/")
    import fsspec

    scheme = urlsplit(url).scheme
    try:
        inner, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ConfigError(f"{scheme}:// needs a package that is not installed: {_first_sentence(error)}") from None
    except ValueError as error:
        known = sorted({"s3", "gs", "file", *fsspec.available_protocols()})
        if scheme in known:
            raise
        raise ConfigError(
            f"{url} has a scheme that neither PyArrow nor fsspec knows{suggestion(scheme, known)}; give s3://, gs://, "
            "file:// or a path"
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(inner)), root.rstrip("/")


def _relative(path: str, root: str) -> str:
    # Some file systems list paths with a leading slash.
    return path.strip("/").removeprefix(root.strip("/")).lstrip("/")


def _refuse_way_out(name: str, url: str) -> None:
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/") or "\\" in name or ":" in parts[0]:
        raise ConfigError(
            f"{url} holds a file {name!r}, whose name points outside the folder, so it is not a fedsim run"
        )


def _is_passing(name: str) -> bool:
    """Whether a file is left over from an upload before its rename, or from a write check."""
    return name.startswith(".") and name.endswith(".tmp")


def _transfer_seconds(size: int | None) -> float:
    return ANSWER_SECONDS + (size or 0) / _SLOWEST_BYTES_PER_SECOND


def _first_sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
