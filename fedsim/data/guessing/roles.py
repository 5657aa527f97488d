"""Which columns are text, label and clients: by what they hold first, then by their names; a tie is left to the user."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedsim.core.errors import DataError, listed, shown
from fedsim.data.guessing.profile import Column, Profile

NONE = "none"
"""Answer to ``--client``: there are no natural clients."""
_PROSE_WORDS = 3.0
"""Words from which on, on average, a column holds running text."""
_FEW_LABELS = 20
"""Classes up to which a column whose name says nothing may be the label."""
_MOST_LABELS = 200
_LEAST_ROWS = 2
"""Rows that a label, or a client, has at least, on average."""
_TEXTS = (
    "text", "sentence", "review", "comment", "content", "body", "message", "tweet", "utterance", "document", "query",
    "question",
)  # fmt: skip
_LABELS = (
    ("label", "labels", "class", "target", "y", "gold", "gold label"),
    (
        "sentiment", "category", "polarity", "rating", "stars", "star", "score", "intent", "topic", "emotion", "answer", "tag",
        "type",
    ),
)  # fmt: skip
"""Names of labels; those of the first group come before those of the second."""
_CLIENTS = (
    "client", "user", "author", "writer", "speaker", "customer", "device", "site", "hospital", "clinic", "shop", "store",
    "school", "reviewer", "annotator", "person", "patient", "account", "owner", "worker", "subject", "participant",
)  # fmt: skip
_PAIRS = (
    ("a", "b"), ("sentence1", "sentence2"), ("text1", "text2"), ("text a", "text b"), ("sentence a", "sentence b"),
    ("premise", "hypothesis"), ("question", "sentence"), ("question", "passage"), ("question1", "question2"),
    ("question", "context"),
)  # fmt: skip
_ENDINGS = re.compile(r"[ _-]?(?:id|name|no|number|nr|key|code)s?$")


@dataclass(frozen=True)
class Role:
    """Columns with a part in the task, and why."""

    columns: tuple[Column, ...]
    why: str


@dataclass(frozen=True)
class Roles:
    """The parts of a file's columns."""

    text: Role
    label: Role
    client: Role | None
    might_be_clients: tuple[Column, ...] = ()
    """Columns that could be clients as well, if nothing says that one is."""


def choose_roles(
    profile: Profile, text: Sequence[str] = (), label: str | None = None, client: str | None = None
) -> Roles:
    """Return the parts of a file's columns: those that the options name, and for the others the only ones that fit.

    Raises
    ------
    DataError
        If nothing fits, or two columns fit equally well; the message names the option that settles it.
    """
    named = [name for name in (*text, label, client) if name not in (None, NONE)]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{twice}: one column cannot be two of --text, --label and --client")
    taken = set(named)

    def free() -> list[Column]:
        return [
            column for column in profile.columns if column.name not in taken and not column.unread and column.filled
        ]

    given_texts = tuple(profile.column(name, "--text") for name in text)
    texts = Role(given_texts, "--text") if text else _texts(profile, free())
    taken |= {column.name for column in texts.columns}
    given = None if label is None else Role((profile.column(label, "--label"),), "--label")
    labels = given or _label(profile, free(), client is None)
    _check_label(profile, labels)
    taken |= {column.name for column in labels.columns}
    if client == NONE:
        return Roles(texts, labels, None)
    if client is not None:
        return Roles(texts, labels, Role((profile.column(client, "--client"),), "--client"))
    return Roles(texts, labels, *_client(profile, free()))


def choose_client(profile: Profile, taken: Sequence[str], client: str | None) -> Role | None:
    """Return the column of the clients: that of the option, or the one that is called like it; None if there is none.

    Parameters
    ----------
    taken
        Columns with another part.
    client
        The option.

    Raises
    ------
    DataError
        If two columns fit equally well, or the option names none.
    """
    if client == NONE:
        return None
    if client is not None:
        return Role((profile.column(client, "--client"),), "--client")
    free = [column for column in profile.columns if column.name not in taken and not column.unread and column.filled]
    return _client(profile, free)[0]


# -- text --------------------------------------------------------------------------------------------------------------


def _texts(profile: Profile, free: Sequence[Column]) -> Role:
    prose = [column for column in free if column.is_text and column.mean_words >= _PROSE_WORDS]
    pair = _pair([column for column in free if column.is_text])
    if pair:
        return Role(pair, "a pair, by their names")
    if len(prose) == 1:
        return Role((prose[0],), f"the only column with running text, {prose[0].mean_words:.0f} words on average")
    called = _called(prose or [column for column in free if column.is_text], _TEXTS)
    if len(called) == 1:
        others = listed(column.name for column in prose if column is not called[0])
        return Role((called[0],), f"by its name; {others} {_has(prose)} running text too" if others else "by its name")
    if not prose:
        raise DataError(
            f"--data: {profile.path} has no column with running text among {profile.names}; name it with --text COLUMN"
        )
    raise _tie(profile, called or prose, "the text", "--text", " (give it twice for a pair of texts)")


