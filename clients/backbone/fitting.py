"""Checks that a checkpoint fits its config.json: refuse what transformers would ignore or report without a name."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from clients.backbone.families import Family, Kind
from clients.config import ModelConfig
from fedsim.core.errors import ModelError, shown


def check_padding(family: Family, described: PreTrainedConfig, name: str) -> None:
    """Refuse an invalid padding id if positions depend on it; drop it otherwise, since padding is masked.

    Raises
    ------
    ModelError
        With a valid id.
    """
    pad, words = described.pad_token_id, described.vocab_size
    if type(words) is not int or (type(pad) is int and 0 <= pad < words):
        return
    if family.positions_skip_padding:
        raise ModelError(
            f"config.json of model {name} has pad_token_id {shown(pad)}, but models of type {family.name} count positions by "
            f'it: it must be the id of a token, 0 to {words - 1}; set "pad_token_id": 1, which such models are made with'
        )
    described.pad_token_id = None


def check_used(family: Family, config: ModelConfig) -> None:
    """Refuse what an encoder of which the decoder is left out cannot do, in heads and number formats.

    Raises
    ------
    ModelError
        With what can be used instead.
    """
    if family.lm_kind == "base" and config.head.kind != "classifier":
        raise ModelError(
            f"model {config.location} is a {family.name}, of which the encoder alone is used, and the LM head that "
            f"model.head.kind={config.head.kind} needs is its decoder's; set model.head.kind=classifier, or use a decoder"
        )
    half = {"dtype": config.dtype, "autocast": config.autocast, "products": config.products}
    key = next((key for key, format in half.items() if format == "float16"), None)
    if family.overflows and key is not None:
        raise ModelError(
            f"model {config.location} is a {family.name}, trained in bfloat16, whose hidden states may leave the range of "
            f"float16; set model.{key}={'off' if key == 'autocast' else 'float32'} or bfloat16"
        )
    if family.position_bias and not hasattr(modeling(family), "eager_attention_forward"):
        raise ModelError(
            f"model {config.location} is a {family.name}, whose attention this version of transformers computes out of reach; "
            "install transformers 5.15.0 or later"
        )


def modeling(family: Family) -> ModuleType:
    """Return transformers' module of a family."""
    return sys.modules[family.model_class("base").__module__]


def refuse_mismatched(mismatched: list[tuple[str, Any, Any]], vocab_size: int, name: str) -> None:
    """Refuse a checkpoint with mismatched shapes: transformers would initialise those weights at random.

    Parameters
    ----------
    mismatched
        Name, shape in the checkpoint and shape by config.json of each mismatch.
    vocab_size, name
        Vocabulary size in config.json, and the model's name for errors.

    Raises
    ------
    ModelError
        If there are any.
    """
    if not mismatched:
        return
    key, held, wanted = mismatched[0]
    words = held[1:] == wanted[1:] and wanted[0] == vocab_size
    remedy = f'set "vocab_size": {held[0]} there' if words else "give the config.json that belongs to these weights"
    raise ModelError(
        f"the weights of model {name} do not fit its config.json: {key} is of shape {tuple(held)}, where "
        f"config.json describes {tuple(wanted)}; {remedy}"
    )


def refuse_missing(missing: list[str], model: PreTrainedModel, name: str, kind: Kind) -> None:
    """Refuse a checkpoint that lacks weights: transformers would initialise them at random.

    Raises
    ------
    ModelError
        If any are ``missing``.
    """
    if not missing:
        return
    names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    if kind != "base" and not any(key.startswith(f"{model.base_model_prefix}.") for key in missing):
        raise ModelError(
            f"model {name} has no LM head (its checkpoint lacks {names}), which model.head.kind=verbalizer "
            "and generation need; set model.head.kind=classifier"
        )
    raise ModelError(f"the checkpoint of model {name} is incomplete: it lacks {names}")
