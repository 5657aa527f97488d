"""Load a model once on the driver, and rebuild it in workers from shared memory."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from clients.backbone.families import Family, Kind, family_of
from clients.backbone.fitting import check_padding, check_used, refuse_mismatched, refuse_missing
from clients.backbone.generation_head import check_generates
from clients.backbone.lean_imports import plain_meta
from clients.backbone.location import folder_of, locate
from clients.backbone.model_files import check_model_type, check_sentencepiece, check_weights, sentencepiece_file
from clients.backbone.offloading import at_rest
from clients.backbone.placement import Placement
from clients.backbone.products import linear_maps
from clients.backbone.quantized import SCALE, quantized
from clients.backbone.shared_weights import SharedWeights
from clients.backbone.variants import refuse_unsupported, relevant
from clients.backbone.word_head import check_decoding
from clients.config import ModelConfig
from clients.tuners import position_bias, relative_attention
from clients.tuners.prefix import is_attached
from fedsim.core.errors import ModelError, shown

_ALIGNMENT = 64
"""Bytes. Matrix products of the same numbers may differ in their last bits if memory is aligned differently. Ray's object
store aligns arrays to 64, but those under 2,048 bytes only to 8: arrays not aligned to 64 are copied, on the driver and in
workers, so that results in this process equal those of actors."""

_NO_ADAPTER = {"subfolder": "no-adapter"}
"""Where transformers looks for an adapter to attach: by default it uses one beside the model (peft#1381)."""

_MOST_LAYERS = 1024
"""Upper bound on layers: building one takes time even without weights."""


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer. Without a padding token, as in many decoders, the end token is used, masked.

    Raises
    ------
    ModelError
        If the model is missing, or its tokenizer cannot be read.
    """
    location = locate(config)
    tokenizer = _converted(location, config)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _converted(location: str, config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer with transformers; SentencePiece models encode exactly as SentencePiece does."""
    if Path(location).is_dir():
        check_sentencepiece(Path(location), config.location)
    try:
        with _quiet():
            read = AutoTokenizer.from_pretrained(location, trust_remote_code=config.trust_remote_code)
            folder = folder_of(location)
            file = None if folder is None else sentencepiece_file(folder)
            if file is None:
                return read
            from clients.backbone.spm import exact

            return exact(read, file, config.location)
    except ModelError:
        raise
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        folder = folder_of(location)
        if folder is not None:  # by now a hub model's files have been downloaded
            check_sentencepiece(folder, config.location)
        raise ModelError(
            f"the tokenizer of model {config.location} cannot be read: {_tokenizer_problem(folder, error)}"
        ) from error


def _tokenizer_problem(folder: Path | None, error: Exception) -> str:
    """Describe the problem; for a damaged SentencePiece model transformers blames an unneeded package."""
    file = None if folder is None else sentencepiece_file(folder)
    if file is not None and "tiktoken" in str(error):
        from clients.backbone.spm import unread

        return unread(file)
    return _first_line(error)


# -- loading, on the driver --------------------------------------------------------------------------------------------


def load_shared_weights(config: ModelConfig) -> SharedWeights:
    """Load a model's weights from safetensors files, without reading pickles or running model code.

    Raises
    ------
    ModelError
        If the model cannot be found or read, its family is not supported, or it lacks the LM head that
        ``model.head.kind`` needs, or the masks that ``model.head.decoding`` needs.
    """
    location = locate(config)
    values = config_values(location, config.location)
    family = family_of(values, config.location)
    described = _described(family, values, config.location)
    if config.attention not in family.attentions:
        raise ModelError(
            f"model {config.location} is a {family.name}, which cannot run with model.attention={config.attention}; set it to "
            f"{family.attentions[0]}"
        )
    if config.compile and (family.relative_attention or family.position_bias):
        raise ModelError(
            f"model {config.location} is a {family.name}, whose attention cannot be compiled; set model.compile=false"
        )
    check_used(family, config)
    if Path(location).is_dir():
        check_weights(Path(location), config.location)
    if config.head.kind == "generation":
        check_generates(family, described)
    check_decoding(config.head.decoding, predicts_next=family.predicts_next)
    kind: Kind = "base" if config.head.kind == "classifier" else family.lm_kind
    model = _load(location, config, family, described, kind)
    return _shared(model, family, kind, config.dtype)


def config_values(location: str, name: str) -> dict[str, Any]:
    """Read a model's config.json.

    Raises
    ------
    ModelError
        If it is missing, unreadable, or lacks the model type.
    """
    try:
        with _quiet():
            values, _ = PreTrainedConfig.get_config_dict(location)
    except (OSError, ValueError) as error:
        if Path(location).is_dir():
            raise ModelError(f"config.json of model {name} cannot be read: {_first_line(error)}") from error
        raise ModelError(
            f"model {name} is neither a folder here nor readable from the Hugging Face hub: {_first_line(error)}"
        ) from error
    check_model_type(values, name)
    return values


def _described(family: Family, values: Mapping[str, Any], name: str) -> PreTrainedConfig:
    """Build the configuration that a config.json describes, and check that a model can be built from it."""
    try:
        with _quiet():
            described = family.config(relevant(values))
        layers = described.num_hidden_layers
    except Exception as error:  # transformers' validation errors share no base class
        raise ModelError(
            f"config.json of model {name} describes no {family.title} model: {_first_line(error)}"
        ) from error
    if type(layers) is not int or not 0 < layers <= _MOST_LAYERS:
        raise ModelError(f"config.json of model {name} has {shown(layers)} layers; there can be 1 to {_MOST_LAYERS}")
    check_padding(family, described, name)
    refuse_unsupported(values, described, family, name)
    return described


def _load(
    location: str, config: ModelConfig, family: Family, described: PreTrainedConfig, kind: Kind
) -> PreTrainedModel:
    try:
        with _quiet(), plain_meta():
            loaded: Any = family.model_class(kind).from_pretrained(
                location,
                config=described,
                dtype=getattr(torch, config.dtype),
                use_safetensors=True,
                output_loading_info=True,
                # Mismatches are named below; transformers' own error gives no name.
                ignore_mismatched_sizes=True,
                adapter_kwargs=_NO_ADAPTER,
                **family.arguments(kind),
            )
    except (OSError, ValueError, RuntimeError, SafetensorError, TypeError) as error:
        raise ModelError(
            f"the weights of model {config.location} cannot be read (only safetensors files are): {_first_line(error)}"
        ) from error
    except (KeyError, AttributeError, IndexError, ArithmeticError, AssertionError) as error:
        raise ModelError(
            f"model {config.location} cannot be built as its config.json says: {type(error).__name__}: {_first_line(error)}"
        ) from error
    model, info = loaded
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            f"transformers has put the adapter beside model {config.location} into it; move adapter_config.json elsewhere"
        )
    refuse_mismatched(sorted(info["mismatched_keys"]), described.vocab_size, config.location)
    refuse_missing(sorted(info["missing_keys"]), model, config.location, kind)
    return model


