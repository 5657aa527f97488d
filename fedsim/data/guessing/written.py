"""Data whose rows are a prompt and a response: instructions, questions and answers, summaries, dialogues.

They are known by the names of their columns, where no option names a text or a label.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.core.errors import DataError
from fedsim.data.guessing.config_file import (
    COHORT,
    config_name,
    entry,
    file_keys,
    joined,
    left_out,
    run_keys,
    usual_clients,
    word,
)
from fedsim.data.guessing.profile import Column, Profile
from fedsim.data.guessing.roles import Role, plain
from fedsim.data.tasks import TASKS

_DIALOGUES = ("messages", "conversations", "conversation")
_PROMPTS = ("instruction", "prompt", "question", "document", "article", "dialogue")
_CONTEXTS = ("input", "context")
_RESPONSES = ("response", "output", "completion", "answer", "summary", "highlights")
_SUMMARIES = ("summary", "highlights")
_LEAST_DIFFERENT = 0.5
"""Share of different values from which on a column holds responses rather than labels."""
_MANY, _MANY_WORDS = 20, 200
"""Different values from which on, however often they come again, they are responses; words in a column that may be a label."""
_ANSWERED, _MOST_WRITTEN = 16, 64
"""Prompts that the model answers at the end, and the most tokens of an answer: seconds for a small model."""
_A_DECODER = "HuggingFaceTB/SmolLM2-135M-Instruct"
_MAY_BE_LABELS = ("answer",)


@dataclass(frozen=True)
class Parts:
    """The columns of a prompt and its response."""

    prompt: str
    response: str
    context: str | None = None
    """A column that may be empty."""
    why: str = "by its name"

    @property
    def dialogue(self) -> bool:
        """Whether one column of messages has both."""
        return self.prompt == self.response

    @property
    def columns(self) -> tuple[str, ...]:
        """All of them, in the order of the task's fields."""
        return tuple(dict.fromkeys(name for name in (self.prompt, self.context, self.response) if name is not None))


def find_parts(profile: Profile) -> Parts | None:
    """Return the columns of prompt and response, if the names of a file's columns say which they are."""
    by_name = {plain(column.name): column for column in profile.columns}
    for name in _DIALOGUES:
        if name in by_name and by_name[name].unread == "list":
            return Parts(by_name[name].name, by_name[name].name)
    prompt = next((by_name[name] for name in _PROMPTS if name in by_name and _is_prompt(by_name[name])), None)
    response = next((by_name[name] for name in _RESPONSES if name in by_name and _is_written(by_name[name])), None)
    if prompt is None or response is None:
        return None
    context = next((by_name[name] for name in _CONTEXTS if name in by_name and not by_name[name].unread), None)
    return Parts(prompt.name, response.name, None if context is None else context.name)


def named_parts(profile: Profile, text: Sequence[str], response: str) -> Parts:
    """Return the columns of prompt and response that options name.

    Parameters
    ----------
    text
        The prompt, and a context that may be empty.

    Raises
    ------
    DataError
        If there is no such column, or one is named twice.
    """
    for name, option in (*((name, "--text") for name in text), (response, "--response")):
        profile.column(name, option)
    if len({*text, response}) <= len(text):
        raise DataError("--response: a column cannot be both what is read (--text) and what is written")
    return Parts(text[0], response, text[1] if len(text) > 1 else None, "as told")


def _is_prompt(column: Column) -> bool:
    """Whether a column holds texts, such as ``12 * 7 =``, which has no letter; and not bare numbers."""
    return not column.unread and column.numbers < column.filled / 2


def _is_written(column: Column) -> bool:
    """Whether a column that is called like responses holds some, in words or numbers, and not a few labels."""
    if column.unread or not column.filled:
        return False
    many, words = column.different, plain(column.name) in _MAY_BE_LABELS and column.is_text
    return many is None or many > _LEAST_DIFFERENT * column.filled or many > (_MANY_WORDS if words else _MANY)


def no_writer(model: str, profile: Profile, parts: Parts, causal: bool) -> str:
    """Return the error for a model that cannot write what the data have."""
    has = f"messages ({parts.prompt})" if parts.dialogue else f"prompts and responses ({', '.join(parts.columns)})"
    lacks = "has no chat template, which tells messages apart" if causal else "is an encoder, which writes no text"
    needed = "a decoder with a chat template" if parts.dialogue or causal else "a decoder"
    return (
        f"--data: {profile.path} has {has}, but the model {model} {lacks}; give the folder or the name on the hub of "
        f"{needed}, such as --model {_A_DECODER}, or, to tell classes apart, name a text and a label with --text and --label"
    )


