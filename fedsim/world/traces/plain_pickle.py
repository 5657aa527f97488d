"""Reads pickles that hold dict, list, str, int, float, bool and None alone, without running any of pickle's machinery.

A pickle is a program, and Python's reader runs it. This one knows the instructions that put plain values together and no
other: none that looks up a name, makes an object or calls anything.
"""

from __future__ import annotations

import pickletools
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core.errors import DataError

_MARK = object()
_KINDS = {code.code: code.name for code in pickletools.opcodes}
_FLOATS = re.compile(rb"(?:G.{8})+", re.DOTALL)
"""Floats one after the other: each is its instruction and 8 bytes, and behind these is the next instruction."""
_FLOAT = np.dtype([("instruction", "u1"), ("value", ">f8")])


def read_plain_pickle(path: Path) -> Any:
    """Return the value of a pickle file.

    Raises
    ------
    DataError
        If it holds anything but plain values, or is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    reader = _Reader(data)
    try:
        return reader.value()
    except _RefusedError as refused:
        raise DataError(
            f"{path}: byte {refused.args[1]:,}: a pickle may hold dict, list, str, int, float, bool and None alone, but this "
            f"one has the instruction {refused.args[0]}; save plain Python values, or use CSV"
        ) from None
    except (
        IndexError,
        KeyError,
        ValueError,
        TypeError,
        struct.error,
        RecursionError,
        MemoryError,
        OverflowError,
    ) as error:
        raise DataError(f"{path} is not a whole pickle file ({type(error).__name__} at byte {reader.at:,})") from None


class _RefusedError(Exception):
    """An instruction that is not of plain values: its name, and where it is."""


class _Reader:
    """Puts the value of a pickle together.

    Attributes
    ----------
    at
        Position in the data.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def value(self) -> Any:
        """Return the value."""
        data, known = self._data, _INSTRUCTIONS
        while True:
            code = data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                (value,) = self._stack
                if value is _MARK:
                    raise ValueError("no value")
                return value
            instruction = known.get(code)
            if instruction is None:
                raise _RefusedError(_KINDS.get(chr(code), f"0x{code:02x}"), self.at - 1)
            instruction(self)

    def _take(self, count: int) -> bytes:
        start, self.at = self.at, self.at + count
        if count < 0 or self.at > len(self._data):
            raise IndexError
        return self._data[start : self.at]

    def _line(self) -> bytes:
        end = self._data.index(b"\n", self.at)
        line, self.at = self._data[self.at : end], end + 1
        return line

    def _number(self, form: struct.Struct) -> Any:
        (number,) = form.unpack_from(self._data, self.at)
        self.at += form.size
        return number

    def _push_floats(self) -> None:
        """Push a float and all that follow it; files of traces hold little else."""
        found = _FLOATS.match(self._data, self.at - 1)
        if found is None:
            raise IndexError
        floats = np.frombuffer(self._data, _FLOAT, len(found[0]) // _FLOAT.itemsize, self.at - 1)
        self.at = found.end()
        self._stack += floats["value"].tolist()

    def _since_mark(self) -> list[Any]:
        stack = self._stack
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise IndexError
        items = stack[at + 1 :]
        del stack[at:]
        return items

    def _push_int(self) -> None:
        text = self._line()
        self._stack.append({b"00": False, b"01": True}.get(text) if text in (b"00", b"01") else int(text))

    def _push_quoted(self) -> None:
        text = self._line().decode("ascii")
        if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"" or "\\" in text:
            raise ValueError("a quoted text")
        self._stack.append(text[1:-1])

    def _append(self, items: list[Any]) -> None:
        _of_type(self._stack[-1], list).extend(items)

    def _set(self, items: list[Any]) -> None:
        target = _of_type(self._stack[-1], dict)
        target.update(zip(items[0::2], items[1::2], strict=True))

    def _pop(self, count: int) -> list[Any]:
        items = self._stack[-count:]
        if len(items) < count or any(item is _MARK for item in items):
            raise IndexError
        del self._stack[-count:]
        return items

    def _put(self, place: int) -> None:
        if self._stack[-1] is _MARK:
            raise ValueError("a mark is no value")
        self._memo[place] = self._stack[-1]


def _of_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(kind.__name__)
    return value


def _push(make: Callable[[_Reader], Any]) -> Callable[[_Reader], None]:
    return lambda reader: reader._stack.append(make(reader))


def _as_dict(reader: _Reader) -> None:
    items = reader._since_mark()
    reader._stack.append({})
    reader._set(items)


_INT1, _INT2, _INT4, _UINT4, _UINT8 = (struct.Struct(form) for form in ("<B", "<H", "<i", "<I", "<Q"))
_INSTRUCTIONS: dict[int, Callable[[_Reader], Any]] = {
    ord("\x80"): lambda r: r._take(1),  # PROTO
    ord("\x95"): lambda r: r._take(8),  # FRAME
    ord("("): _push(lambda r: _MARK),
    ord("}"): _push(lambda r: {}),
    ord("]"): _push(lambda r: []),
    ord("d"): _as_dict,
    ord("l"): _push(lambda r: r._since_mark()),
    ord("a"): lambda r: r._append(r._pop(1)),
    ord("e"): lambda r: r._append(r._since_mark()),
    ord("s"): lambda r: r._set(r._pop(2)),
    ord("u"): lambda r: r._set(r._since_mark()),
    ord("N"): _push(lambda r: None),
    ord("\x88"): _push(lambda r: True),
    ord("\x89"): _push(lambda r: False),
    ord("I"): _Reader._push_int,
    ord("J"): _push(lambda r: r._number(_INT4)),
    ord("K"): _push(lambda r: r._number(_INT1)),
    ord("M"): _push(lambda r: r._number(_INT2)),
    ord("L"): _push(lambda r: int(r._line().rstrip(b"L"))),
    ord("\x8a"): _push(lambda r: int.from_bytes(r._take(r._number(_INT1)), "little", signed=True)),
    ord("F"): _push(lambda r: float(r._line())),
    ord("G"): _Reader._push_floats,
    ord("V"): _push(lambda r: r._line().decode("raw-unicode-escape")),
    ord("X"): _push(lambda r: r._take(r._number(_UINT4)).decode("utf-8", "surrogatepass")),
    ord("\x8c"): _push(lambda r: r._take(r._number(_INT1)).decode("utf-8", "surrogatepass")),
    ord("\x8d"): _push(lambda r: r._take(r._number(_UINT8)).decode("utf-8", "surrogatepass")),
    ord("S"): _Reader._push_quoted,
    ord("U"): _push(lambda r: r._take(r._number(_INT1)).decode("ascii")),
    ord("T"): _push(lambda r: r._take(r._number(_INT4)).decode("ascii")),
    ord("p"): lambda r: r._put(int(r._line())),
    ord("q"): lambda r: r._put(r._number(_INT1)),
    ord("r"): lambda r: r._put(r._number(_UINT4)),
    ord("\x94"): lambda r: r._put(len(r._memo)),
    ord("g"): _push(lambda r: r._memo[int(r._line())]),
    ord("h"): _push(lambda r: r._memo[r._number(_INT1)]),
    ord("j"): _push(lambda r: r._memo[r._number(_UINT4)]),
}
"""The instructions of plain values, by their byte; all others are refused."""
