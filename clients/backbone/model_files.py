"""Inspect the files of a model's folder before anything is loaded; imports neither torch nor transformers."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.core.errors import ModelError, listed

ADAPTER_CONFIG = "adapter_config.json"
MODEL_TITLES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "electra": "Electra",
    "distilbert": "DistilBert",
    "modernbert": "ModernBert",
    "deberta-v2": "DebertaV2",
    "gpt2": "GPT2",
    "gpt_neox": "GPTNeoX",
    "opt": "OPT",
    "llama": "Llama",
    "mistral": "Mistral",
    "phi3": "Phi3",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "smollm3": "SmolLM3",
    "olmo": "Olmo",
    "olmo2": "Olmo2",
    "olmo3": "Olmo3",
    "granite": "Granite",
    "qwen3_moe": "Qwen3Moe",
    "gpt_oss": "GptOss",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3",
    "t5": "T5",
    "mt5": "MT5",
    "umt5": "UMT5",
}
"""Prefixes of transformers' class names by ``model_type``, as in ``clients.backbone.families``, which imports
torch."""
ENCODERS_ALONE = ("t5", "mt5", "umt5")
"""Model types of an encoder and a decoder, of which the encoder alone is used."""
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""Errors raised on reading a file of another format."""


# -- weights -----------------------------------------------------------------------------------------------------------


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files from which transformers reads a model's weights, if any.

    Other files beside them (``consolidated.safetensors``, ``model.fp16.safetensors``, an adapter) are not read.
    """
    named = read_json(folder / "config.json").get("transformers_weights")
    for name in (named,) if isinstance(named, str) else (_WEIGHTS, _INDEX):
        if (folder / name).is_file():
            return _shards(folder / name) if name.endswith(".index.json") else (folder / name,)
    return ()


def _shards(index: Path) -> tuple[Path, ...]:
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return tuple(index.parent / name for name in sorted(set(names)))


def check_weights(folder: Path, name: str) -> None:
    """Refuse a folder without model weights, naming what it holds instead.

    Parameters
    ----------
    name
        Model name for errors.

    Raises
    ------
    ModelError
        If there are no safetensors files, or a shard is missing.
    """
    try:
        files = weight_files(folder)
    except _UNREADABLE:
        return  # a damaged index, which is reported when the weights are loaded
    lost = next((file for file in files if not file.is_file()), None)
    if lost is not None:
        raise ModelError(
            f"the weights of model {name} are incomplete: their index names {lost.name}, which is not there"
        )
    if files:
        return
    if (folder / _INDEX).is_file():
        raise ModelError(f"the weights of model {name} cannot be read: {_INDEX} names no file")
    if ggufs := sorted(folder.glob("*.gguf")):
        raise gguf_error(ggufs[0])
    if (adapter := adapter_in(folder)) is not None:
        raise ModelError(
            f"{name} holds {adapter.named} and a config.json, but no weights of a model; {adapter.instead(folder)}"
        )
    raise ModelError(f"the weights of model {name} cannot be read (only safetensors files are): {_instead(folder)}")


def _instead(folder: Path) -> str:
    pickles = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt*"))
    if pickles:
        return (
            f"{pickles[0]} is a pickle, which could run code; load it with transformers where you trust it, and save the model "
            "with save_pretrained, which writes safetensors"
        )
    others = listed(sorted(path.name for path in folder.glob("*.safetensors")), 3)
    there = f", only {others}" if others else ""
    return f"there is neither {_WEIGHTS} nor {_INDEX}{there}; save the model with transformers' save_pretrained"


def gguf_error(file: Path) -> ModelError:
    """Return the error for a GGUF model."""
    return ModelError(
        f"{file} is a GGUF file, and only Hugging Face model folders are supported; convert it: load it with transformers' "
        f"from_pretrained({str(file.parent)!r}, gguf_file={file.name!r}), give its state_dict to a plain model of the same "
        "config, and save that and the tokenizer with save_pretrained; docs/models.md has the lines"
    )


# -- adapters ----------------------------------------------------------------------------------------------------------


_TUNERS = {"LORA": "lora", "IA3": "ia3", "PROMPT_TUNING": "soft_prompt"}
"""By the type of a PEFT adapter: ``tuner.kind`` of a run that starts from it."""


@dataclass(frozen=True)
class Adapter:
    """Kind and base model of a PEFT adapter, from its ``adapter_config.json``."""

    kind: str
    """For example ``LORA``; a run can start from that, and from ``PREFIX_TUNING``, ``PROMPT_TUNING`` and ``IA3``."""
    base: str | None
    """Base model."""

    @property
    def named(self) -> str:
        """Name of the adapter in a sentence."""
        return f"a PEFT adapter of type {self.kind} ({ADAPTER_CONFIG})"

    def use(self, folder: Path) -> str:
        """Return how a run can use it, phrased to follow "to"."""
        if self.kind == "PREFIX_TUNING":
            return f"start from it, set prompt.start_from={folder}"
        if self.kind in _TUNERS:
            return f"start from it, set tuner.kind={_TUNERS[self.kind]} and tuner.start_from={folder}"
        return "use it, merge it into the weights (PEFT's merge_and_unload) and save the model"

    def instead(self, folder: Path) -> str:
        """Return the remedy for a model folder that holds only this adapter."""
        elsewhere = self.base is not None and Path(self.base).expanduser().absolute() != folder.absolute()
        base = f"set model.path={self.base}" if elsewhere else "set model.path to the model that it was trained for"
        return f"{base}; to {self.use(folder)}"


def adapter_in(folder: Path) -> Adapter | None:
    """Return the PEFT adapter in a folder, if any."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    values = read_json(folder / ADAPTER_CONFIG)
    kind, base = values.get("peft_type"), values.get("base_model_name_or_path")
    return Adapter(kind if isinstance(kind, str) else "unknown", base if isinstance(base, str) and base else None)


