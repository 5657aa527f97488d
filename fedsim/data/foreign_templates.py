"""Templates in OpenPrompt's syntax and PET's patterns, translated into the syntax of ``data.task.template``.

OpenPrompt writes ``{"placeholder": "text_a"} It was {"mask"}.``, PET's code ``[text_a, 'It was', self.mask, '.']``. Their
``text_a`` is the first field of the task, ``text_b`` the second one, and so on.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MASK = "<mask>"
_KINDS = ("placeholder", "meta", "mask", "text", "soft", "special", "sep", "cls", "eos", "soft_id", "duplicate", "same")
_GROUP = re.compile(r"""\{\s*["'](?:""" + "|".join(_KINDS) + r""")["'][^{}]*\}""")
_REFUSED = {
    "soft": "trained tokens are a tuner here (tuner.kind: soft_prompt), not a part of a template",
    "soft_id": "trained tokens are a tuner here (tuner.kind: soft_prompt), not a part of a template",
    "special": "special tokens stand where the tokenizer puts them; data.task.word_end can close a decoder's word with <eos>",
    "post_processing": "a template runs no code; change the texts in the data",
    "shortenable": "every field may be shortened, the longest first; leave it out",
}
_OTHERS = "give its text, fields and mask alone"


def translated(template: str, fields: Sequence[str]) -> str:
    """Return a template in this project's syntax, with ``{field}`` and ``<mask>``; one that is in it as it is.

    Parameters
    ----------
    fields
        Names of the task's fields, of which ``text_a`` is the first.

    Raises
    ------
    ValueError
        If a part of it cannot be translated.
    """
    if _GROUP.search(template):
        return _GROUP.sub(lambda found: _of_group(found[0], fields), template)
    parts = _pattern(template)
    return template if parts is None else " ".join(_of_part(part, fields) for part in parts)


def _of_group(text: str, fields: Sequence[str]) -> str:
    """Translate a group of OpenPrompt's syntax."""
    try:
        read = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise ValueError(
            f"template: {text} of OpenPrompt's syntax cannot be translated: a template runs no code; {_OTHERS}"
        ) from None
    values: Mapping[str, Any] = read if isinstance(read, dict) else dict.fromkeys(read)
    for key, value in values.items():
        harmless = key == "shortenable" and str(value) == "True"
        if not harmless and key not in ("placeholder", "meta", "mask", "text"):
            raise ValueError(
                f"template: {key!r} of OpenPrompt's syntax cannot be translated: {_REFUSED.get(key, _OTHERS)}"
            )
    if "mask" in values:
        return MASK
    if "text" in values:
        return str(values["text"])
    name = str(values.get("placeholder", values.get("meta")))
    return _field(name, fields)


def _field(name: str, fields: Sequence[str]) -> str:
    """Return the field that a name of OpenPrompt or PET stands for."""
    if name in fields:
        return "{" + name + "}"
    letter = re.fullmatch(r"text_([a-p])", name)
    place = ord(letter[1]) - ord("a") if letter else len(fields)
    if place >= len(fields):
        raise ValueError(
            f"template: {name!r} is no text of this task; its fields are {', '.join(fields)}, of which text_a is the first"
        )
    return "{" + fields[place] + "}"


def _pattern(template: str) -> list[ast.expr] | None:
    """Return the parts of a pattern of PET's code; None if the template is none."""
    if not re.match(r"\s*[\[(]", template) or "mask" not in template:
        return None
    try:
        body = ast.parse(template.strip(), mode="eval").body
    except SyntaxError:
        return None
    if not any(getattr(node, "attr", getattr(node, "id", "")) == "mask" for node in ast.walk(body)):
        return None
    if isinstance(body, ast.Tuple) and body.elts and all(isinstance(part, ast.List) for part in body.elts):
        first, *others = (part.elts for part in body.elts if isinstance(part, ast.List))
        if any(others):
            raise ValueError(
                "template: the second list of a PET pattern stands behind a separator token, which a template does not have; "
                "write both as one list"
            )
        return first
    return list(_elements(body))


def _elements(body: ast.expr) -> Iterator[ast.expr]:
    if not isinstance(body, ast.List):
        raise ValueError("template: a PET pattern is a list of texts, text_a, text_b and self.mask")
    yield from body.elts


def _of_part(part: ast.expr, fields: Sequence[str]) -> str:
    """Translate a part of a PET pattern; parts are joined by spaces."""
    if isinstance(part, ast.Constant) and isinstance(part.value, str):
        return part.value.strip()
    if isinstance(part, ast.Call) and len(part.args) == 1 and getattr(part.func, "attr", "") == "shortenable":
        return _of_part(part.args[0], fields)
    name = part.attr if isinstance(part, ast.Attribute) else part.id if isinstance(part, ast.Name) else None
    if name == "mask":
        return MASK
    if name is None:
        raise ValueError(f"template: {ast.unparse(part)} of a PET pattern cannot be translated; {_OTHERS}")
    return _field(name, fields)
