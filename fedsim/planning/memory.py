"""What memory a run takes: bounds of what is stored, and an estimate of what a process needs besides.

Stored objects are counted: weights from the heads of their files, tokens, trunks and client states from the config, each at
most. What an actor needs while it works is an estimate: the activations of one pass by the count of Korthikanti et al. (2022,
"Reducing Activation Recomputation in Large Transformer Models", section 4.1), with a constant for Python and its packages.
docs/clusters.md compares it with what runs have taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clients.budget import CONTEXT_BYTES, STEP_VECTORS, tokens_of_pass
from fedsim.configuration.schema import Config
from fedsim.core.layout import VectorLayout
from fedsim.core.messages import VECTOR
from fedsim.planning.model_shape import ModelShape
from server.selection import num_chosen

PROCESS_BYTES = 480 * 10**6
"""An actor without a model: Python with torch, transformers and Ray. Measured, Linux, CPU build of torch."""
DRIVER_BYTES = 560 * 10**6
"""The same of the driver, which besides reads data and draws plots."""
_TOKEN_BYTES, _EXAMPLE_BYTES = 5, 32
"""Most bytes that are stored for a token (id and type) and, besides, for an example (offset, label, position, shard)."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by what they are for."""

    weights: int
    """Frozen weights: once on each node, in the object store; on a GPU once in each actor as well."""
    tokens: int | None
    """Tokens of all examples, at most; None where the examples were not counted."""
    caches: int
    """Trunk cache, at most."""
    client_states: int
    """What all clients that are visited keep between rounds, at most; once in the cluster, and in each checkpoint."""
    exchanged: int
    """A vector of what is exchanged; how many of them travel is a matter of :mod:`fedsim.core.traffic`."""
    activations: int
    """Of a pass of training and one of evaluation: an estimate. Both, since a process keeps what it has freed."""
    vectors: int
    """Prompts, moments and gradients of the clients that train side by side."""
    on_gpu: bool
    new_states: int = 0
    """What the clients of a round keep of it, beside what they kept before: the old states go when the round is done."""
    sums: int = 0
    """What the work groups of a round send to the server."""

    @property
    def stored(self) -> int:
        """Bytes in the object store of a node that has all actors, at most."""
        return self._on_each_node + self._between_nodes

    @property
    def _on_each_node(self) -> int:
        return self.weights + (self.tokens or 0) + self.caches

    @property
    def _between_nodes(self) -> int:
        return self.client_states + self.new_states + self.sums

    def stored_beside(self, actors: int, all_actors: int) -> int:
        """Return the bytes in the object store of a node that has some of all actors: what they return stays with them."""
        return self._on_each_node + self._between_nodes * actors // all_actors

    @property
    def actor(self) -> int:
        """An actor's own main memory, beside what it shares with the others of its node."""
        return PROCESS_BYTES + (0 if self.on_gpu else self.activations + self.vectors)

    @property
    def actor_gpu(self) -> int | None:
        """An actor's GPU memory, CUDA's own part included; None on a CPU."""
        return CONTEXT_BYTES + self.weights + self.activations + self.vectors if self.on_gpu else None

    @property
    def driver(self) -> int:
        """The driver's own main memory: it reads the weights before they are stored."""
        return DRIVER_BYTES + self.weights + (self.tokens or 0)


def estimate_memory(config: Config, shape: ModelShape, num_examples: int | None, num_classes: int) -> MemoryEstimate:
    """Return what memory the run takes.

    Parameters
    ----------
    num_examples
        Training and validation examples together; None if they were not counted.
    """
    on_gpu = config.ray.num_gpus_per_actor > 0 and config.model.device != "cpu" and config.executor == "ray"
    exchange_bytes = np.dtype(config.model.exchange_dtype).itemsize
    full, exchanged = _layouts(config, shape, num_classes)
    tokens = None if num_examples is None else num_examples * (_EXAMPLE_BYTES + _TOKEN_BYTES * config.data.max_length)
    trained = full if config.layers.unselected == "local" else exchanged
    state_bytes, cohort = exchange_bytes * _kept_numbers(config, exchanged, trained), config.sampling.clients_per_round
    return MemoryEstimate(
        weights=shape.num_parameters * _itemsize(config.model.dtype),
        tokens=tokens,
        caches=_cached_bytes(config, shape, num_examples),
        client_states=min(config.partition.population, config.rounds * cohort) * state_bytes,
        exchanged=exchanged.size * exchange_bytes,
        activations=_training_bytes(config, shape, on_gpu) + _evaluation_bytes(config, shape),
        vectors=_step_bytes(config, trained) * _side_by_side(config),
        on_gpu=on_gpu,
        new_states=cohort * state_bytes,
        sums=_sum_bytes(config, exchanged),
    )


