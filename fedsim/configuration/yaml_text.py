"""Safe YAML for configs: no repeated keys, ``1e-3`` a number, ``Yes`` and ``No`` words; with line numbers.

Only what a config consists of is read: groups, lists, words, numbers, true, false and null. A document that expands to far
more than is written (an alias of aliases), or is nested too deeply, is refused before it takes time or memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from typing import Any

import yaml

from fedsim.core.errors import shown

MOST_CHARACTERS = 2**17
"""Maximum length of a text."""
_MOST_VALUES = 20_000
"""Maximum number of values and keys, with aliases expanded."""
_DEEPEST = 20
_MOST_BITS = 1024
"""Maximum size of an integer."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2, refusing repeated keys in a mapping, and deep nesting."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        self._check_depth()
        super().fetch_flow_collection_start(TokenClass)

    def add_indent(self, column: int) -> bool:
        self._check_depth()
        return super().add_indent(column)

    def _check_depth(self) -> None:
        # During the scan rather than after it: scan time grows quadratically with depth.
        if self.flow_level + len(self.indents) > _DEEPEST:
            raise yaml.scanner.ScannerError(None, None, f"it is nested more than {_DEEPEST} deep", self.get_mark())

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Hashable, int] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {shown(key)} is not a word", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {shown(key)} is given here and in line {seen[key]}", key_node.start_mark
                )
            seen[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


_DROPPED = {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _DROPPED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"),
    list("-+0123456789."),
)


_Construct = Callable[[Any, Any], Any]


def _checked(construct: _Construct, what: str) -> _Construct:
    """Refuse, with its line, a scalar that does not fit its tag (``!!int x``) or is too large."""

    def checked(loader: Any, node: Any) -> Any:
        try:
            value = construct(loader, node)
            if isinstance(value, str):
                value.encode()  # half of a surrogate pair, written "\\ud800", is no character
            fits = not isinstance(value, int) or value.bit_length() <= _MOST_BITS
        except (ValueError, KeyError, IndexError, AttributeError):
            fits = False
        if not fits:
            raise yaml.constructor.ConstructorError(
                None, None, f"{shown(node.value, 40)} is not {what}", node.start_mark
            )
        return value

    return checked


_SCALARS = {"int": "a whole number", "float": "a number", "bool": "true or false", "null": "null", "str": "text"}
_Loader.yaml_constructors = {
    None: yaml.SafeLoader.yaml_constructors[None],
    **{
        f"tag:yaml.org,2002:{name}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{name}"]
        for name in ("seq", "map")
    },
    **{
        f"tag:yaml.org,2002:{name}": _checked(yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{name}"], what)
        for name, what in _SCALARS.items()
    },
}


def load(text: str) -> Any:
    """Parse YAML without ever running code.

    Raises
    ------
    yaml.MarkedYAMLError
        If the text is not YAML, or too large; ``problem`` is the reason, ``problem_mark`` has the line if known.
    """
    if len(text) > MOST_CHARACTERS:
        raise _refusal(f"it has {len(text)} characters, but a config may have at most {MOST_CHARACTERS}")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except RecursionError:
        raise _refusal("it is nested too deeply") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        mark = yaml.Mark("", error.position, line, 0, "", 0)
        raise _refusal(f"the character {chr(error.character)!a} is not allowed in YAML", mark) from None
    finally:
        if loader is not None:
            loader.dispose()


def _refusal(problem: str, mark: yaml.Mark | None = None) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _check_size(root: yaml.Node) -> None:
    """Refuse a document whose aliases contain themselves or expand to too much, or that is nested too deeply."""
    sizes: dict[int, int] = {}
    above: set[int] = set()

    def size(node: yaml.Node) -> int:
        if not isinstance(node, yaml.CollectionNode):
            return 1
        if id(node) in above:
            raise _refusal("an alias is inside the value that it refers to", node.start_mark)
        if id(node) not in sizes:
            above.add(id(node))
            if len(above) > _DEEPEST:  # through aliases
                raise _refusal(f"it is nested more than {_DEEPEST} deep", node.start_mark)
            inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
            sizes[id(node)] = 1 + sum(map(size, inner))
            above.remove(id(node))
            if sizes[id(node)] > _MOST_VALUES:
                raise _refusal(f"it expands to more than {_MOST_VALUES} values and keys", node.start_mark)
        return sizes[id(node)]

    size(root)


def line_of(text: str, path: tuple[str | int, ...]) -> int | None:
    """Return the line, counted from 1, of the key ``path``, or of its nearest parent that is in the text."""
    node = yaml.compose(text, Loader=_Loader)
    line: int | None = None
    for part in path:
        if not isinstance(node, yaml.MappingNode):
            break
        for key_node, value_node in node.value:
            if key_node.value == part:
                line, node = key_node.start_mark.line + 1, value_node
                break
        else:
            break
    return line
