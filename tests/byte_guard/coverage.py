"""Which choices of the config the cases have to make, and which they make."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from .cases import BASE, CASES

NOT_HERE: dict[str, set[str]] = {
    # Kernels for half precision are the ones that a CPU has, so that their last bits are the machine's.
    "model.dtype": {"float32", "bfloat16", "float16"},
    "model.autocast": {"off", "bfloat16", "float16"},
    "model.products": {"auto", "float32", "bfloat16", "float16"},
    "model.trunk_cache.dtype": {"auto", "bfloat16", "float16"},
    # No run of the guard may depend on a trial's time.
    "client.fuse": {"auto"},
    # What is set by leaving the key out.
    "client.micro_batch_tokens": {"auto"},
    "client.optimizer.moments": {"restart"},
    "model.quantize": {"none"},
    "attack.kind": {"none"},
    # Who accounts and what is public changes no number of a run with given noise.
    "privacy.accountant": {"auto", "rdp", "pld"},
    "privacy.public": {"start", "validation"},
    "client.optimizer.kind": {"adamw"},
    "tuner.kind": {"prefix"},
    "compression.up.kind": {"none"},
    # A case names a file of its own; tests/world/test_traces.py reads them all.
    "world.devices.availability.kind": {"trace"},
}
"""Choices that no case names, and why."""

SECTIONS = (
    "server", "sampling", "world", "privacy", "layers", "partition", "client", "compression", "attack", "model.head", "model",
    "prompt", "tuner",
)  # fmt: skip
"""Sections whose choices all have to be named by a case; the others say where a run computes and what it reads."""


def choices() -> dict[str, set[str]]:
    """Return, for every key of :data:`SECTIONS` with named choices, what these are: literals, and registered kinds."""
    from fedsim.configuration.errors import dotted_keys
    from fedsim.configuration.schema import Config
    from fedsim.core.plugins import REGISTRIES, is_plugin
    from fedsim.core.registry import find
    from server.config import ServerConfig

    def words(annotation: Any) -> set[str]:
        if get_origin(annotation) is Literal:
            return {word for word in get_args(annotation) if isinstance(word, str)}
        return set().union(*map(words, get_args(annotation)))

    found = {key: words(field.annotation) for key, field in dotted_keys(Config) if key.startswith(SECTIONS)}
    found |= {f"server.{key}": words(field.annotation) for key, field in ServerConfig.keys_of_kinds().items()}
    plain = {"server.aggregation": "mean", "client.correction": "auto", "attack.kind": "none"}
    for registry in map(find, REGISTRIES.values()):
        if registry.key in found:
            own = {name for name in registry if not is_plugin(registry.origin(name))}
            found[registry.key] |= own | {plain[registry.key]} if registry.key in plain else own
    return {key: named for key, named in found.items() if named and key != "model.device"}


def named_by_cases() -> dict[str, set[str]]:
    """Return, for every key, the values that some case names, or the base."""
    found: dict[str, set[str]] = {}
    for words in (BASE, *(case.words for case in CASES.values())):
        for word in words.split():
            key, _, value = word.partition("=")
            found.setdefault(key, set()).add(value)
    return found
