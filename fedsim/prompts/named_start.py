"""Starting points of tuners that train named arrays (``tuner.start_from``): earlier runs of the same kind and PEFT adapters.

A map that the source of LoRA or IA³ left alone starts as the tuner draws it, which changes no output; so a source with fewer
layers or maps than the run is continued exactly. One with more is refused, since its change would be lost.

To take the PEFT adapters of another kind of tuner: give it a row in ``_READERS``, whose function reads such a folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clients.backbone.families import Family
from clients.backbone.model_files import ADAPTER_CONFIG
from clients.tuners.config import TunerConfig
from clients.tuners.initial import StartingPoint
from clients.tuners.tuner import Tuner
from fedsim.configuration.schema import Config
from fedsim.core.errors import ModelError
from fedsim.core.layout import LayerArrays
from fedsim.core.uses import EVERY_KEY
from fedsim.planning.model_shape import model_shape
from fedsim.planning.tuned_shape import tuned_shape
from fedsim.prompts.named_arrays import LEAVE_ALONE, NamedArrays, check_named, key_values
from fedsim.prompts.prompt_file import GLOBAL_PROMPT, read_prompt

if TYPE_CHECKING:
    from clients.backbone.shared_weights import SharedWeights


def _read_lora(folder: Path, family: Family) -> NamedArrays:
    from fedsim.prompts.peft_lora_start import read_lora

    return read_lora(folder, family)


def _read_ia3(folder: Path, family: Family) -> NamedArrays:
    from fedsim.prompts.peft_ia3_start import read_ia3

    return read_ia3(folder, family)


def _read_soft_prompt(folder: Path, family: Family) -> NamedArrays:
    from fedsim.prompts.peft_soft_prompt_start import read_soft_prompt

    return read_soft_prompt(folder)


_READERS: dict[str, Callable[[Path, Family], NamedArrays]] = {
    "lora": _read_lora,
    "ia3": _read_ia3,
    "soft_prompt": _read_soft_prompt,
}
"""By ``tuner.kind``: what reads the folder of a PEFT adapter."""


def load_named(config: Config, weights: SharedWeights, tuner: Tuner) -> StartingPoint:
    """Read what ``tuner.start_from`` names.

    Raises
    ------
    ModelError
        If there is no such adapter, run or prompt file, or the run cannot start exactly where it ended.
    """
    named = _read(config, weights.family)
    model = model_shape(config.model)
    assert model is not None  # its weights have been read
    shape = tuned_shape(config, model)
    assert isinstance(shape, LayerArrays)
    check_named(config, named, shape, tuner)
    drawn = config.tuner.kind in LEAVE_ALONE
    layers, rows = shape.tunable if drawn else tuple(sorted(named.arrays)), []
    for layer in layers:
        tuned_X = tuner.initial(shape, layer, config.seed) if drawn else np.zeros(shape.layer_size)
        tuned_X = tuned_X.astype(np.float32)
        theirs = named.arrays.get(layer, {})
        for name, part in shape.split(tuned_X).items():
            if name in theirs or not drawn:
                part[...] = theirs[name]
        rows.append(tuned_X)
    source = str(config.tuner.start_from)
    return StartingPoint(
        source, shape, layers, np.stack(rows), named.head, left_out=named.left_out, key="tuner.start_from"
    )


def _read(config: Config, family: Family) -> NamedArrays:
    kind, source = config.tuner.kind, config.tuner.start_from
    assert source is not None
    path = Path(source).expanduser()
    if (path / ADAPTER_CONFIG).is_file():
        if kind not in _READERS:
            raise ModelError(
                f"tuner.start_from {source} is a PEFT adapter, and PEFT has none for tuner.kind={kind}; give the folder or the "
                "prompt file of a run"
            )
        return _READERS[kind](path, family)
    if not path.exists():
        raise ModelError(
            f"tuner.start_from {source} does not exist; give the folder of a PEFT adapter or of a run, or a prompt file"
        )
    if path.is_dir() and not (path / "prompt" / GLOBAL_PROMPT).is_file():
        raise ModelError(
            f"tuner.start_from {source} holds neither {ADAPTER_CONFIG} (a PEFT adapter) nor prompt/{GLOBAL_PROMPT} (a run "
            "that has ended)"
        )
    return _of_run(path, kind, source)


def _of_run(path: Path, kind: str, source: str) -> NamedArrays:
    file = read_prompt(path)
    if file.kind != kind:
        raise ModelError(
            f"tuner.start_from {source} was trained with tuner.kind={file.kind}, but this run has tuner.kind={kind}"
        )
    shape = file.layout.geometry
    assert isinstance(shape, LayerArrays)
    arrays = {layer: shape.split(row) for layer, row in zip(file.layout.layers, file.tuned_LX, strict=True)}
    trained = TunerConfig.model_validate(file.metadata["tuner"], context=EVERY_KEY)
    return NamedArrays(arrays, key_values(trained, shape), file.head, num_layers=shape.num_layers)
