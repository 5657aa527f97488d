"""Labels of nodes: which nodes a run's actors may use, by Ray's label selectors."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fedsim.core.errors import ResourceError, listed

_IN = re.compile(r"in\((.*)\)")


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Return whether a node with these labels is selected; a value is ``a``, ``!a``, ``in(a, b)`` or ``!in(a, b)``."""
    return all(_holds(labels.get(key), value) for key, value in selector.items())


def _holds(held: str | None, value: str) -> bool:
    negated, value = value.startswith("!"), value.removeprefix("!")
    among = _IN.fullmatch(value)
    wanted = [each.strip() for each in among[1].split(",")] if among else [value]
    return (held in wanted) != negated


def selected(labels: Mapping[str, Mapping[str, str]], selector: Mapping[str, str], written: str) -> list[str]:
    """Return the nodes that a selector selects, of the labels of each node.

    Parameters
    ----------
    written
        What the config says, for the message.

    Raises
    ------
    ResourceError
        If there is none; the message lists the labels that nodes have.
    """
    found = [node for node, held in labels.items() if matches(held, selector)]
    if found or not labels:
        return found
    # Every node has an id of its own, which nobody selects by.
    known = sorted({f"{key}={value}" for held in labels.values() for key, value in held.items() if key != NODE_ID})
    nodes = f"{len(labels)} node{'s' if len(labels) > 1 else ''}"
    have = f"its {nodes} have {listed(known)}" if known else f"its {nodes} have no labels"
    raise ResourceError(f"no node of the cluster has {written}; {have}")


NODE_ID = "ray.io/node-id"
