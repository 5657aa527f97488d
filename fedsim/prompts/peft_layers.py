"""Write runs that trained arrays of linear maps as PEFT adapters: what LoRA and IA³ share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from peft import PeftConfig

from fedsim.core.layout import LayerArrays
from fedsim.prompts.peft_export import TrainedModel
from fedsim.prompts.peft_readme import AboutAdapter

_TOKEN_TYPES = """\
This model tells the texts of an example apart by token types; give them to the call:

```python
output = model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
```
"""


def target_names(trained: TrainedModel) -> list[str]:
    """Return the names of the changed maps within a layer, each once, in the order of the file."""
    shape = trained.file.layout.geometry
    assert isinstance(shape, LayerArrays)
    return list(dict.fromkeys(name.rpartition(".")[0] for name, _ in shape.arrays))


def write_layers(
    trained: TrainedModel,
    output: Path,
    adapter: PeftConfig,
    layers: dict[int, np.ndarray],
    about: AboutAdapter,
    client: int | None,
    end: str = "",
) -> None:
    """Write an adapter with the arrays of some layers, by PEFT's names.

    Parameters
    ----------
    layers
        What PEFT's arrays hold, by model layer.
    client
        The client whose own layers are among them.
    end
        What follows our name of an array in PEFT's.
    """
    shape, family = trained.file.layout.geometry, trained.family
    assert isinstance(shape, LayerArrays)
    # PEFT's names begin at the model that the README loads.
    base = f"{family.model_class(family.lm_kind).base_model_prefix}." if trained.with_lm_head else ""
    arrays = {
        f"base_model.model.{base}{family.layers}.{layer}.{name}{end}": array
        for layer, tuned_X in layers.items()
        for name, array in shape.split(tuned_X).items()
    }
    trained.write(output, adapter, arrays, about, client)


def about_layers(trained: TrainedModel, layers: Sequence[int], title: str, subject: str, what: str) -> AboutAdapter:
    """Return what the README says.

    Parameters
    ----------
    what
        Kind and size of what was trained; the maps and layers follow.
    """
    total = trained.file.layout.geometry.num_layers
    where = f"each of {total} layers" if len(layers) == total else f"layers {', '.join(map(str, layers))}"
    maps = ", ".join(f"`{target}`" for target in target_names(trained))
    return AboutAdapter(
        title=title,
        trained=subject,
        what=f"{what} {maps} in {where}",
        calls="Give every call an `attention_mask`, and pad on the right.",
        token_types=_TOKEN_TYPES,
        pads=True,
    )