def _shared(model: PreTrainedModel, family: Family, kind: Kind, dtype: str) -> SharedWeights:
    arrays: dict[str, np.ndarray] = {}
    aliases: list[tuple[str, str]] = []
    first_name: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first_name:
            aliases.append((name, first_name[id(parameter)]))
        else:
            first_name[id(parameter)] = name
            arrays[name] = _to_numpy(parameter)
    arrays |= {name: _to_numpy(buffer) for name, buffer in model.named_buffers()}
    values = model.config.to_dict()
    values.pop("_name_or_path", None)  # a local path, useless elsewhere
    maps = _names_of_maps(model, family, frozenset(arrays))
    return SharedWeights(json.dumps(values, sort_keys=True), family, kind, arrays, dtype, tuple(aliases), maps)


def _names_of_maps(model: PreTrainedModel, family: Family, arrays: frozenset[str]) -> tuple[str, ...]:
    """Return the arrays that hold a layer's linear maps."""
    base: Any = model.base_model
    layers = base.get_submodule(family.layers)
    held = {id(parameter) for _, linear_map in linear_maps(layers) for parameter in linear_map.parameters()}
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) in held and name in arrays)


def _to_numpy(tensor: Tensor) -> np.ndarray:
    plain = tensor.detach().contiguous()
    if plain.data_ptr() % _ALIGNMENT:
        plain = plain.clone()  # torch allocates aligned memory; a mapped safetensors file may start anywhere
    array = (plain.view(torch.uint16) if plain.dtype == torch.bfloat16 else plain).numpy()
    array.flags.writeable = False
    return array


