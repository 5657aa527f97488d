"""Safetensors files: the JSON text at their head damaged."""

from __future__ import annotations

import json
from random import Random

from benchmarks.fuzzing.damage import damage
from benchmarks.fuzzing.values import any_value, drawn_group


def with_damaged_head(data: bytes, rng: Random) -> bytes:
    """Damage the JSON text at the head of a safetensors file, and say its new length."""
    length = int.from_bytes(data[:8], "little")
    head = damage(data[8 : 8 + length], rng) if rng.random() < 0.5 else _with_changed_entry(data[8 : 8 + length], rng)
    said = rng.choice((0, 1, 2**40, 2**63, length + 1)) if rng.random() < 0.1 else len(head)
    return said.to_bytes(8, "little") + head + data[8 + length :]


def _with_changed_entry(head: bytes, rng: Random) -> bytes:
    values = json.loads(head)
    name = rng.choice(list(values))
    if name == "__metadata__" and "fedsim" in values[name]:
        about = json.loads(values[name]["fedsim"])
        group = drawn_group(about, rng)
        key = rng.choice(list(group))
        if rng.random() < 0.3:
            del group[key]
        else:
            group[key] = any_value(rng)
        values[name]["fedsim"] = (
            json.dumps(about, default=str) if rng.random() < 0.9 else rng.choice(("", "[]", "3", "{"))
        )
    elif rng.random() < 0.5:
        values[rng.choice(("x", name + "x", "prompt.99"))] = values.pop(name)
    elif isinstance(values[name], dict) and "shape" in values[name]:
        values[name]["shape"] = rng.choice((values[name]["shape"][::-1], [], [-1], [0], [2**62, 4], "x"))
    else:
        values[name] = rng.choice((None, [], 3))
    return json.dumps(values).encode()
