"""Kept results of the workers: layer scores, the evaluation of a start, and the answer of a fuse trial.

A worker's results are pure functions of its specification and of a call's arguments. A key holds what a call reads of both,
and the workers' processors, whose kernels decide the last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.core.messages import Evaluation, FuseTrial, GlobalState
from fedsim.core.plugins import is_plugin
from fedsim.kept.kept import Kept, Slot
from fedsim.kept.store import Record

if TYPE_CHECKING:
    from clients.spec import WorkerInfo
    from fedsim.configuration.schema import Config
    from fedsim.simulation.preparation import Prepared

_MODEL_PLACES = {"path", "package", "device", "trust_remote_code"}
_TUNER_PLACES = {"start_from", "sources"}
"""Keys that say where something is, and are no part of a key: its content has a hash of its own."""
_NOT_TRIED = {"fuse", "schedule", "optimizer", "correction", "proximal_mu", "on_failure"}
"""Keys of ``client`` that do not change how long the steps of a fuse trial take."""


@dataclass(frozen=True)
class Computed:
    """What the workers of a run compute, and where it is kept."""

    kept: Kept
    config: Config
    prepared: Prepared
    workers: Sequence[WorkerInfo]

    def scores(self, state: GlobalState, clients: Sequence[int]) -> Slot:
        """Return the slot of the layer scores of some clients at a state, combined."""

        def content() -> dict[str, Any] | None:
            contents, analysis = self.prepared.contents, self.prepared.spec.analysis
            at = self._at(state)
            return at and {
                **at,
                "data": [contents["training_data"], contents["partition"]],
                "clients": list(clients),
                "settings": asdict(analysis.score),
            }

        return self.kept.slot("scores", content, self._about(f"{len(clients):,} clients"))

    def start(self, state: Callable[[], GlobalState], shards: Sequence[tuple[int, int]]) -> Slot:
        """Return the slot of the evaluation of a state on all validation examples; ``state`` fetches it."""

        def content() -> dict[str, Any] | None:
            contents, spec, client = self.prepared.contents, self.prepared.spec, self.config.client
            start = state()
            at = self._at(start)
            return at and {
                **at,
                "data": contents["validation_data"],
                "shards": [list(shard) for shard in shards],
                "batch_size": spec.analysis.evaluation_batch_size,
                "caches": spec.caches_predictions(start.layers),
                "pass_tokens": client.micro_batch_tokens,
            }

        return self.kept.slot("start", content, self._about(f"{shards[-1][1] if shards else 0:,} examples"))

    def fuse(self, layers: Sequence[int], clients: int) -> Slot:
        """Return the slot of the answer of a fuse trial: its key holds what a step costs, not which numbers it computes."""

        def content() -> dict[str, Any] | None:
            model, spec, client = self._model(), self.prepared.spec, self.config.client
            return model and {
                **model,
                "contents": {key: self.prepared.contents[key] for key in ("model_config", "training_data")},
                "layers": list(layers),
                "clients": clients,
                "client": client.model_dump(mode="json", exclude=_NOT_TRIED),
                "optimizer": [client.optimizer.kind, client.optimizer.population],
                "tallies": sum(len(correction.tallies) for correction in spec.training.corrections),
                "actors": len(self.workers),
            }

        return self.kept.slot("fuse", content, self._about(f"{clients} clients"))

    def _model(self) -> dict[str, Any] | None:
        """Return what every pass depends on, without the weights; None if a plug-in has a part in it."""
        from clients.backbone.families import FAMILIES

        config, spec = self.config, self.prepared.spec
        if is_plugin(FAMILIES.origin(spec.weights.family.name)):
            return None
        model = config.model.model_dump(mode="json", exclude=_MODEL_PLACES)
        model.get("trunk_cache", {}).pop("memory_mb", None)
        machines = {(worker.processor, worker.device, worker.threads) for worker in self.workers}
        return {
            "model": model,
            "tuner": config.tuner.model_dump(mode="json", exclude=_TUNER_PLACES),
            "prompt": config.prompt.model_dump(mode="json", exclude=_TUNER_PLACES),
            "classes": spec.num_classes,
            "machines": sorted(machines),
        }

    def _at(self, state: GlobalState) -> dict[str, Any] | None:
        """Return what passes from a state depend on, beside the examples."""
        model, contents = self._model(), self.prepared.contents
        names = ("weights", "model_config", "label_words", "empty_text", "constants", "start")
        return model and {
            **model,
            "contents": {name: contents.get(name) for name in names},
            "seed": self.config.seed,
            "layers": list(state.layers),
            "vector": np.asarray(state.vector_F),
        }

    def _about(self, of: str) -> str:
        return f"{self.config.model.location}, {self.prepared.data.task.name}, {of}"


# -- forms in files ----------------------------------------------------------------------------------------------------


def scores_record(scores_L: np.ndarray, spread_2L: np.ndarray) -> Record:
    """Return layer scores and their spread over clients as a record."""
    return Record(arrays={"scores_L": scores_L, "spread_2L": spread_2L})


def scores_of(record: Record, layers: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the layer scores of a record, and their spread, which older records lack.

    Raises ValueError if they are not those of so many layers.
    """
    scores_L, spread_2L = record.arrays["scores_L"], record.arrays.get("spread_2L")
    if scores_L.shape != (layers,) or scores_L.dtype != np.float64:
        raise ValueError("scores of another model")
    if spread_2L is not None and spread_2L.shape != (2, layers):
        raise ValueError("a spread of another model")
    return scores_L, spread_2L


def evaluation_record(evaluation: Evaluation) -> Record:
    """Return an evaluation as a record."""
    return Record(
        arrays={"confusion_CC": evaluation.confusion_CC, "loss_sum": np.array([evaluation.loss_sum], np.float64)}
    )


def evaluation_of(record: Record, classes: int) -> Evaluation:
    """Return the evaluation of a record; raise ValueError if it is not one of so many classes."""
    confusion_CC, (loss_sum,) = record.arrays["confusion_CC"], record.arrays["loss_sum"]
    if confusion_CC.shape != (classes, classes) or confusion_CC.dtype != np.int64:
        raise ValueError("an evaluation of other classes")
    return Evaluation(confusion_CC, float(loss_sum))


def trial_record(trial: FuseTrial) -> Record:
    """Return a fuse trial as a record."""
    return Record(values=asdict(trial))


def trial_of(record: Record) -> FuseTrial:
    """Return the fuse trial of a record."""
    return FuseTrial(**record.values)