def _layouts(config: Config, shape: ModelShape, num_classes: int) -> tuple[VectorLayout, VectorLayout]:
    """Return the layouts of prompts in all layers and of the exchanged ones; which layers they are does not matter here."""
    heads: tuple[tuple[str, tuple[int, ...]], ...] = ()
    if config.model.head.kind == "classifier":
        heads = (("head.weight", (num_classes, shape.hidden_size)), ("head.bias", (num_classes,)))
    full = VectorLayout.full(shape.geometry(config.prompt.length), heads)
    layers = config.layers
    if layers.choose == "fixed":
        number = len(layers.fixed or ())
    elif layers.choose == "all" or layers.share_rule != "fixed":  # what spectra will ask for is not known: at most all
        number = shape.num_layers
    else:
        number = num_chosen(layers.share, shape.num_layers)
    return full, full.exchanged(range(min(number, shape.num_layers)))


def _kept_numbers(config: Config, exchanged: VectorLayout, trained: VectorLayout) -> int:
    """Return the numbers that a client keeps: arrays of corrections, personal prompts, moments."""
    kept = exchanged.size * sum(len(part.kept) for part in config.method.corrections)
    kept += trained.size - exchanged.size
    return kept + (2 * trained.size if config.client.optimizer.moments == "keep" else 0)


def _sum_bytes(config: Config, exchanged: VectorLayout) -> int:
    """Return what a round's sums take, as if the server came to none of them before the last is there.

    Sums are in float64, one set a call; what the server looks at client by client is in the format that clients compute in.
    """
    cohort, method = config.sampling.clients_per_round, config.method
    calls = cohort if config.ray.actors == "per_client" else -(-cohort // config.group_size)
    sums = {VECTOR, *(name for part in method.corrections for name in part.sums)}
    each = method.singles(robust=config.server.aggregation != "mean") or ()
    wide, own = np.dtype(np.float64).itemsize, np.dtype(config.model.exchange_dtype).itemsize
    return (len(sums) * calls * wide + len(each) * cohort * own) * exchanged.size


def _cached_bytes(config: Config, shape: ModelShape, num_examples: int | None) -> int:
    cache = config.model.trunk_cache
    off = cache.dtype == "off" or config.client.dropout or config.layers.unselected == "local"
    if off or config.layers.choose in ("all", "bottom"):
        return 0
    bound = cache.memory_mb * 2**20
    if num_examples is None:
        return bound
    numbers = num_examples * config.data.max_length * shape.hidden_size
    return min(bound, numbers * _itemsize(config.model.cache_dtype))


def _step_bytes(config: Config, trained: VectorLayout) -> int:
    """Return what a step holds of a client: vectors, and with ``prompt.dropout`` a byte for each entry of an example's mask."""
    tallies = sum(len(part.tallies) for part in config.method.corrections)
    vectors = (STEP_VECTORS + tallies) * trained.size * np.dtype(config.model.exchange_dtype).itemsize
    return vectors + (config.client.batch_size * trained.prompt_size if config.prompt.dropout else 0)


def _side_by_side(config: Config) -> int:
    """Return how many clients train in shared passes, at most."""
    if config.client.fuse == "off" or config.client.dropout or config.ray.actors == "per_client":
        return 1
    group = min(config.group_size, config.sampling.clients_per_round)
    return group if config.client.fuse == "auto" else min(group, config.client.fuse)


def _training_bytes(config: Config, shape: ModelShape, on_gpu: bool) -> int:
    """Return the activations that a pass keeps for its gradients."""
    examples = _side_by_side(config) * config.client.batch_size
    asked = tokens_of_pass(config.client.micro_batch_tokens, shape.hidden_size, on_gpu=on_gpu)
    tokens = min(asked, examples * config.data.max_length)
    feed_forward = (3 if shape.gated else 2) * shape.feed_forward_size
    numbers = tokens * shape.num_layers * (9 * shape.hidden_size + feed_forward)
    if config.model.attention == "eager":  # scores and their softmax, which other implementations never hold as a whole
        numbers += 5 * tokens * shape.num_layers * shape.num_heads * config.data.max_length // 2
    if config.model.head.kind == "verbalizer" and config.model.head.loss == "vocabulary":
        numbers += 2 * examples * shape.vocab_size
    return numbers * _compute_itemsize(config)


def _evaluation_bytes(config: Config, shape: ModelShape) -> int:
    """Return the activations of a pass without gradients: those of one layer."""
    tokens = config.evaluation.batch_size * config.data.max_length
    return tokens * (5 * shape.hidden_size + 2 * shape.feed_forward_size) * _compute_itemsize(config)


def _compute_itemsize(config: Config) -> int:
    return _itemsize(config.model.dtype if config.model.autocast == "off" else config.model.autocast)


def _itemsize(dtype: str) -> int:
    return {"float64": 8, "float32": 4}.get(dtype, 2)
