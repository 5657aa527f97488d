"""Write LoRA runs as PEFT adapters: the same changes of the same linear maps, in the layers that were trained."""

from __future__ import annotations

from pathlib import Path

from peft import LoraConfig

from clients.tuners.config import TunerConfig
from clients.tuners.lora_halves import A, B
from fedsim.core.errors import ModelError
from fedsim.core.uses import EVERY_KEY
from fedsim.prompts.peft_export import TrainedModel, has_personal, tuned_layers
from fedsim.prompts.peft_layers import about_layers, target_names, write_layers
from fedsim.prompts.prompt_file import PromptFile


def export_lora(file: PromptFile, output: Path, client: int | None) -> None:
    """Write the A and B of a run's layers as an adapter; layers without any stay as in the base model.

    Parameters
    ----------
    output
        Folder to write; must be new or empty.
    client
        Add the layers that this client kept to itself.

    Raises
    ------
    ModelError
        If maps have residuals (``tuner.exact``), the clients kept B (``tuner.exchange``) and none is given, the model is not
        found, the client has no layers of its own, or the output cannot be written.
    """
    if file.metadata["tuner"].get("exact"):
        raise ModelError(
            f"{file.path} was trained with tuner.exact=true, which changed the model's maps themselves too, and a PEFT adapter "
            "has no place for that; use it with fedsim.load_adapter"
        )
    if client is None and has_personal(file) and _changes_nothing(file):
        raise ModelError(
            f"{file.path} changes nothing by itself, as the clients kept B to themselves; give one of them with --client"
        )
    layers = tuned_layers(file, client)
    trained = TrainedModel.of(file)
    adapter = _config(trained, tuple(layers))
    about = about_layers(trained, tuple(layers), "LoRA adapter", "Low-rank changes", f"rank {adapter.r}, on")
    write_layers(trained, output, adapter, layers, about, client, ".weight")


def _changes_nothing(file: PromptFile) -> bool:
    """Whether all A or all B are zero."""
    arrays = file.layout.geometry.split(file.tuned_LX)  # type: ignore[attr-defined]
    halves = ([array for name, array in arrays.items() if name.endswith(end)] for end in (A, B))
    return any(not any(array.any() for array in half) for half in halves)


def _config(trained: TrainedModel, layers: tuple[int, ...]) -> LoraConfig:
    tuner = TunerConfig.model_validate(trained.file.metadata["tuner"], context=EVERY_KEY)
    # PEFT matches the ends of names. A tuner does so as well, so a map whose name ends with that of another changed map is
    # itself among them, and PEFT finds no further ones.
    targets = target_names(trained)
    adapter = LoraConfig(
        **trained.common,
        r=tuner.rank,
        lora_alpha=int(tuner.alpha) if tuner.alpha == int(tuner.alpha) else tuner.alpha,  # type: ignore[arg-type]
        use_rslora=tuner.scaling == "rslora",
        target_modules=targets,
        # Stated for all layers too: it keeps maps outside the layers out, such as the "dense" of an LM head.
        layers_to_transform=list(layers),
        layers_pattern=trained.family.layers.rpartition(".")[2],
        fan_in_fan_out=trained.family.transposed_weights,
        bias="none",
        lora_dropout=0.0,
    )
    # PEFT makes a set of them, which would be saved in an order that changes from process to process.
    adapter.target_modules = targets
    return adapter
