"""Specification of a worker, and the worker's description of itself."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clients.analysis.scoring import ScoreSettings
from clients.analysis.spectrum_settings import SpectrumSettings
from clients.backbone.shared_weights import SharedWeights
from clients.config import ClientConfig, ModelConfig
from clients.generation_settings import GenerationSpec
from clients.training.local_job import Parts, sees_all
from clients.tuners.initial import StartingPoint, initial_vector
from clients.tuners.tuner import Tuner
from fedsim.core.attack import Attack
from fedsim.core.compression.links import Link
from fedsim.core.layout import VectorLayout
from fedsim.core.method import Correction
from fedsim.core.shards import Shards
from fedsim.core.tokens import TokenTable
from fedsim.core.traffic import Traffic, round_traffic

if TYPE_CHECKING:
    from clients.worker import ClientWorker


@dataclass(frozen=True)
class TrainingSpec:
    """Local training and its messages: the section ``client``, and the device's halves of method and attack."""

    client: ClientConfig
    corrections: tuple[Correction, ...]
    """The active corrections."""
    uniform_weights: bool
    """Every client weighs 1 in averages, not its number of examples."""
    singles: tuple[str, ...] | None
    """Names of the arrays that the server needs per client; see :meth:`fedsim.core.method.Method.singles`."""
    keep_local: bool
    """Layers that are not exchanged keep personal prompts on the device."""
    seed: int
    keep_half: bool = False
    """Arrays of exchanged layers that do not travel stay on the device."""
    attack: Attack | None = None
    attackers: tuple[int, ...] = ()
    """Ids of the clients that attack."""
    uplink: Link | None = None
    """How what clients send is compressed; None if it is not."""
    counts_downloads: bool = False
    """What a client receives depends on its last visit, as where the way down is compressed."""

    @property
    def keeps_state(self) -> bool:
        """Whether clients keep states between rounds: arrays of a correction, what messages lost, personal prompts, moments."""
        kept = any(correction.kept for correction in self.corrections)
        kept = kept or self.counts_downloads or (self.uplink is not None and self.uplink.feedback)
        return kept or self.keep_local or self.keep_half or self.client.optimizer.moments == "keep"

    def traffic(self, served: Collection[str]) -> Traffic:
        """Return the traffic of a real device in a round; ``served`` names the arrays that the server broadcasts."""
        return round_traffic(self.corrections, self.client, served)


@dataclass(frozen=True)
class AnalysisSpec:
    """Settings for layer scores, spectra and evaluation."""

    score: ScoreSettings
    spectrum: SpectrumSettings
    evaluation_batch_size: int


