"""A config for one's own data, as commented YAML."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.configuration.text import scalar
from fedsim.data.guessing.label_words import Wording
from fedsim.data.guessing.profile import Profile
from fedsim.data.guessing.roles import Roles
from fedsim.data.splits import TRAIN_STEMS

FIELDS = (("text",), ("a", "b"))
"""Names of a task's fields, for one text and for two."""
LABEL = "label"
HOLDOUT = 0.2
_COLUMN = 34
"""Where comments begin."""
_CLIENTS, _ROWS_PER_CLIENT, COHORT = 100, 20, 10
_SHOWN_LABELS = 5


@dataclass(frozen=True)
class Guess:
    """What a config will say, and why."""

    profile: Profile
    roles: Roles
    labels: tuple[str, ...]
    wording: Wording | None
    model: str
    """``embedded``, a folder, a name on the hub, or ``package:NAME``."""
    folder: str
    """The folder of the data, as the config names it."""
    validation: Path | None
    """The file beside the data that validates, if there is one that fits."""
    max_length: int | None
    """Most tokens of an example where the default would cut many texts."""
    bad_rows: int = 0
    """Rows that a run leaves out: without a text, label or client, or not readable."""
    first_bad: str = ""
    """The first of them, and what is wrong with it."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the task's fields."""
        number = len(self.roles.text.columns)
        return FIELDS[number - 1] if number <= len(FIELDS) else tuple(f"text{place}" for place in range(1, number + 1))

    @property
    def label_column(self) -> Any:
        """Name of the column with the label."""
        return self.roles.label.columns[0].name

    def record(self) -> dict[str, Any]:
        """Return the guess as plain values."""
        client = self.roles.client
        return {
            "rows": self.profile.rows,
            "text": [column.name for column in self.roles.text.columns],
            "label": self.label_column,
            "labels": list(self.labels),
            "client": None if client is None else client.columns[0].name,
            "clients": self.clients,
            "label_words": None if self.wording is None else list(self.wording.words),
            "validation": None if self.validation is None else str(self.validation),
            "bad_rows": self.bad_rows,
            "first_bad_row": self.first_bad or None,
        }

    @property
    def clients(self) -> int:
        """Number of clients, natural or drawn."""
        if self.roles.client is not None:
            return self.roles.client.columns[0].different or 1
        return usual_clients(self.profile.rows)


def left_out(rows: int, first: str) -> str:
    """Return how many rows a run leaves out, and which is the first."""
    return f"leaves out {rows:,} {'row' if rows == 1 else 'rows'}; the first: {first}"


