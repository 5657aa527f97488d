"""What a worker is built from, and what it tells of itself."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clients.analysis.layer_share import SpectrumSettings
from clients.analysis.scoring import ScoreSettings
from clients.backbone.loading import SharedWeights
from clients.config import ClientConfig, ModelConfig
from clients.training.local_job import sees_all
from clients.tuners.initial import StartingPoint, initial_vector
from clients.tuners.tuner import Tuner
from fedsim.core.attack import Attack
from fedsim.core.layout import VectorLayout
from fedsim.core.method import Correction
from fedsim.core.shards import Shards
from fedsim.core.tokens import TokenTable
from fedsim.core.traffic import Traffic, round_traffic

if TYPE_CHECKING:
    from clients.worker import ClientWorker


@dataclass(frozen=True)
class TrainingSpec:
    """How clients train and what they send: the section ``client``, and the device's halves of method and attack."""

    client: ClientConfig
    corrections: tuple[Correction, ...]
    """Those in force."""
    uniform_weights: bool
    """A client weighs one in averages, not its number of examples."""
    singles: tuple[str, ...] | None
    """Names of what the server looks at client by client; see :meth:`fedsim.core.method.Method.singles`."""
    keep_local: bool
    """Layers that are not exchanged keep personal prompts on the device."""
    seed: int
    attack: Attack | None = None
    attackers: tuple[int, ...] = ()
    """Ids of the clients that attack."""

    @property
    def keeps_state(self) -> bool:
        """Whether a client keeps tensors between rounds: arrays of a correction, personal prompts or moments."""
        kept = any(correction.kept for correction in self.corrections)
        return kept or self.keep_local or self.client.optimizer.moments == "keep"

    def traffic(self, served: Collection[str]) -> Traffic:
        """Return what a real device would receive and send in a round; ``served`` names the arrays that the server has."""
        return round_traffic(self.corrections, self.client, served)


@dataclass(frozen=True)
class AnalysisSpec:
    """How clients score layers, take spectra and evaluate."""

    score: ScoreSettings
    spectrum: SpectrumSettings
    evaluation_batch_size: int


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker is built from: stored once, mapped by every actor of a node."""

    weights: SharedWeights
    model: ModelConfig
    tuner: Tuner
    num_classes: int
    label_word_ids_C: np.ndarray | None
    training: TrainingSpec
    analysis: AnalysisSpec
    train: TokenTable
    validation: TokenTable
    shards: Shards
    start: StartingPoint | None = None
    """Where the run starts instead of at random."""

    @property
    def device(self) -> str:
        """Where workers compute: auto, cpu or cuda."""
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
        """Bytes of all that is stored for the workers."""
        tables = self.train.nbytes + self.validation.nbytes
        return self.weights.nbytes + tables + self.shards.nbytes + self._most_cached_bytes()

    def _most_cached_bytes(self) -> int:
        """Return the most bytes that kept trunks may take; before layers are chosen, so as if there were a trunk."""
        if not self.cached_depth((1,)):
            return 0
        values = json.loads(self.weights.config_json)
        hidden_size = values.get("hidden_size") or values.get("n_embd") or 0
        num_tokens = len(self.train.ids_Z) + len(self.validation.ids_Z)
        return min(self.model.trunk_cache.memory_mb * 2**20, num_tokens * hidden_size * self._cache_itemsize)

    @property
    def _cache_itemsize(self) -> int:
        return {"float64": 8, "float32": 4}.get(self.model.cache_dtype, 2)

    def initial_vector(self, layout: VectorLayout) -> np.ndarray:
        """Return the initial parameters of a layout; see :func:`clients.tuners.initial.initial_vector`."""
        return initial_vector(layout, self.tuner, self.model.head, self.training.seed, self.start)

    def build(self, device: str) -> ClientWorker:
        """Return a worker; called in the process that it is to run in."""
        from clients.worker import ClientWorker

        return ClientWorker(self, device)

    def cached_depth(self, layers: tuple[int, ...]) -> int:
        """Return the layers of the trunk, those under the lowest prompted one: 0 where there are none, or it is not kept.

        Parameters
        ----------
        layers
            The exchanged layers.
        """
        training = self.training
        if self.model.trunk_cache.dtype == "off" or training.client.dropout or training.keep_local or not layers:
            return 0
        return min(layers)

    def cached_bytes(self, key: int | tuple[int, int], layers: tuple[int, ...], hidden_size: int) -> int:
        """Return the bytes of a client's trunk, or of that of a range of validation examples; 0 where it has none."""
        if isinstance(key, int):
            indices_N = self.shards.train(key) if self.uses_cache(key, layers) else np.empty(0, np.int64)
            num_tokens = int(self.train.lengths_N[indices_N].sum())
        else:
            num_tokens = int(self.validation.lengths_N[slice(*key)].sum()) if self.cached_depth(layers) else 0
        return num_tokens * hidden_size * self._cache_itemsize

    def uses_cache(self, client: int, layers: tuple[int, ...]) -> bool:
        """Whether a visit of ``client`` runs on its trunk: where it sees all of the client's examples.

        A trunk of thousands of examples, of which a visit takes a few, would cost more than it saves.
        """
        return self.cached_depth(layers) > 0 and sees_all(self.training.client, len(self.shards.train(client)))


@dataclass(frozen=True)
class WorkerInfo:
    """Where a worker runs and what its backbone looks like."""

    node: str
    pid: int
    device: str
    threads: int
    full: VectorLayout
    """Layout with a prompt in every layer."""
    max_tokens: int
    """Longest text, in tokens, that the backbone has positions for."""
    hidden_size: int = 0
    """Numbers in the hidden state of a token."""
    node_id: str = ""
    """Ray's name of the node; empty without Ray."""
