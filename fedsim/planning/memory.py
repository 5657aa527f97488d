"""Memory of a run: upper bounds on stored objects, and an estimate of what each process needs besides.

Stored objects are counted, each at most: weights from the headers of their files; tokens, cached states and client states
from the config. An actor's working memory is an estimate: the activations of one pass as counted by Korthikanti et al. (2022,
"Reducing Activation Recomputation in Large Transformer Models", section 4.1), with a constant for Python and its packages.
docs/clusters.md compares it with measured runs.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import numpy as np

from clients.backbone.splitting import split
from clients.budget import CONTEXT_BYTES, STEP_VECTORS, population_of, rows_of_scores, tokens_of_pass
from clients.tuners.config import VIRTUAL_TOKENS
from clients.tuners.lora_halves import shared, turns
from fedsim.configuration.schema import Config
from fedsim.core.compression.links import num_unsent
from fedsim.core.layout import LayerShape, VectorLayout
from fedsim.core.messages import VECTOR
from fedsim.planning.model_shape import ModelShape
from fedsim.planning.tuned_shape import tuned_shape
from fedsim.planning.weights import itemsize, layer_bytes, weight_bytes
from server.selection import num_chosen

PROCESS_BYTES = 480 * 10**6
"""An actor without a model: Python with torch, transformers and Ray. Measured, Linux, CPU build of torch."""
DRIVER_BYTES = 560 * 10**6
"""The same for the driver, which also reads data and draws plots."""
LEAN_DRIVER_BYTES = 250 * 10**6
"""The driver where an actor makes the specification: it imports no torch, and the weights that it sees are the actors'."""
_TOKEN_BYTES, _EXAMPLE_BYTES = 5, 32
"""Upper bound on stored bytes per token (id and type) and per example (offset, label, position, shard)."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by purpose."""

    weights: int
    """Frozen weights: once per node, in the object store; on a GPU also once per actor."""
    tokens: int | None
    """Tokens of all examples, at most; None if the examples were not counted."""
    caches: int
    """Frozen-layer cache, at most."""
    client_states: int
    """State that all participating clients keep between rounds, at most; once in the cluster, and in each checkpoint."""
    exchanged: int
    """One vector of the exchanged parameters; :mod:`fedsim.core.traffic` counts how many travel."""
    activations: int
    """Estimated activations of a training pass plus an evaluation pass: both, since a process keeps memory it has freed."""
    vectors: int
    """Prompts, moments and gradients of fused clients."""
    on_gpu: bool
    new_states: int = 0
    """New client states of a round, held beside the old ones until the round is done."""
    in_turn: tuple[int, ...] = ()
    """Bytes of what odd and even rounds train, where these are parts of the vector; empty where every round trains it all."""
    whole: VectorLayout | None = None
    """Layout of the exchanged parameters."""
    travelling: tuple[VectorLayout, ...] = ()
    """Layouts of what a round's clients send: one, or one for each turn."""
    sums: int = 0
    """Sums that a round's work groups send to the server."""
    lean_driver: bool = False
    """Whether an actor reads model and data into the object store, rather than the driver."""
    layers: tuple[int, int] = (1, 0)
    """Number of layers, and bytes of the frozen weights of one."""
    gpus: int = 1
    """GPUs over which an actor spreads the model."""
    offload: bool = False
    """Whether an actor keeps the weights of layers in main memory, pinned, and one layer's at a time on a GPU."""
    in_layers: int = 0
    """The part of ``activations`` that layers keep for gradients, each its own."""
    loading: int = 0
    """Weights as they are read, which are held beside the stored ones while these are rounded or quantised; 0 where they are
    stored as they are read."""

    @property
    def stored(self) -> int:
        """Upper bound on the object store of a node that has all actors."""
        return self._on_each_node + self._between_nodes

    @property
    def _on_each_node(self) -> int:
        return self.weights + (self.tokens or 0) + self.caches

    @property
    def _between_nodes(self) -> int:
        return self.client_states + self.new_states + self.sums

    def stored_beside(self, actors: int, all_actors: int) -> int:
        """Return the object store bytes of a node with some of the actors; results stay on the node that made them."""
        return self._on_each_node + self._between_nodes * actors // all_actors

    @property
    def actor(self) -> int:
        """An actor's private main memory, beside what it shares with others on its node."""
        resting = self.layers[0] * self.layers[1] if self.offload else 0
        return PROCESS_BYTES + (resting if self.on_gpu else self.activations + self.vectors)

    @property
    def actor_gpu(self) -> int | None:
        """An actor's GPU memory, including CUDA's context; of several GPUs the fullest; None on a CPU."""
        if not self.on_gpu:
            return None
        held = [self.in_layers * count // self.layers[0] for count in self._split(self.gpus)]
        held[0] += self.activations - self.in_layers + self.vectors
        return CONTEXT_BYTES + max(map(operator.add, held, self.gpu_weights))

    @property
    def gpu_weights(self) -> tuple[int, ...]:
        """Bytes of the frozen weights that are at once on each GPU of an actor."""
        return self.weights_over(self.gpus)

    def weights_over(self, gpus: int) -> tuple[int, ...]:
        """Return the bytes of the frozen weights on each of several GPUs; the first holds what is in no layer.

        Raises
        ------
        ModelError
            If there are fewer layers than GPUs.
        """
        number, each = self.layers
        # Of layers that rest in main memory, one runs and one is let go of.
        first, *others = ((min(count, 2) if self.offload else count) * each for count in self._split(gpus))
        return (first + self.weights - number * each, *others)

    def _split(self, gpus: int) -> tuple[int, ...]:
        number, each = self.layers
        return split(self.weights - number * each, [each] * number, gpus)

    @property
    def driver(self) -> int:
        """The driver's private main memory; one that reads weights and tokens holds them before storing them."""
        read = self.loading + self.weights + (self.tokens or 0)
        return LEAN_DRIVER_BYTES if self.lean_driver else DRIVER_BYTES + read


def estimate_memory(config: Config, shape: ModelShape, num_examples: int | None, num_classes: int) -> MemoryEstimate:
    """Estimate the memory of a run.

    Parameters
    ----------
    num_examples
        Training and validation examples together; None if they were not counted.
    """
    on_gpu = config.ray.num_gpus_per_actor > 0 and config.model.device != "cpu" and config.executor == "ray"
    exchange_bytes = np.dtype(config.model.exchange_dtype).itemsize
    full, whole = layouts(config, shape, num_classes)
    travelling = shared(config.tuner, full.geometry)
    exchanged = whole if travelling is None else whole.holding(travelling)
    in_turn = tuple(exchanged.holding(own) for own in turns(config.tuner, full.geometry))
    tokens = None if num_examples is None else num_examples * (_EXAMPLE_BYTES + _TOKEN_BYTES * config.data.max_length)
    trained = full if config.layers.unselected == "local" else whole
    weights, read = weight_bytes(config, shape, on_gpu), shape.num_parameters * itemsize(config.model.dtype)
    in_layers = _training_bytes(config, shape, full.geometry, on_gpu)
    kept = kept_numbers(config, exchanged.size, trained.size - exchanged.size, trained.size)
    state_bytes, cohort = exchange_bytes * kept, config.clients_at_once
    return MemoryEstimate(
        weights=weights + _projection_bytes(config, shape),
        tokens=tokens,
        caches=_cached_bytes(config, shape, num_examples, full),
        client_states=min(config.partition.population, config.rounds * config.clients_per_step) * state_bytes,
        exchanged=exchanged.size * exchange_bytes,
        whole=exchanged,
        in_turn=tuple(layout.size * exchange_bytes for layout in in_turn),
        travelling=in_turn or (exchanged,),
        activations=in_layers
        + _evaluation_bytes(config, shape)
        + _scores_bytes(config, shape, on_gpu)
        + _generation_bytes(config, shape),
        vectors=(_step_bytes(config, trained) + _candidate_bytes(config, shape)) * _side_by_side(config)
        + (0 if on_gpu else _projection_bytes(config, shape)),
        on_gpu=on_gpu,
        new_states=cohort * state_bytes,
        sums=_sum_bytes(config, exchanged),
        lean_driver=config.specified_by_an_actor,
        layers=(shape.num_layers, layer_bytes(config, shape, weights, on_gpu)),
        gpus=max(1, int(config.ray.num_gpus_per_actor)) if on_gpu else 1,
        offload=config.model.offload and on_gpu,
        in_layers=in_layers,
        loading=0 if weights == read else read,
    )


def layouts(config: Config, shape: ModelShape, num_classes: int) -> tuple[VectorLayout, VectorLayout]:
    """Return the layouts of all layers and of the exchanged ones; only their number matters here."""
    heads: tuple[tuple[str, tuple[int, ...]], ...] = ()
    if config.model.head.kind == "classifier":
        heads = (("head.weight", (num_classes, shape.hidden_size)), ("head.bias", (num_classes,)))
    full = VectorLayout.full(tuned_shape(config, shape), heads)
    layers = config.layers
    if len(full.layers) < shape.num_layers:
        return full, full
    if layers.choose == "fixed":
        number = len(layers.fixed or ())
    elif layers.choose == "all" or layers.share_rule != "fixed":  # the spectra's choice is not known yet: at most all
        number = shape.num_layers
    else:
        number = num_chosen(layers.share, shape.num_layers)
    return full, full.exchanged(range(min(number, shape.num_layers)))


def kept_numbers(config: Config, exchanged: int, personal: int, trained: int) -> int:
    """Return how many numbers a client keeps between rounds: of corrections, what messages lost, what is personal, moments.

    Parameters
    ----------
    exchanged, personal, trained
        Numbers that travel, that stay on the device, and that local training moves.
    """
    corrections = config.method.corrections
    arrays = sum(len(part.kept) for part in corrections) + num_unsent(config.uplink, corrections, config.client)
    moments = 2 if config.client.optimizer.moments == "keep" else 0
    return arrays * exchanged + personal + moments * trained


def _sum_bytes(config: Config, exchanged: VectorLayout) -> int:
    """Return the bytes of a round's sums, assuming that the server handles none before the last arrives.

    Sums are float64, one set per call; updates that the server needs per client are in the clients' number format.
    """
    cohort, method = config.clients_at_once, config.method
    # Buffered rounds cut groups by step and version: at worst each client is one.
    alone = config.ray.actors == "per_client" or config.buffer is not None
    calls = cohort if alone else -(-cohort // config.group_size)
    sums = {VECTOR, *(name for part in method.corrections for name in part.sums)}
    each = (VECTOR,) if config.tuner.exact else method.singles(robust=config.server.aggregation != "mean") or ()
    wide, own = np.dtype(np.float64).itemsize, np.dtype(config.model.exchange_dtype).itemsize
    return (len(sums) * calls * wide + len(each) * cohort * own) * exchanged.size


def _cached_bytes(config: Config, shape: ModelShape, num_examples: int | None, full: VectorLayout) -> int:
    cache = config.model.trunk_cache
    off = cache.dtype == "off" or config.client.dropout or config.layers.unselected == "local"
    reads_output = config.tuner.kind == "generated_prompt"  # its cache holds one row of each text
    if off or not (reads_output or _may_freeze(config, shape, full)):
        return 0
    bound = cache.memory_mb * 2**20
    if num_examples is None:
        return bound
    numbers = num_examples * (1 if reads_output else config.data.max_length) * shape.hidden_size
    return min(bound, numbers * itemsize(config.model.cache_dtype))


def _may_freeze(config: Config, shape: ModelShape, full: VectorLayout) -> bool:
    """Whether the first layer may be without a prompt, so that what enters the lowest prompted one depends on texts alone."""
    layers = config.layers
    if len(full.layers) < shape.num_layers:
        return full.layers != (0,)
    if layers.choose == "fixed":
        return 0 not in (layers.fixed or ())
    every = layers.share_rule == "fixed" and num_chosen(layers.share, shape.num_layers) == shape.num_layers
    return layers.choose not in ("all", "bottom") and not every


def _step_bytes(config: Config, trained: VectorLayout) -> int:
    """Return the bytes a step holds per client: vectors, and with ``prompt.dropout`` a byte per mask entry of each example."""
    tallies = sum(len(part.tallies) for part in config.method.corrections)
    vectors = (STEP_VECTORS + tallies) * trained.size * np.dtype(config.model.exchange_dtype).itemsize
    return vectors + (config.client.batch_size * trained.tuned_size if config.prompt.dropout else 0)


def _projection_bytes(config: Config, shape: ModelShape) -> int:
    """Return the bytes of a frozen matrix from which prompts are projected, float32; 0 if there is none."""
    return 4 * (config.tuner.projection or 0) * config.tuner.length * shape.hidden_size


def _candidate_bytes(config: Config, shape: ModelShape) -> int:
    """Return the bytes of the prompts of a client's candidates; 0 where none are projected."""
    if not config.tuner.projection:
        return 0
    numbers = population_of(config.client.optimizer, config.tuner.projection) * config.tuner.length * shape.hidden_size
    return numbers * np.dtype(config.model.exchange_dtype).itemsize


def _side_by_side(config: Config) -> int:
    """Return the largest number of fused clients."""
    if config.client.fuse == "off" or config.client.dropout or config.ray.actors == "per_client":
        return 1
    group = min(config.group_size, config.clients_per_step)
    return group if config.client.fuse == "auto" else min(group, config.client.fuse)


def _training_bytes(config: Config, shape: ModelShape, tuned: LayerShape, on_gpu: bool) -> int:
    """Return the activations that a pass keeps for its gradients, or without gradients those of one layer."""
    population = population_of(config.client.optimizer, config.tuner.projection or 1)
    layers = 1 if config.client.optimizer.kind == "cma_es" else shape.num_layers
    examples = _side_by_side(config) * config.client.batch_size * population
    asked = tokens_of_pass(config.client.micro_batch_tokens, shape.hidden_size, on_gpu=on_gpu)
    tokens = min(asked, examples * config.data.max_length)
    if config.tuner.kind in VIRTUAL_TOKENS:
        tokens += -(-tokens // config.data.max_length) * config.tuner.length
    inputs = 0
    if config.model.gradient_checkpointing:  # of all layers what enters them, and all of the layer that runs again
        inputs, layers = tokens * shape.num_layers * shape.hidden_size, 1
    feed_forward = (3 if shape.gated else 2) * shape.feed_forward_size
    numbers = inputs + tokens * layers * (9 * shape.hidden_size + feed_forward)
    numbers += tokens * layers * _tuner_numbers(config, shape.hidden_size, tuned)
    if config.model.quantize != "none":  # the matrix of one product
        numbers += shape.hidden_size * shape.feed_forward_size
    if config.model.attention == "eager":  # scores and softmax, which other implementations never materialise
        each = 10 if shape.relative_attention else 5  # as many against distances
        numbers += each * tokens * layers * shape.num_heads * config.data.max_length // 2
    elif shape.position_bias:  # the mask that holds the bias
        numbers += tokens * layers * shape.num_heads * config.data.max_length
    if config.model.head.kind == "verbalizer" and config.model.head.loss == "vocabulary":
        numbers += 2 * min(examples, tokens) * shape.vocab_size
    return numbers * _compute_itemsize(config)


def _tuner_numbers(config: Config, hidden_size: int, tuned: LayerShape) -> int:
    """Return the numbers that a layer's tuner keeps for each token: rows grouped by client, and what bottlenecks hold."""
    if config.tuner.kind == "adapter":
        norms = 4 * hidden_size if config.tuner.layer_norms else 0
        return 2 * (hidden_size + 2 * config.tuner.width) + norms
    return {"prefix": 0, "ia3": tuned.layer_size}.get(config.tuner.kind, hidden_size)


def _evaluation_bytes(config: Config, shape: ModelShape) -> int:
    """Return the activations of a pass without gradients: one layer's."""
    tokens = config.evaluation.batch_size * config.data.max_length
    return tokens * (5 * shape.hidden_size + 2 * shape.feed_forward_size) * _compute_itemsize(config)


def _generation_bytes(config: Config, shape: ModelShape) -> int:
    """Return the bytes of keys and values of a pass that writes, and of its scores of all words."""
    asked = config.evaluation.generate
    if asked is None:
        return 0
    texts = config.evaluation.batch_size
    prompt = config.prompt.length if config.tuner.kind == "prefix" else 0
    tokens = texts * (prompt + config.data.max_length + asked.max_new_tokens)
    kept = 2 * tokens * shape.num_layers * shape.num_kv_heads * shape.head_dim * _compute_itemsize(config)
    # Draws are made in float64: scores, their order, probabilities and sums.
    return kept + texts * shape.vocab_size * (40 if asked.do_sample else 8)


def _scores_bytes(config: Config, shape: ModelShape, on_gpu: bool) -> int:
    """Return the bytes of the scores of all words that a pass of responses holds at once: two copies, in float32 at least."""
    if config.model.head.kind != "generation":
        return 0
    size = itemsize(config.model.dtype)
    rows = rows_of_scores(shape.vocab_size, size, on_gpu=on_gpu)
    return 2 * rows * shape.vocab_size * max(4, size)


def _compute_itemsize(config: Config) -> int:
    return itemsize(config.model.dtype if config.model.autocast == "off" else config.model.autocast)
