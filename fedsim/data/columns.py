"""Map a file's columns to the task's fields, and detect whether its first line is a header."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.core.errors import DataError, listed, shown, suggestion
from fedsim.data.config import DataConfig, TaskConfig
from fedsim.data.layouts import Columns, Layout
from fedsim.data.leaf import LABEL, TEXT
from fedsim.data.tasks import LabelIndex


@dataclass(frozen=True)
class Wanted:
    """The columns wanted from a file, and what is known about their location."""

    task: TaskConfig
    config: DataConfig
    layout: Layout

    @property
    def names(self) -> tuple[str, ...]:
        """The task's fields and, where it has labels, its label field."""
        return self.task.columns

    def check_keys(self, column: str | None) -> None:
        """Refuse an entry of ``data.columns`` that nothing uses.

        Parameters
        ----------
        column
            The column whose values are the clients, if any.
        """
        asked = (*self.names, *self.config.keep_columns, *([column] if column is not None else []))
        for name in self.config.columns:
            if name not in asked:
                raise DataError(
                    f"data.columns: nothing uses {shown(name)}{suggestion(name, asked)}; a key of it is a field of task "
                    f"{self.task.name} ({listed(self.task.fields)}), {self._label_words}or a "
                    f"name in data.keep_columns or partition.column"
                )
        if self.config.label_of_file and not self.task.labels:
            raise DataError(f"data.label_of_file gives labels, but task {self.task.name} has none (data.task.labels)")
        if self.config.label_of_file and self.task.label_field in self.config.columns:
            raise DataError("data.label_of_file and data.columns both define the label; drop one of the two")

    @property
    def _label_words(self) -> str:
        return f"its label field ({shown(self.task.label_field)}), " if self.task.labels else ""

    def columns(self, origin: str, names: Sequence[str], *, numbered: bool, fixed: bool, label: bool = True) -> Columns:
        """Return the mapping for columns whose names differ from the task's.

        Parameters
        ----------
        origin
            The file, for messages.
        names
            The file's columns; of JSON, the names in its first row.
        numbered
            Whether columns are numbered because they have no names.
        fixed
            Whether every row has these columns, in this order.
        label
            Whether the rows contain the label.

        Raises
        ------
        DataError
            If ``data.columns`` names a missing column.
        """
        given = {
            name: self._given(origin, name, value, names, numbered, fixed)
            for name, value in self.config.columns.items()
        }
        asked = [name for name in self.names if name not in given and (label or name != self.task.label_field)]
        fields = [name for name in asked if name != self.task.label_field]
        needed_fields = [name for name in fields if name not in self.task.optional_fields]
        own: tuple[Columns, ...] = ({self.task.fields[0]: TEXT, self.task.label_field: LABEL},)
        known = self.layout.columns + (own if numbered and len(self.task.fields) == 1 else ())
        fitting = (
            columns
            for needed in (asked, fields, needed_fields)
            for columns in known
            if all(columns.get(name, name) in names for name in needed)
        )
        chosen = next(fitting, {})
        return {**{name: chosen[name] for name in asked if name in chosen}, **given}

    def _given(
        self, origin: str, name: str, value: str | int, names: Sequence[str], numbered: bool, fixed: bool
    ) -> str:
        """Return the name of the column that ``data.columns`` gives for a field."""
        if isinstance(value, str):
            if fixed and value not in names:
                why = "it has no header, so its columns are numbered" if numbered else f"it has {listed(names)}"
                raise DataError(
                    f"data.columns: {origin} has no column {shown(value)} for {shown(name)}{suggestion(value, names)}; {why}"
                )
            return value
        if not fixed:
            raise DataError(f"data.columns: the fields of {origin} have names; give that of {shown(name)}, not {value}")
        if value >= len(names):
            raise DataError(
                f"data.columns: {origin} has no column {value} for {shown(name)}; it has {len(names)}, counted from 0"
            )
        return names[value]

    def names_without_header(self, cells: Sequence[str]) -> tuple[str, ...] | None:
        """Return column names for a file whose first line is a row; None if the first line is a header.

        Parameters
        ----------
        cells
            The cells of the first line.
        """
        if self.config.header is True or not cells:
            return None
        numbers = tuple(str(number) for number in range(len(cells)))
        known = (self.layout.headerless or {}).get(len(cells))
        if self.config.header is False:
            return known or numbers
        label = self.task.label_field
        default = known.index(label) if known is not None and label in known else None
        place = self.config.columns.get(self.task.label_field, default)
        header = [cell.strip() for cell in cells]
        # pandas writes numbers as the header of unnamed columns
        if not isinstance(place, int) or place >= len(cells) or tuple(header) == numbers or self._names(header):
            return None
        if not self.task.labels:
            return None
        return (known or numbers) if header[place] in LabelIndex(self.task) else None

    def _names(self, header: Sequence[str]) -> bool:
        """Whether a header names wanted columns."""
        given = self.config.columns
        if given:
            return any(isinstance(column, str) and column in header for column in given.values())
        return any(all(columns.get(name, name) in header for name in self.names) for columns in self.layout.columns)