def round_array(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return numbers of a :class:`SharedWeights` in another number format, each rounded to the nearest."""
    return _to_numpy(_to_torch(array).to(getattr(torch, dtype)))


def quantize_array(name: str, array: np.ndarray, kind: str, *, transposed: bool) -> dict[str, np.ndarray]:
    """Return a matrix of a :class:`SharedWeights` as integers and their scales, by name, outputs first.

    Parameters
    ----------
    kind
        ``int8`` or ``int4``.
    transposed
        Whether the matrix is [in, out].
    """
    weight = _to_torch(array)
    whole, scale_OG = quantized(weight.mT if transposed else weight, kind, name)
    return {name: _to_numpy(whole), f"{name}{SCALE}": _to_numpy(scale_OG)}


# -- rebuilding, in a worker -------------------------------------------------------------------------------------------


def assemble(weights: SharedWeights, attention: str, placement: str | Placement) -> tuple[PreTrainedModel, Family]:
    """Rebuild the frozen model in evaluation mode; on a CPU its weights are the shared arrays themselves.

    Its buffers are copies: a forward pass may write to them, as transformers does with the frequencies of rope_type longrope.

    Parameters
    ----------
    weights
        May be read-only memory: the model never writes to its parameters.
    attention
        ``sdpa`` or ``eager``.
    placement
        Device of each part, or the one of all, such as ``cpu``.
    """
    family = weights.family
    config = family.config(json.loads(weights.config_json))
    config._attn_implementation = attention
    if weights.dtype == "float64":
        config._experts_implementation = "eager"  # torch's grouped products are not for float64
    with torch.device("meta"), plain_meta():
        model = family.model_class(weights.kind)(config, **family.arguments(weights.kind))
    buffers = {name for name, _ in model.named_buffers()}
    for name, array in weights.arrays.items():
        tensor, layer = _to_torch(array), weights.layer_of(name)
        device = placement if isinstance(placement, str) else placement.of_array(layer)
        if isinstance(placement, Placement) and placement.offload and layer is not None and name not in buffers:
            _set(model, name, at_rest(tensor, placement.of_array(layer)))
        else:
            _set(model, name, tensor.to(device, copy=name in buffers))
    for name, source in weights.aliases:
        _set(model, name, model.get_parameter(source))
    _prepare_attention(model, family)
    left = [name for name, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if left:
        raise RuntimeError(f"shared weights lack {left[0]}; were they made by another version of transformers?")
    return model.eval(), family


def _prepare_attention(model: PreTrainedModel, family: Family) -> None:
    """Number attention modules, and give each the window that its mask has, where the family's code does neither."""
    if family.attention is None and not family.window_argument:
        return
    layers: Any = reduce(getattr, family.layers.split("."), model.base_model)
    if family.position_bias and family.attention is not None:
        position_bias.install(model.base_model, layers, family.attention, partial(is_attached, model))
    for number, layer in enumerate(layers):
        for module in layer.modules():
            if getattr(module, "sliding_window", None) is not None:
                module.sliding_window -= family.window_argument
        if family.attention is not None:
            layer.get_submodule(family.attention).layer_idx = number
        if family.relative_attention and family.attention is not None:
            relative_attention.install(layer.get_submodule(family.attention))


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._parameters and not isinstance(tensor, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=False)
    setattr(module, leaf, tensor)


def _to_torch(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # The arrays are read-only on purpose; torch warns that a tensor could write to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        tensor = torch.from_numpy(array)
    if tensor.data_ptr() % _ALIGNMENT:
        tensor = tensor.clone()  # torch allocates aligned memory
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' notes and progress bars; what matters is raised as an error."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = f"{lines[0]} {lines[1].strip()}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    return (line if len(line) <= 300 else f"{line[:297]}...").rstrip(".")
