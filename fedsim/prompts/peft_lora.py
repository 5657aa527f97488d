"""Write LoRA runs as PEFT adapters: the same changes of the same linear maps, in the layers that were trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from peft import LoraConfig

from clients.tuners.config import TunerConfig
from clients.tuners.lora_halves import A
from fedsim.core.errors import ModelError
from fedsim.core.layout import LayerArrays
from fedsim.core.uses import EVERY_KEY
from fedsim.prompts.peft_export import TrainedModel, tuned_layers
from fedsim.prompts.peft_readme import AboutAdapter
from fedsim.prompts.prompted_model import PromptFile

_TOKEN_TYPES = """\
This model tells the texts of an example apart by token types; give them to the call:

```python
output = model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
```
"""


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
        If maps have residuals (``tuner.exact``), the model is not found, the client has no layers of its own, or the output
        cannot be written.
    """
    if file.metadata["tuner"].get("exact"):
        raise ModelError(
            f"{file.path} was trained with tuner.exact=true, which changed the model's maps themselves too, and a PEFT adapter "
            "has no place for that; use it with fedsim.load_adapter"
        )
    layers = tuned_layers(file, client)
    trained = TrainedModel.of(file)
    adapter = _config(trained, tuple(layers))
    trained.write(output, adapter, _arrays(trained, layers), _about(adapter, file.layout.geometry.num_layers))


def _config(trained: TrainedModel, layers: tuple[int, ...]) -> LoraConfig:
    tuner = TunerConfig.model_validate(trained.file.metadata["tuner"], context=EVERY_KEY)
    targets = _targets(trained.file)
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


def _targets(file: PromptFile) -> list[str]:
    """Return the names of the changed maps within a layer.

    PEFT matches the ends of names. A tuner does so as well, so a map whose name ends with that of another changed map is
    itself among them, and PEFT finds no further ones.
    """
    shape = file.layout.geometry
    assert isinstance(shape, LayerArrays)
    return [name.removesuffix(f".{A}") for name, _ in shape.arrays if name.endswith(f".{A}")]


def _arrays(trained: TrainedModel, layers: dict[int, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays by PEFT's names, which begin at the model that the README loads."""
    shape, family = trained.file.layout.geometry, trained.family
    assert isinstance(shape, LayerArrays)
    base = f"{family.model_class(family.lm_kind).base_model_prefix}." if trained.with_lm_head else ""
    return {
        f"base_model.model.{base}{family.layers}.{layer}.{name}.weight": array
        for layer, tuned_X in layers.items()
        for name, array in shape.split(tuned_X).items()
    }


def _about(adapter: LoraConfig, num_layers: int) -> AboutAdapter:
    layers = adapter.layers_to_transform
    assert isinstance(layers, list) and adapter.target_modules is not None
    where = f"each of {num_layers} layers" if len(layers) == num_layers else f"layers {', '.join(map(str, layers))}"
    maps = ", ".join(f"`{target}`" for target in adapter.target_modules)
    return AboutAdapter(
        title="LoRA adapter",
        trained="Low-rank changes",
        what=f"rank {adapter.r}, on {maps} in {where}",
        calls="Give every call an `attention_mask`, and pad on the right.",
        token_types=_TOKEN_TYPES,
    )