@dataclass(frozen=True)
class WrittenGuess:
    """What a config for such data will say, and why."""

    profile: Profile
    parts: Parts
    client: Role | None
    model: str
    folder: str
    validation: Path | None
    max_length: int
    chat: bool
    """Whether the model's tokenizer has a chat template."""
    bad_rows: int = 0
    """Rows that a run leaves out."""
    first_bad: str = ""
    """The first of them, and what is wrong with it."""
    longest: tuple[int, int] | None = None
    """Tokens that 99 of 100 examples, and 99 of 100 responses, stay within; None before they are known."""

    @property
    def clients(self) -> int:
        """Number of clients, natural or drawn."""
        return usual_clients(self.profile.rows) if self.client is None else self.client.columns[0].different or 1

    def record(self) -> dict[str, Any]:
        """Return the guess as plain values."""
        return {
            "rows": self.profile.rows,
            "prompt": [name for name in self.parts.columns if self.parts.dialogue or name != self.parts.response],
            "response": self.parts.response,
            "chat": self.chat,
            "client": None if self.client is None else self.client.columns[0].name,
            "clients": self.clients,
            "validation": None if self.validation is None else str(self.validation),
            "bad_rows": self.bad_rows,
            "first_bad_row": self.first_bad or None,
        }

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Yield what is printed of it: a part, its column, and why."""
        if self.parts.dialogue:
            yield "dialogue", self.parts.prompt, "by its name; the last answer is the response"
        else:
            names = [name for name in self.parts.columns if name != self.parts.response]
            may = f"; {self.parts.context} may be empty" if self.parts.context is not None else ""
            yield "prompt", " and ".join(names), f"{self.parts.why}{may}"
            yield "response", self.parts.response, self.parts.why
        if self.client is not None:
            yield "clients", self.client.columns[0].name, self.client.why
        else:
            yield "clients", f"{self.clients}", "drawn at random: no column names them"

    def task(self) -> dict[str, Any]:
        """Return the keys of the task, but for its name."""
        parts = self.parts
        if parts.dialogue:
            return {"fields": [parts.prompt], "dialogue": True, "chat": True}
        keys: dict[str, Any] = {"fields": list(parts.columns), **self._prompts(), "response": f"{{{parts.response}}}"}
        if parts.context is not None:
            keys["optional_fields"] = [parts.context]
        return keys | ({"chat": True} if self.chat else {})

    def _prompts(self) -> dict[str, Any]:
        """Return the template, and that of rows without a context."""
        parts, alpaca = self.parts, TASKS["alpaca"]
        if self.chat:
            whole, bare = f"{{{parts.prompt}}}\n\n{{{parts.context}}}", f"{{{parts.prompt}}}"
        elif plain(parts.response) in _SUMMARIES:
            whole = bare = f"{{{parts.prompt}}}\nTL;DR: "
        else:
            names = ("{instruction}", f"{{{parts.prompt}}}"), ("{input}", f"{{{parts.context}}}")
            whole, bare = alpaca.template or "", alpaca.template_without["input"]
            for name, own in names:
                whole, bare = whole.replace(name, own), bare.replace(name, own)
        return (
            {"template": bare}
            if parts.context is None
            else {"template": whole, "template_without": {parts.context: bare}}
        )


def written_yaml(guess: WrittenGuess, command: str, name: str) -> str:
    """Return the config of a guess; see :func:`fedsim.data.guessing.config_file.config_yaml`."""
    return joined(
        (run_keys(), _model(guess), _data(guess), _partition(guess), _training(), _evaluation(guess)), command, name
    )


def _model(guess: WrittenGuess) -> Iterator[str]:
    yield entry(0, "model")
    package = guess.model.startswith("package:")
    yield entry(1, "package" if package else "path", guess.model.removeprefix("package:"))
    yield entry(1, "head")
    yield entry(2, "kind", "generation", "the frozen LM head; losses of the responses' tokens")


def _data(guess: WrittenGuess) -> Iterator[str]:
    yield from file_keys(guess.profile, guess.folder, guess.validation)
    if guess.profile.keys.get("header") is False:
        yield entry(1, "columns", {name: int(name) for name in guess.parts.columns})
    if guess.bad_rows:
        yield entry(1, "on_bad_row", "skip", left_out(guess.bad_rows, guess.first_bad))
    yield entry(1, "max_length", guess.max_length, f"tokens of prompt and response; {_lengths(guess)}")
    yield entry(1, "task")
    yield entry(2, "name", word(config_name(guess.profile.path)))
    why = {
        "dialogue": "the last answer is the response, the messages before it are the prompt",
        "template": "the prompt",
        "chat": "prompt and response are messages in the model's chat template",
        "response": "what the model learns to write",
    }
    for key, value in guess.task().items():
        yield entry(2, key, value, why.get(key, ""))


def _lengths(guess: WrittenGuess) -> str:
    if guess.longest is None:
        return "longer ones are cut"
    whole = guess.longest[0]
    if whole > guess.max_length:
        return f"99 of 100 examples have at most {whole:,}, but the model has positions for no more than this"
    return f"99 of 100 examples have at most {whole:,}"


def _evaluation(guess: WrittenGuess) -> Iterator[str]:
    tokens = 64 if guess.longest is None else max(8, min(_MOST_WRITTEN, -(-guess.longest[1] // 8) * 8))
    yield entry(0, "evaluation")
    yield entry(1, "generate", None, "at the end the model writes answers itself, to be read and compared")
    yield entry(2, "examples", _ANSWERED, "validation examples; more take longer")
    yield entry(2, "max_new_tokens", tokens, "an answer ends here at the latest")


def _partition(guess: WrittenGuess) -> Iterator[str]:
    yield entry(0, "partition")
    if guess.client is not None:
        yield entry(1, "kind", "by_column", "natural clients")
        yield entry(1, "column", guess.client.columns[0].name, guess.client.why)
    else:
        yield entry(1, "kind", "iid", "no column names clients: rows are dealt out at random")
        yield entry(1, "clients", guess.clients)
    yield ""
    yield entry(0, "sampling")
    yield entry(1, "clients_per_round", min(COHORT, guess.clients), "the cohort")


def _training() -> Iterator[str]:
    yield entry(0, "tuner")
    yield entry(1, "kind", "lora", "or prefix, ia3, adapter and others")
    yield entry(1, "rank", 8)
    yield ""
    yield entry(0, "layers")
    yield entry(1, "choose", "all")
    yield ""
    yield entry(0, "client")
    yield entry(1, "epochs", 1)
    yield entry(1, "batch_size", 8)
    yield entry(1, "optimizer")
    yield entry(2, "lr", 0.001, "the first key to tune")
    yield ""
    yield entry(0, "server")
    yield entry(1, "kind", "fedavg", "or fedpeptao, fedavgm, fedadam, scaffold, fedprox and others")
