"""Write IA³ runs as PEFT adapters: the same vectors on the same linear maps, in the layers that were trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from peft import IA3Config

from clients.tuners.config import TunerConfig
from fedsim.core.layout import LayerArrays
from fedsim.core.uses import EVERY_KEY
from fedsim.prompts.peft_export import TrainedModel, tuned_layers
from fedsim.prompts.peft_layers import about_layers, write_layers
from fedsim.prompts.prompt_file import PromptFile


def export_ia3(file: PromptFile, output: Path, client: int | None) -> None:
    """Write the vectors of a run's layers as an adapter; layers without any stay as in the base model.

    Parameters
    ----------
    output
        Folder to write; must be new or empty.
    client
        Add the layers that this client kept to itself.

    Raises
    ------
    ModelError
        If the model is not found, the client has no layers of its own, or the output cannot be written.
    """
    origin = TunerConfig.model_validate(file.metadata["tuner"], context=EVERY_KEY).origin
    layers = {layer: tuned_X + np.float32(origin) for layer, tuned_X in tuned_layers(file, client).items()}
    trained = TrainedModel.of(file)
    about = about_layers(trained, tuple(layers), "IA³ adapter", "Scaling vectors", "one vector for each of")
    write_layers(trained, output, _config(trained, tuple(layers)), layers, about, client)


def _config(trained: TrainedModel, layers: tuple[int, ...]) -> IA3Config:
    shape = trained.file.layout.geometry
    assert isinstance(shape, LayerArrays)
    scaled = [(name.rpartition(".")[0], dims[0] == 1) for name, dims in shape.arrays]
    # IA3Config has no layers_to_transform: targets name the layers, so that no end of a name fits anything else.
    placed = [(f"{trained.family.layers}.{layer}.{name}", inward) for layer in layers for name, inward in scaled]
    targets, feedforward = [path for path, _ in placed], [path for path, inward in placed if inward]
    adapter = IA3Config(
        **trained.common,
        target_modules=targets,
        feedforward_modules=feedforward,
        fan_in_fan_out=trained.family.transposed_weights,
    )
    # PEFT makes sets of them, which would be saved in an order that changes from process to process.
    adapter.target_modules, adapter.feedforward_modules = targets, feedforward
    return adapter