@dataclass(frozen=True)
class WorkerSpec:
    """Everything needed to build a worker: stored once, mapped by every actor of a node."""

    weights: SharedWeights
    model: ModelConfig
    tuner: Tuner
    num_classes: int
    label_word_ids_C: np.ndarray | None
    """int64 token of each class's word; None where there are none, or several tokens or words (:attr:`TokenTable.words`)."""
    training: TrainingSpec
    analysis: AnalysisSpec
    train: TokenTable
    validation: TokenTable
    shards: Shards
    start: StartingPoint | None = None
    """Start of the prompt, if not random."""
    generation: GenerationSpec | None = None
    """What workers write; None where they do not."""
    empty: TokenTable | None = None
    """The template without a text, whose class scores are subtracted; None without ``model.head.calibration``."""

    @property
    def device(self) -> str:
        """Device of the workers: auto, cpu or cuda."""
        return self.model.device

    @property
    def keeps_state(self) -> bool:
        """See :attr:`TrainingSpec.keeps_state`."""
        return self.training.keeps_state

    @property
    def train_sizes(self) -> np.ndarray:
        """int64 [C]; training examples of each client."""
        return self.shards.train_sizes

    @property
    def nbytes(self) -> int:
        """Bytes of everything stored for the workers."""
        tables = self.train.nbytes + self.validation.nbytes + sum(a.nbytes for a in self.tuner.constants.values())
        return self.weights.nbytes + tables + self.shards.nbytes + self._most_cached_bytes()

    def _most_cached_bytes(self) -> int:
        """Return an upper limit on the bytes of kept frozen-layer caches; layers may not be chosen yet, so assume a cache."""
        if not self.caches((1,)):
            return 0
        values = json.loads(self.weights.config_json)
        hidden_size = values.get("hidden_size") or values.get("n_embd") or 0
        tables = (self.train, self.validation) if self.caches_predictions((1,)) else (self.train,)
        num_rows = sum(int(self.tuner.cached_rows(table.lengths_N).sum()) for table in tables)
        return min(self.model.trunk_cache.memory_mb * 2**20, num_rows * hidden_size * self._cache_itemsize)

    @property
    def _cache_itemsize(self) -> int:
        return {"float64": 8, "float32": 4}.get(self.model.cache_dtype, 2)

    def initial_vector(self, layout: VectorLayout) -> np.ndarray:
        """Return the initial parameters of a layout; see :func:`clients.tuners.initial.initial_vector`."""
        return initial_vector(layout, self.tuner, self.model.head, self.training.seed, self.start)

    def exchanged(self, full: VectorLayout, layers: tuple[int, ...]) -> VectorLayout:
        """Return the layout of the server's vector: what travels of ``layers``, and the head."""
        return Parts.of(full, layers, False, self.tuner).exchanged

    def turns(self, full: VectorLayout, layers: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Return the positions in the server's vector that rounds train in turn; none where every round trains all."""
        layout = self.exchanged(full, layers)
        return tuple(layout.positions(layout.holding(arrays)) for arrays in self.tuner.turns(full.geometry))

    def build(self, device: str | tuple[str, ...]) -> ClientWorker:
        """Return a worker on a device, or on several; call it in the process that runs the worker."""
        from clients.worker import ClientWorker

        return ClientWorker(self, device)

    def caches(self, layers: tuple[int, ...]) -> bool:
        """Whether what the frozen model computes below the lowest tuned layer is kept, and there is such a thing.

        Parameters
        ----------
        layers
            The exchanged layers.
        """
        training = self.training
        if self.model.trunk_cache.dtype == "off" or training.client.dropout or training.keep_local or not layers:
            return False
        return self.tuner.reads_output or min(layers) > 0

    def caches_predictions(self, layers: tuple[int, ...]) -> bool:
        """Whether evaluation keeps what :meth:`caches` says: not where masks are filled, as texts then change."""
        words = self.train.words
        stepwise = self.model.head.decoding == "stepwise" and words is not None and words.num_masks > 1
        return self.caches(layers) and not stepwise

    def cached_bytes(self, key: int | tuple[int, int], layers: tuple[int, ...], hidden_size: int) -> int:
        """Return the bytes of the frozen-layer cache of a client or a range of validation examples; 0 if it has none."""
        if isinstance(key, int):
            indices_N = self.shards.train(key) if self.uses_cache(key, layers) else np.empty(0, np.int64)
            num_rows = int(self.tuner.cached_rows(self.train.lengths_N[indices_N]).sum())
        else:
            lengths_N = self.validation.lengths_N[slice(*key)]
            num_rows = int(self.tuner.cached_rows(lengths_N).sum()) if self.caches_predictions(layers) else 0
        return num_rows * hidden_size * self._cache_itemsize

    def uses_cache(self, client: int, layers: tuple[int, ...]) -> bool:
        """Whether local training of ``client`` uses a frozen-layer cache: only if it sees all of the client's examples.

        A cache of thousands of examples, of which local training uses a few, would cost more than it saves.
        """
        return self.caches(layers) and sees_all(self.training.client, len(self.shards.train(client)))


@dataclass(frozen=True)
class WorkerInfo:
    """A worker's process and backbone."""

    node: str
    pid: int
    device: str
    threads: int
    full: VectorLayout
    """Layout with a prompt in every layer."""
    max_tokens: int
    """Longest text that the backbone has positions for, in tokens."""
    hidden_size: int = 0
    """Size of a token's hidden state."""
    node_id: str = ""
    """Ray's id of the node; empty without Ray."""
    emulates_products: bool = False
    """Whether products are in bfloat16 on a processor without instructions for it."""
    processor: str = ""
    """What of the machine decides the last bits of results; see :func:`clients.backbone.processor.describe_processor`."""