def _has(prose: Sequence[Column]) -> str:
    return "has" if len(prose) == 2 else "have"


def _pair(texts: Sequence[Column]) -> tuple[Column, Column] | None:
    by_name = {plain(column.name): column for column in texts}
    found = [(by_name[a], by_name[b]) for a, b in _PAIRS if a in by_name and b in by_name]
    return found[0] if len(found) == 1 else None


# -- label -------------------------------------------------------------------------------------------------------------


def _label(profile: Profile, free: Sequence[Column], may_be_client: bool) -> Role:
    fitting = [column for column in free if _is_label(column, _MOST_LABELS)]
    for names in _LABELS:
        called = _called(fitting, names)
        if len(called) == 1:
            return Role((called[0],), f"by its name, and {_counted(called[0])}")
        if called:
            raise _tie(profile, called, "the label", "--label")
    plain = [column for column in fitting if _is_label(column, _FEW_LABELS)]
    if may_be_client:
        clients = _called(plain, _CLIENTS, endings=True)
        plain = [column for column in plain if column not in clients]
    if len(plain) == 1:
        return Role((plain[0],), f"the only column with few values: {_counted(plain[0])}")
    if plain:
        raise _tie(profile, plain, "the label", "--label")
    raise _no_label(profile, free)


def _no_label(profile: Profile, free: Sequence[Column]) -> DataError:
    """Return the error for data without a column of classes, with what the other columns hold instead."""
    unread = [f"{column.name} is of type {column.unread}" for column in profile.columns if column.unread]
    seen = [*(f"{column.name} has {_counted(column)} in {column.filled:,} rows" for column in free), *unread]
    held = f": {listed(seen, 4, 80)}" if seen else ""
    return DataError(
        f"--data: {profile.path} has no label, a column with 2 to {_FEW_LABELS} values that come again, beside its text{held}; "
        "name the label with --label COLUMN, or, for a model that writes, the prompt with --text and the answer with --response"
    )


def _is_label(column: Column, most: int) -> bool:
    many = column.different
    return many is not None and 2 <= many <= most and column.filled >= _LEAST_ROWS * many


def _check_label(profile: Profile, role: Role) -> None:
    column = role.columns[0]
    many = column.different
    if many is None or not 2 <= many <= _MOST_LABELS or column.unread:
        has = f"the type {column.unread}" if column.unread else f"{_counted(column)}"
        raise DataError(
            f"--label: column {column.name} of {profile.path} has {has}, but classes are 2 to {_MOST_LABELS} different values"
        )


def _counted(column: Column) -> str:
    many = column.different
    return (
        "more values than can be counted"
        if many is None
        else f"{many:,} different {'value' if many == 1 else 'values'}"
    )


# -- clients -----------------------------------------------------------------------------------------------------------


def _client(profile: Profile, free: Sequence[Column]) -> tuple[Role | None, tuple[Column, ...]]:
    fitting = [column for column in free if _may_be_clients(column)]
    called = _called(fitting, _CLIENTS, endings=True)
    if len(called) == 1:
        many = called[0].different or 1
        return Role((called[0],), f"by its name; {many:,} clients with {called[0].filled / many:.1f} rows each"), ()
    if called:
        raise _tie(profile, called, "the clients", "--client", f", or --client {NONE}")
    return None, tuple(column for column in fitting if column.is_text)


def _may_be_clients(column: Column) -> bool:
    many = column.different
    return (
        many is not None
        and many >= 2
        and column.filled >= _LEAST_ROWS * many
        and column.mean_words < _PROSE_WORDS
        and (column.is_text or column.numbers > 0)
    )


# -- names -------------------------------------------------------------------------------------------------------------


def plain(name: str) -> str:
    """Return a name as words in lower case: userID and user_id are ``user id``."""
    return re.sub(r"[\W_]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)).strip().lower()


def _called(columns: Sequence[Column], names: Sequence[str], endings: bool = False) -> list[Column]:
    """Return the columns with such a name: exactly, or else as the last word of theirs."""
    short: Callable[[str], str] = (lambda name: _ENDINGS.sub("", name) or name) if endings else (lambda name: name)
    exact = [column for column in columns if short(plain(column.name)) in names]
    return exact or [column for column in columns if short(plain(column.name)).rpartition(" ")[2] in names]


def _tie(profile: Profile, columns: Sequence[Column], what: str, option: str, also: str = "") -> DataError:
    """Return the error for columns that fit equally well."""
    names = [shlex.quote(column.name) for column in columns]
    seen = [f"{column.name} (such as {shown(column.sample[0], 24)})" for column in columns]
    return DataError(
        f"--data: in {profile.path} {', '.join(seen[:-1])} and {seen[-1]} may each be {what}; choose with {option} {names[0]}"
        f"{''.join(f' or {option} {name}' for name in names[1:3])}{also}"
    )
