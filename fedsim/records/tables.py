"""Parquet files that grow by rows, at a cost independent of the rows already written.

Rows are buffered in memory and written by :meth:`ParquetRows.flush`, which rewrites the newest file (tens of thousands of
rows at most) atomically, so neither readers nor crashes see half a file. A full file is sealed and a numbered part
``<name>-0001.parquet`` begins; :meth:`ParquetRows.close` joins the parts. A run of up to ``part_rows`` rows therefore
has one complete file at all times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.core.errors import CheckpointError, listed
from fedsim.records.events import replaced, writing

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

PART_ROWS = 32_768
"""Rows per file; bounds the memory and the cost of a flush."""

_NEXT_PART = b"fedsim.next_part"
_SUFFIX = ".parquet"


class ParquetRows:
    """An append-only table in a Parquet file.

    Parameters
    ----------
    path
        The file, ``<name>.parquet``. Existing rows in it and its parts are kept.
    columns
        Arrow type name of each column, in order. Columns missing from a row are null.
    part_rows
        Rows after which a file is sealed.

    Raises
    ------
    CheckpointError
        If an existing file cannot be read or has other columns. Columns that it lacks are null in its rows: the version that
        wrote it did not know them.
    """

    def __init__(self, path: Path, columns: Mapping[str, str], part_rows: int = PART_ROWS) -> None:
        self.path = path
        self._schema = _schema(columns)
        self._part_rows = part_rows
        self._tail: list[pa.RecordBatch] = []
        self._num_tail = 0
        self._dirty = False
        self._open()

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows; a full part is written at once, to bound memory between flushes.

        Raises
        ------
        ValueError
            If a row has a column that the table lacks.
        """
        import pyarrow as pa

        unknown = sorted({name for row in rows for name in row} - set(self._schema.names))
        if unknown:
            raise ValueError(f"{self.path.name} has no column {unknown[0]!r}; its columns are {self._schema.names}")
        for start in range(0, len(rows), self._part_rows):
            batch = pa.RecordBatch.from_pylist(list(rows[start : start + self._part_rows]), schema=self._schema)
            self._tail.append(batch)
            self._num_tail += batch.num_rows
            self._dirty = True
            if self._num_tail >= self._part_rows:
                self.flush()

    def flush(self) -> None:
        """Write pending rows atomically. A table without rows has no file."""
        if self._dirty:
            tail = self._join_tail()
            self._write(self._part_path(self._part), [tail])
            self._tail, self._dirty = tail.to_batches(), False
        if self._num_tail >= self._part_rows:
            self._part += 1
            self._tail, self._num_tail = [], 0

    def truncate(self, first_round: int, also: str | None = None) -> int:
        """Drop all rows whose ``round`` is at least ``first_round``, or whose column ``also`` is true; return how many."""
        import pyarrow.compute as pc

        self.flush()
        dropped = 0
        for path in _files(self.path):
            next_part = _next_part(self._read_schema(path))
            table = self._read(path)
            stays = pc.less(table["round"], first_round)
            kept = table.filter(stays if also is None else pc.and_(stays, pc.invert(table[also])))
            if kept.num_rows < table.num_rows:
                dropped += table.num_rows - kept.num_rows
                if kept.num_rows == 0 and path != self.path:
                    path.unlink()
                else:
                    self._write(path, [kept], next_part)
        self._open()
        return dropped

    def clear(self, columns: Sequence[str]) -> None:
        """Set some columns to null in all rows."""
        import pyarrow as pa

        self.flush()
        for path in _files(self.path):
            next_part, table = _next_part(self._read_schema(path)), self._read(path)
            for name in columns:
                place = table.schema.get_field_index(name)
                field = table.schema.field(place)
                table = table.set_column(place, field, pa.nulls(table.num_rows, field.type))
            self._write(path, [table], next_part)
        self._open()

    def close(self) -> None:
        """Write pending rows and join the parts into one file, in bounded memory."""
        self.flush()
        files = _files(self.path)
        if len(files) > 1:
            # The joined file lists its parts, so a crash before they are removed duplicates no row.
            self._write(self.path, (table for file in files for table in self._read_slices(file)), self._part + 1)
            for part in files[1:]:
                part.unlink()
            self._open()

    def _open(self) -> None:
        """Determine from the files where the next row goes."""
        files = _files(self.path)
        first_free = _next_part(self._read_schema(self.path)) if files else 0
        for stale in [file for file in files[1:] if _part_number(self.path, file) < first_free]:
            stale.unlink()
        files = _files(self.path)
        self._tail, self._num_tail, self._part = [], 0, 0
        if not files:
            return
        last = self._read(files[-1])
        if last.num_rows < self._part_rows:
            self._tail, self._num_tail = last.to_batches(), last.num_rows
            self._part = _part_number(self.path, files[-1])
        else:
            self._part = max(_part_number(self.path, files[-1]) + 1, first_free)

    def _part_path(self, part: int) -> Path:
        return self.path.with_name(f"{self.path.stem}-{part:04d}{_SUFFIX}") if part else self.path

    def _join_tail(self) -> pa.Table:
        import pyarrow as pa

        return pa.Table.from_batches(self._tail, schema=self._schema).combine_chunks()

    def _write(self, path: Path, tables: Iterable[pa.Table], next_part: int = 1) -> None:
        import pyarrow.parquet as pq

        # A file that was not joined counts as its own single part: parts from number 1 on follow it.
        schema = self._schema.with_metadata({_NEXT_PART: str(next_part).encode()})
        with replaced(path) as file, pq.ParquetWriter(file, schema) as writer:
            for table in tables:
                writer.write_table(table)

    def _read_schema(self, path: Path) -> pa.Schema:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            schema = pq.read_schema(path)
        except (OSError, pa.ArrowException) as error:
            raise CheckpointError(
                f"{path} cannot be read as Parquet ({error}); start a new run with output=FOLDER"
            ) from error
        if not all(
            field.name in self._schema.names and field.equals(self._schema.field(field.name)) for field in schema
        ):
            raise CheckpointError(
                f"{path} has the columns {listed(schema.names)}, not {listed(self._schema.names)}: it is damaged or was "
                "written by another version of fedsim"
            )
        return schema

    def _read(self, path: Path) -> pa.Table:
        import pyarrow.parquet as pq

        self._read_schema(path)
        return _filled(pq.ParquetFile(path).read().replace_schema_metadata(None), self._schema)

    def _read_slices(self, path: Path) -> Iterator[pa.Table]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=self._part_rows):
                yield _filled(pa.Table.from_batches([batch]).replace_schema_metadata(None), self._schema)


