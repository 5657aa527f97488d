"""A careful user's loop with PEFT: one client after another on one frozen model, on PyTorch alone.

The base model's weights are in half precision, what PEFT trains is float32, and passes run under autocast, as in PEFT's
examples. Batches are padded to their longest text; the head is computed for the tokens that are read.

Shape suffixes: F entries of the exchanged vector, L layers, X one layer's trained numbers, N examples, B examples of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PrefixTuningConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from clients.backbone.families import FAMILIES, Family
from clients.config import ClientConfig
from clients.tuners.config import TunerConfig
from fedsim.core import seeds
from fedsim.core.layout import LayerArrays, LayerShape, PromptGeometry
from fedsim.core.tokens import TokenTable

Load = Callable[[Any, LayerShape, np.ndarray], None]
"""Puts trained numbers [L, X] into a PEFT model."""


def _prefix(model: PreTrainedModel, tuner: TunerConfig, length: int) -> tuple[Any, Load]:
    config = PrefixTuningConfig(task_type=TaskType.FEATURE_EXTRACTION, num_virtual_tokens=length)
    return get_peft_model(model, config), _load_prefix


def _load_prefix(model: Any, shape: LayerShape, tuned_LX: np.ndarray) -> None:
    assert isinstance(shape, PromptGeometry)
    # PEFT's rows [P, W] run over layer, key or value, head, head dimension.
    rows_PW = tuned_LX.transpose(3, 0, 1, 2, 4).reshape(shape.prompt_length, -1)
    model.prompt_encoder["default"].embedding.weight.data.copy_(torch.from_numpy(rows_PW))


def _lora(model: PreTrainedModel, tuner: TunerConfig, length: int) -> tuple[Any, Load]:
    config = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=tuner.rank,
        lora_alpha=int(tuner.alpha),
        use_rslora=tuner.scaling == "rslora",
        target_modules=list(tuner.targets or _family(model).lora_targets),
    )
    return get_peft_model(model, config), _load_lora


def _load_lora(model: Any, shape: LayerShape, tuned_LX: np.ndarray) -> None:
    assert isinstance(shape, LayerArrays)
    own, layers = dict(model.named_parameters()), _family(model.base_model.model).layers
    for layer, tuned_X in enumerate(tuned_LX):
        for name, array in shape.split(tuned_X).items():
            own[f"base_model.model.{layers}.{layer}.{name}.default.weight"].data.copy_(torch.from_numpy(array))


def _family(model: PreTrainedModel) -> Family:
    return FAMILIES[model.config.model_type]


MAKERS: dict[str, Callable[[PreTrainedModel, TunerConfig, int], tuple[Any, Load]]] = {"prefix": _prefix, "lora": _lora}
"""By ``tuner.kind``: what wraps a model with PEFT."""


@dataclass(frozen=True)
class Outcome:
    """One client's local training."""

    loss_first: float
    """Mean loss over the first epoch."""
    loss_last: float
    """Mean loss over the last epoch."""
    num_tokens: int


class PeftLoop:
    """Trains clients one by one with PEFT.

    Parameters
    ----------
    model
        A model with its LM head, on its device; its base model is wrapped in place.
    words_C
        Token of each class.
    length
        Virtual tokens of a prefix.
    """

    def __init__(
        self, model: Any, tuner: TunerConfig, words_C: np.ndarray, length: int, client: ClientConfig, table: TokenTable
    ) -> None:
        self._head: nn.Module = model.lm_head  # of RoBERTa and of LLaMA
        self._device = model.device
        self._words_C = torch.from_numpy(words_C).to(self._device)
        self._model, self._load = MAKERS[tuner.kind](model.base_model, tuner, length)
        self._trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._client, self._table = client, table

    def train(self, client: int, indices_N: np.ndarray, shape: LayerShape, tuned_LX: np.ndarray) -> Outcome:
        """Train one client from the trained numbers of all layers; return its loss once its result is on the host."""
        self._load(self._model, shape, tuned_LX)
        optimizer, config = self._optimizer(), self._client
        rng = seeds.stream(0, 0, client, "shuffle")
        losses: list[Tensor] = []
        for _ in range(config.epochs or 1):
            order_N = indices_N[rng.permutation(len(indices_N))]
            for start in range(0, len(order_N), config.batch_size):
                loss_B = self._losses(order_N[start : start + config.batch_size])
                optimizer.zero_grad()
                loss_B.mean().backward()
                if config.optimizer.clip_norm is not None:
                    nn.utils.clip_grad_norm_(self._trained, config.optimizer.clip_norm)
                optimizer.step()
                losses.append(loss_B.detach().float())
        for parameter in self._trained:
            parameter.detach().cpu()
        loss_N, own = torch.cat(losses).cpu(), len(indices_N)
        return Outcome(
            float(loss_N[:own].mean()),
            float(loss_N[-own:].mean()),
            int(self._table.lengths_N[indices_N].sum()) * (config.epochs or 1),
        )

    def _losses(self, indices_B: np.ndarray) -> Tensor:
        batch = self._table.batch(indices_B)
        ids, mask, read, labels = (
            torch.from_numpy(np.asarray(array, np.int64)).to(self._device)
            for array in (batch.input_ids_BT, batch.attention_mask_BT, batch.read_positions_B, batch.labels_B)
        )
        with torch.autocast(self._device.type, torch.bfloat16):
            states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            logits = self._head(states[torch.arange(len(ids), device=self._device), read])[:, self._words_C]
        return nn.functional.cross_entropy(logits.float(), labels, reduction="none")

    def _optimizer(self) -> torch.optim.Optimizer:
        config = self._client.optimizer
        betas = (config.beta1, config.beta2)
        return torch.optim.AdamW(
            self._trained, lr=config.lr, betas=betas, eps=config.eps, weight_decay=config.weight_decay
        )