# -- configuration and tokenizer ---------------------------------------------------------------------------------------


def check_model_type(values: Mapping[str, Any], name: str) -> None:
    """Refuse a config.json without a model type.

    Raises
    ------
    ModelError
        With the type to add, if its class names reveal it.
    """
    if values.get("model_type"):
        return
    given = values.get("architectures")
    classes = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    found = [kind for kind, title in MODEL_TITLES.items() if any(_is_of(title, one) for one in classes)]
    if found:
        remedy = f'add "model_type": "{found[0]}", which its architectures ({listed(classes, 3)}) are of'
    elif classes:
        remedy = (
            f"its architectures ({listed(classes, 3)}) are of none of the supported types: {listed(MODEL_TITLES, 40)}"
        )
    else:
        remedy = f'add "model_type", which can be one of: {listed(MODEL_TITLES, 40)}'
    raise ModelError(f"config.json of model {name} has no model_type; {remedy}")


def _is_of(title: str, architecture: object) -> bool:
    rest = str(architecture).removeprefix(title)
    return str(architecture).startswith(title) and rest.startswith(
        ("For", "Model", "TextModel", "EncoderModel", "LMHead", "PreTrained", "DoubleHeads")
    )


def sentencepiece_file(folder: Path) -> Path | None:
    """Return a folder's SentencePiece model; None if it has a tokenizer.json, or neither."""
    if (folder / "tokenizer.json").is_file():
        return None
    return next((path for path in sorted(folder.glob("*.model")) if path.name != "tiktoken.model"), None)


def check_sentencepiece(folder: Path, name: str) -> None:
    """Refuse a tokenizer that needs the package sentencepiece if it is not installed.

    Raises
    ------
    ModelError
        With the package to install.
    """
    file = sentencepiece_file(folder)
    if file is None or all(map(_is_installed, ("sentencepiece", "google.protobuf"))):
        return
    raise ModelError(
        f"the tokenizer of model {name} is a SentencePiece model ({file.name}) without a tokenizer.json, which needs the "
        "package sentencepiece; run: pip install 'fedsim[sentencepiece]'"
    )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package
        return False


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file; empty if it does not exist, which is reported when it is needed."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except _UNREADABLE:
        return {}
    return values if isinstance(values, dict) else {}
