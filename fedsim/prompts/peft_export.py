"""What all exports to PEFT share: the model of the run, a client's own layers, the head and the folder.

Shape suffixes: L layers, X axes of one layer's trained numbers, N clients, M a client's personal numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftConfig, TaskType
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedConfig

from clients.backbone.families import Family, family_of
from clients.backbone.heads import resolve_pooling
from clients.backbone.loading import config_values
from clients.backbone.location import folder_of, locate
from clients.backbone.model_files import ADAPTER_CONFIG, adapter_in
from clients.config import ModelConfig
from fedsim.core.errors import ModelError
from fedsim.core.layout import VectorLayout
from fedsim.core.uses import EVERY_KEY
from fedsim.prompts.peft_readme import AboutAdapter, hub_name, readme
from fedsim.prompts.prompt_file import PERSONAL_PROMPTS, PromptFile
from fedsim.prompts.provenance.origin import Origin
from fedsim.prompts.provenance.write import write_provenance

ADAPTER_ARRAYS = "adapter_model.safetensors"
HEAD_ARRAYS = "head.safetensors"


@dataclass(frozen=True)
class TrainedModel:
    """A prompt file and the model that it was trained on."""

    file: PromptFile
    model: ModelConfig
    config: PreTrainedConfig
    family: Family

    @classmethod
    def of(cls, file: PromptFile) -> TrainedModel:
        """Read the model's configuration; its weights are not needed.

        Raises
        ------
        ModelError
            If the model is not found, or transformers changes it on loading by attaching an adapter beside it.
        """
        model = ModelConfig.model_validate(file.metadata["model"], context=EVERY_KEY)
        values = config_values(locate(model), model.location)
        family = family_of(values, model.location)
        _refuse_adapter_beside(model)
        return cls(file, model, family.config(values), family)

    @property
    def with_lm_head(self) -> bool:
        """Whether what is read comes from the model's LM head."""
        return self.model.head.kind != "classifier"

    @property
    def needs_token_types(self) -> bool:
        """Whether texts of an example are told apart by token types; a template makes one text of them."""
        with_types = getattr(self.config, "type_vocab_size", 0) > 1
        return with_types and not self.with_lm_head and len(self.file.metadata["task"]["fields"]) > 1

    @property
    def common(self) -> dict[str, Any]:
        """Keys of every adapter's configuration."""
        # FEATURE_EXTRACTION is PEFT's only type that passes a prefix to whatever model it is given and returns that
        # model's own output: without a type the prefix is dropped; the others expect their own classifier.
        causal = self.with_lm_head and self.family.predicts_next
        return {
            "task_type": TaskType.CAUSAL_LM if causal else TaskType.FEATURE_EXTRACTION,
            "base_model_name_or_path": locate(self.model),
            "inference_mode": True,
        }

    def write(
        self,
        output: Path,
        adapter: PeftConfig,
        arrays: Mapping[str, np.ndarray],
        about: AboutAdapter,
        client: int | None = None,
    ) -> None:
        """Write an adapter, the head if it was trained, and their provenance.

        That is a README.md on how to use them and how they were trained, the run's config, and RO-Crate metadata.

        Parameters
        ----------
        client
            The client whose own layers the arrays hold too.

        Raises
        ------
        ModelError
            If the folder cannot be written.
        """
        text = readme(self.file.metadata, adapter, self.family, about, token_types=self.needs_token_types)
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        try:
            output.mkdir(parents=True, exist_ok=True)
            adapter.save_pretrained(str(output))
            save_file(whole, output / ADAPTER_ARRAYS, metadata={"format": "pt"})
            if self.file.head:
                self._write_head(output / HEAD_ARRAYS)
            origin = Origin.of(self.file.path, self.file.metadata, hub_name(adapter), client)
            write_provenance(output, origin, about.title, text)
        except OSError as error:
            raise ModelError(f"the adapter cannot be written to {output}: {error.strerror or error}") from None

    def _write_head(self, path: Path) -> None:
        about: Mapping[str, Any] = {
            "pooling": resolve_pooling(self.model.head.pooling, self.family),
            "labels": self.file.metadata["task"]["labels"],
        }
        arrays = {name: np.ascontiguousarray(array) for name, array in self.file.head.items()}
        save_file(arrays, path, metadata={"head": json.dumps(about, sort_keys=True)})


def _refuse_adapter_beside(model: ModelConfig) -> None:
    folder = folder_of(locate(model))
    beside = None if folder is None else adapter_in(folder)
    if beside is not None:
        raise ModelError(
            f"the folder of model {model.location} holds {beside.named}, which transformers puts into the model whenever it "
            f"loads it, so no further adapter gives the same scores; move {ADAPTER_CONFIG} out of the folder"
        )


def refuse_used(output: Path) -> None:
    """Refuse an output that is not a new or empty folder."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ModelError(f"the output {output} exists and is not an empty folder; give another one with --output")


def has_personal(file: PromptFile) -> bool:
    """Whether clients kept layers to themselves, which lie beside the file."""
    return _personal_path(file).is_file()


def tuned_layers(file: PromptFile, client: int | None) -> dict[int, np.ndarray]:
    """Return the trained numbers of each layer, float32; with ``client`` also of the layers that it kept to itself.

    Raises
    ------
    ModelError
        If the client has no layers of its own.
    """
    layers: dict[int, np.ndarray] = dict(zip(file.layout.layers, file.tuned_LX, strict=True))
    if client is not None:
        if not has_personal(file):
            raise ModelError(f"there are no personal layers beside {file.path}; leave --client out")
        layers |= _personal(file, client)
    return dict(sorted(layers.items()))


def _personal_path(file: PromptFile) -> Path:
    return file.path.with_name(PERSONAL_PROMPTS)


def _personal(exchanged: PromptFile, client: int) -> dict[int, np.ndarray]:
    """Return a client's own numbers of the layers that were not exchanged, or only in part, as with ``tuner.exchange``."""
    path, layout = _personal_path(exchanged), VectorLayout.full(exchanged.layout.geometry)
    others = layout.local(exchanged.layout.layers).layers
    try:
        with safe_open(path, framework="numpy") as file:
            layers = tuple(json.loads(file.metadata()["fedsim"])["layers"])
            clients, personal_NM = file.get_tensor("clients").tolist(), file.get_tensor("personal")
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ModelError(f"{path} does not hold personal layers: {error}") from None
    if layers not in (others, exchanged.layout.layers):
        raise ModelError(f"{path} holds layers {list(layers)}, but {list(others)} are missing in the global prompt")
    if client not in clients:
        shown = ", ".join(map(str, clients[:20])) + (", ..." if len(clients) > 20 else "")
        raise ModelError(f"client {client} never trained, so it has no personal layers; these have some: {shown}")
    tuned_LX: np.ndarray = layout.exchanged(layers).split(personal_NM[clients.index(client)])[0]
    return dict(zip(layers, tuned_LX.astype(np.float32), strict=True))