def usual_clients(rows: int) -> int:
    """Return how many clients are drawn for a file of some rows."""
    return max(2, min(_CLIENTS, int(rows * (1 - HOLDOUT)) // _ROWS_PER_CLIENT))


def config_yaml(guess: Guess, command: str, name: str) -> str:
    """Return the config of a guess.

    Parameters
    ----------
    command
        The command line that it was made by.
    name
        File name of the config.
    """
    return joined((run_keys(), _model(guess), _data(guess), _partition(guess), _training(guess)), command, name)


def joined(parts: Iterable[Iterable[str]], command: str, name: str) -> str:
    """Return the lines of a config's parts as its text, below what every config says; see :func:`config_yaml`."""
    name = on_one_line(shlex.quote(name))
    head = (
        f"# Written by: {on_one_line(command)}",
        "# What was guessed, and why, stands beside the keys. Every other key has a default:",
        f"#   fedsim config {name}       prints them all, with their meanings",
        f"#   fedsim partition {name}    shows which client holds what",
        f"#   fedsim run {name}",
    )
    return "\n\n".join("\n".join(part) for part in (head, *parts)) + "\n"


def entry(depth: int, name: str, value: Any = None, comment: str = "") -> str:
    """Return the line of a key, with its comment."""
    line = f"{'  ' * depth}{name}:" + ("" if value is None else f" {scalar(value)}")
    return f"{line:{_COLUMN}} # {on_one_line(comment)}" if comment else line


def on_one_line(text: str) -> str:
    """Return what a comment can hold: no line ends, and none of the characters that YAML has no place for."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))


def run_keys() -> Iterator[str]:
    """Yield the lines of the first keys."""
    yield entry(0, "rounds", 20, "draw a cohort, train locally, aggregate, step")
    yield entry(0, "seed", 0)


def _model(guess: Guess) -> Iterator[str]:
    yield entry(0, "model")
    if guess.model.startswith("package:"):
        yield entry(1, "package", guess.model.removeprefix("package:"))
    elif guess.model == "embedded":
        yield entry(
            1,
            "path",
            guess.model,
            "a tiny model, to try things with; for real figures give fedsim init the folder or name",
        )
        yield f"{'':{_COLUMN}} # of a Hugging Face model (--model), which chooses label words for it as well"
    else:
        yield entry(1, "path", guess.model)
    if guess.wording is None:
        yield entry(1, "head")
        yield entry(
            2,
            "kind",
            "classifier",
            "a linear layer, trained and exchanged with the prompt; kind verbalizer needs a",
        )
        yield f"{'':{_COLUMN}} # template and a word for each label: data.task.template, data.task.label_words"


def file_keys(profile: Profile, folder: str, validation: Path | None) -> Iterator[str]:
    """Yield the lines that say where the data are and how they are read."""
    yield entry(0, "data")
    yield entry(1, "path", folder, "" if Path(folder).is_absolute() else "seen from where fedsim runs")
    yield entry(1, "train_file", profile.path.name, f"{profile.rows:,} rows")
    if validation is not None:
        yield entry(1, "validation_file", validation.name, "lies beside it, with the same columns")
    else:
        yield entry(1, "holdout", HOLDOUT, "share of the rows that validates and is not trained on")
    for key, value in profile.keys.items():
        yield entry(1, key, value, _READING[key])


def _data(guess: Guess) -> Iterator[str]:
    profile, roles = guess.profile, guess.roles
    yield from file_keys(profile, guess.folder, guess.validation)
    called = [
        *zip(guess.fields, (column.name for column in roles.text.columns), strict=True),
        (LABEL, guess.label_column),
    ]
    columns = {name: _place(profile, column) for name, column in called}
    if any(name != column for name, column in columns.items()):
        yield entry(1, "columns", columns)
    if guess.bad_rows:
        yield entry(
            1,
            "on_bad_row",
            "skip",
            left_out(guess.bad_rows, guess.first_bad),
        )
    if guess.max_length is not None:
        yield entry(1, "max_length", guess.max_length, "tokens; 1 in 100 texts is longer, and cut")
    yield entry(1, "task")
    yield entry(2, "name", word(config_name(profile.path)))
    yield entry(2, "fields", list(guess.fields), f"{_names(roles.text.columns)}: {roles.text.why}")
    yield entry(2, "labels", list(guess.labels), f"{guess.label_column}: {roles.label.why}; {_shares(guess)}")
    if guess.wording is not None:
        yield entry(2, "template", guess.wording.template)
        yield entry(2, "label_words", list(guess.wording.words), f"{guess.wording.why}; each is one token of the model")
    yield entry(2, "metric", "accuracy", "or matthews" + (", accuracy_f1" if len(guess.labels) == 2 else ""))


_READING = {
    "encoding": "the file is not UTF-8",
    "delimiter": "what separates its columns",
    "header": "its first line is a row, so that columns are numbered from 0",
}


def _partition(guess: Guess) -> Iterator[str]:
    client = guess.roles.client
    yield entry(0, "partition")
    if client is not None:
        yield entry(1, "kind", "by_column", "natural clients")
        yield entry(1, "column", client.columns[0].name, client.why)
    else:
        yield entry(1, "kind", "dirichlet_label", "no column names clients: each gets its own mix of labels")
        yield entry(1, "clients", guess.clients)
        yield entry(1, "alpha", 1.0, "smaller is more skewed")
    yield ""
    yield entry(0, "sampling")
    yield entry(1, "clients_per_round", min(COHORT, guess.clients), "the cohort")


def _training(guess: Guess) -> Iterator[str]:
    tiny = guess.model == "embedded"
    yield entry(0, "prompt")
    yield entry(1, "length", 8 if tiny else 20, "virtual tokens in front of each layer")
    yield entry(
        1, "position_offset", "paper", "number positions as PEFT does, so that 'fedsim export RUN --to peft' works"
    )
    yield ""
    yield entry(0, "layers")
    yield entry(1, "choose", "all", "or score: only the best half is exchanged (which PEFT has no adapter for)")
    yield ""
    yield entry(0, "client")
    yield entry(1, "epochs", 2)
    yield entry(1, "batch_size", 8)
    yield entry(1, "optimizer")
    yield entry(2, "lr", 0.04 if tiny else 0.03, "the first key to tune; large models take less, about 0.01")
    yield ""
    yield entry(0, "server")
    yield entry(1, "kind", "fedavgm", "or fedpeptao, fedavg, fedadam, scaffold, fedprox and others")


def _names(columns: Any) -> str:
    return " and ".join(column.name for column in columns)


def _shares(guess: Guess) -> str:
    """Return how many rows the most frequent labels have."""
    counts: Mapping[str, int] = guess.roles.label.columns[0].values or {}
    total = sum(counts.values())
    most = sorted(guess.labels, key=lambda label: -counts[label])[:_SHOWN_LABELS]
    rest = ", ..." if len(guess.labels) > len(most) else ""
    return ", ".join(f"{label} {100 * counts[label] / total:.0f} %" for label in most) + rest


def _place(profile: Profile, name: str) -> str | int:
    """Return how the config names a column: by its number where the file has no header."""
    return int(name) if profile.keys.get("header") is False else name


def config_name(data: Path) -> str:
    """Return what a config of a file is called: like the file, or like its folder if it is one of those, as ``train.csv``."""
    stem, folder = data.name.partition(".")[0], data.absolute().parent.name
    return (folder if stem in TRAIN_STEMS else stem) or "own"


def word(text: str) -> str:
    """Return a text as a name of a task."""
    return "".join(character if character.isalnum() or character in "_-" else "_" for character in text)[:100] or "own"
