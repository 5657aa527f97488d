"""Parquet and Arrow files: every column type is decoded, or refused by name where needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsim.core.errors import shown
from fedsim.data.examples import NumberedRows, Unread
from fedsim.data.tasks import ClassNumber

_JSON = "arrow.json"
_AS_THEY_ARE = {"arrow.uuid", "arrow.bool8"}
"""Extension types that PyArrow converts to Python values itself."""
_PREFIX = "ARROW:extension:name"


def parquet_rows(path: Path) -> tuple[list[str], NumberedRows]:
    """Return the names of the columns of a Parquet file, and its rows."""
    import pyarrow.parquet as pq

    with _arrow_errors(), pq.ParquetFile(path) as file:
        names = list(file.schema_arrow.names)

    def rows() -> NumberedRows:
        with _arrow_errors(), pq.ParquetFile(path) as file:
            yield from _batch_rows(file.schema_arrow, file.iter_batches())

    return names, rows()


def arrow_rows(path: Path) -> tuple[list[str], NumberedRows]:
    """Return the names of the columns of an Arrow IPC file, or stream (what ``datasets`` saves), and its rows."""
    with _opened(path) as (schema, _):
        names = list(schema.names)

    def rows() -> NumberedRows:
        with _opened(path) as (schema, batches):
            yield from _batch_rows(schema, batches)

    return names, rows()


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    import pyarrow as pa

    with _arrow_errors(), pa.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file:
            file = pa.ipc.open_file(source)
            yield file.schema, (file.get_batch(i) for i in range(file.num_record_batches))
        else:
            stream = pa.ipc.open_stream(source)
            yield stream.schema, stream


@contextmanager
def _arrow_errors() -> Iterator[None]:
    """Turn PyArrow's errors for damaged files, of nearly any type, into a ValueError."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowInvalid):
        raise  # as readers of files expect them
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError((str(error).strip() or type(error).__name__).splitlines()[0]) from error


def _batch_rows(schema: Any, batches: Any) -> NumberedRows:
    repeated = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"it has column {shown(repeated)} twice")
    features = _features(schema)
    decoders = {field.name: _decoder(field, features.get(field.name)) for field in schema}
    number = 0
    for batch in batches:
        batch.validate(full=True)  # offsets of a damaged file may point outside of it, which the reader does not check
        columns = {name: decoders[name](batch.column(place)) for place, name in enumerate(schema.names)}
        for row in range(batch.num_rows):
            number += 1
            yield number, {name: values[row] for name, values in columns.items()}


_Decoder = Callable[[Any], list[Any]]


def _decoder(field: Any, feature: dict[str, Any] | None) -> _Decoder:
    """Return a function that converts a column's array to Python values."""
    import pyarrow as pa

    kind = (feature or {}).get("_type")
    if kind == "ClassLabel":
        names = feature["names"] if feature is not None else []
        return lambda array: [ClassNumber.of(value, names) for value in array.to_pylist()]
    extension = (
        getattr(field.type, "extension_name", None) or (field.metadata or {}).get(_PREFIX.encode(), b"").decode()
    )
    of_texts = pa.types.is_string(field.type) or pa.types.is_large_string(field.type) or extension
    if extension == _JSON or (kind == "Json" and of_texts):
        return lambda array: [_from_json(field.name, value) for value in array.to_pylist()]
    unread = Unread(extension or str(field.type))
    if (extension and extension not in _AS_THEY_ARE) or _holds_extension(field.type):
        return lambda array: _marked(array, unread)
    return lambda array: _plain(array, unread)


def _plain(array: Any, unread: Unread) -> list[Any]:
    import pyarrow as pa

    try:
        return array.to_pylist()
    except pa.ArrowInvalid:
        if not pa.types.is_timestamp(array.type):
            raise
        return _marked(array, unread)  # its time zone is invalid


def _marked(array: Any, unread: Unread) -> list[Any]:
    return [unread if there else None for there in array.is_valid().to_pylist()]


def _holds_extension(kind: Any) -> bool:
    """Whether a nested or encoded type contains an extension type, whose values would come out in storage form."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        inner = [kind.value_type]
    else:
        inner = [kind.field(place).type for place in range(kind.num_fields)]
    return any(isinstance(each, pa.BaseExtensionType) or _holds_extension(each) for each in inner)


def _from_json(column: str, text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"column {shown(column)} has type json, but holds {shown(text, 40)}") from None


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Return the column features that ``datasets`` wrote into a file's metadata."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return {}
    try:
        features = (json.loads(raw).get("info") or {}).get("features") or {}
        found = {
            column: feature
            for column, feature in features.items()
            if isinstance(feature, dict) and column in schema.names
        }
        for feature in found.values():
            if feature.get("_type") == "ClassLabel":
                feature["names"]
    except (ValueError, AttributeError, KeyError, RecursionError):
        raise ValueError("its metadata 'huggingface' describe no columns as the library datasets does") from None
    for column, feature in found.items():
        names = feature.get("names")
        named = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if feature.get("_type") == "ClassLabel" and not named:
            raise ValueError(f"its metadata 'huggingface' name no classes for column {shown(column)}")
    return found