def _next_part(schema: pa.Schema) -> int:
    return int((schema.metadata or {}).get(_NEXT_PART, b"1"))


def write_table(path: Path, columns: Mapping[str, str], values: Mapping[str, Sequence[Any] | np.ndarray]) -> None:
    """Write a whole table at once, atomically; a column without values is null.

    Raises
    ------
    ResourceError
        If the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, length = _schema(columns), len(next(iter(values.values())))
    arrays = [
        pa.array(values[field.name], field.type) if field.name in values else pa.nulls(length, field.type)
        for field in schema
    ]
    with writing(path), replaced(path) as file:
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), file)


def read_table(path: Path, columns: Mapping[str, str]) -> pa.Table:
    """Return the rows of a table and its parts, even while a run writes to it; no rows if there is no file yet.

    Raises
    ------
    CheckpointError
        If a file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    first_free, tables = 0, []
    try:
        for file in _files(path):
            table = pq.ParquetFile(file).read()
            if file == path:
                first_free = _next_part(table.schema)
            elif _part_number(path, file) < first_free:
                continue  # its rows are in the joined file
            tables.append(_filled(table.replace_schema_metadata(None), _schema(columns)))
        return pa.concat_tables(tables) if tables else _schema(columns).empty_table()
    except (OSError, pa.ArrowException) as error:
        raise CheckpointError(f"{path} cannot be read as Parquet ({error})") from error


def _filled(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with all columns of a schema, first and in its order; those that it lacks are null."""
    import pyarrow as pa

    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(list(dict.fromkeys([*schema.names, *table.column_names])))


def _schema(columns: Mapping[str, str]) -> pa.Schema:
    import pyarrow as pa

    def type_of(kind: str) -> pa.DataType:
        inner = kind.removeprefix("list<").removesuffix(">")
        return pa.type_for_alias(inner) if inner == kind else pa.list_(pa.type_for_alias(inner))

    return pa.schema([(name, type_of(kind)) for name, kind in columns.items()])


def _files(path: Path) -> list[Path]:
    """Return the files of a table, in row order."""
    parts = path.parent.glob(f"{path.stem}-[0-9]*{_SUFFIX}")
    in_order = sorted(parts, key=lambda part: _part_number(path, part))
    return [path, *in_order] if path.exists() else in_order


def _part_number(path: Path, part: Path) -> int:
    return 0 if part == path else int(part.stem.removeprefix(f"{path.stem}-"))


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Read the columns of a Parquet file as NumPy arrays; missing numbers are NaN.

    Raises
    ------
    CheckpointError
        If the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise CheckpointError(f"{path} cannot be read as Parquet ({error})") from error
    return {name: table[name].to_numpy() for name in table.column_names}
