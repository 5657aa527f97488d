"""What is said of examples that are too long for ``data.max_length``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fedsim.core.tokens import TokenTable


def cut_notes(tables: Mapping[str, TokenTable], max_length: int) -> tuple[str, ...]:
    """Say of each split how many examples are cut, what they lose, how long the longest is, and what would keep it whole.

    Parameters
    ----------
    tables
        The examples of each split, by its name.
    max_length
        ``data.max_length``, in tokens.
    """
    return tuple(_note(name, table, max_length) for name, table in tables.items() if table.cut_examples)


def _note(name: str, table: TokenTable, max_length: int) -> str:
    of_responses = table.response_starts_N is not None
    one = table.cut_examples == 1
    has, longest, them = ("has", "with", "it") if one else ("have", "the longest", "them")
    shortened = "its text is shortened" if one else "their texts are shortened"
    lost = " and ".join(_lost(table)) if of_responses else shortened
    return (
        f"{'warning: ' if of_responses else ''}{table.cut_examples:,} of {len(table):,} {name} examples {has} more than "
        f"data.max_length={max_length} tokens, {longest} {table.longest_uncut}: {lost}; data.max_length={table.longest_uncut} "
        f"keeps {them} whole, if the model has positions for as many"
    )


def _lost(table: TokenTable) -> Iterator[str]:
    if table.cut_prompts:
        yield "1 prompt is shortened" if table.cut_prompts == 1 else f"{table.cut_prompts:,} prompts are shortened"
    if table.cut_responses == 1:
        yield "1 response has lost its end"
    elif table.cut_responses:
        yield f"{table.cut_responses:,} responses have lost their end"
    if table.cut_answers == 1:
        yield "1 earlier answer is left out and not learned"
    elif table.cut_answers:
        yield f"{table.cut_answers:,} earlier answers, the oldest ones, are left out and not learned"
