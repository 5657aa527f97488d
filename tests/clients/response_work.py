"""Examples with responses for the tiny models, and what transformers and PEFT make of them."""

from __future__ import annotations

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import (
    CONFIGS,
    PAD,
    VOCABULARY,
    WITHOUT_SDPA,
    _hide,
    attention_modules,
    doubled,
    plain_positions,
    tiny_model,
)
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from clients.backbone.families import FAMILIES
from clients.backbone.model import Backbone
from clients.tuners.config import TunerConfig
from fedsim.core.layout import VectorLayout
from fedsim.core.tokens import TokenTable

DECODERS = tuple(name for name in (*CONFIGS, *WITHOUT_SDPA) if FAMILIES[name].predicts_next)
PAIRS = [(1, 1), (4, 3), (2, 9), (7, 1), (1, 6), (3, 2), (12, 5), (5, 5), (1, 13), (6, 4)]
"""Tokens of each prompt and response: responses of one token, and behind a prompt of one token, among them."""
LORA = TunerConfig(kind="lora", rank=3, alpha=5.0)
SOFT = TunerConfig(kind="soft_prompt", length=4)
TUNERS = {"prefix": None, "lora": LORA, "soft_prompt": SOFT}
LAYERS = (0, 2)
OFF_LABEL = -100
"""What transformers leaves out of a loss."""


def responses(pairs: list[tuple[int, int]] = PAIRS, seed: int = 0) -> TokenTable:
    """Return a table of prompts and responses of random tokens."""
    prompts_N, responses_N = np.array(pairs).T
    lengths_N = prompts_N + responses_N
    return TokenTable(
        ids_Z=np.random.default_rng(seed).integers(3, VOCABULARY, lengths_N.sum()).astype(np.int32),
        offsets_N1=np.concatenate([[0], np.cumsum(lengths_N)]),
        read_positions_N=(prompts_N - 1).astype(np.int32),
        labels_N=np.zeros(len(pairs), np.int64),
        pad_id=PAD,
        response_starts_N=prompts_N.astype(np.int32),
    )


def layout_of(model: Backbone) -> VectorLayout:
    """Return the layout of some of the layers, or of the one that a tuner has."""
    full = VectorLayout.full(model.geometry, model.head_shapes)
    return full.exchanged(LAYERS) if len(full.layers) > 1 else full


def vectors(layout: VectorLayout, clients: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return random parameters of some clients."""
    return 0.3 * torch.randn((clients, layout.size), generator=torch.Generator().manual_seed(4), dtype=dtype)


def theirs(family: str, tuner: str, layout: VectorLayout, vector_A: Tensor, table: TokenTable, indices: np.ndarray):
    """Return what transformers or PEFT give for a batch: loss, gradient in the order of ours, and the logits [B, T, V]."""
    data = table.batch(indices)
    ids, mask = torch.from_numpy(data.input_ids_BT), torch.from_numpy(data.attention_mask_BT)
    labels = ids.clone()
    for row, index in enumerate(indices):
        labels[row, : int(table.response_starts_N[index])] = OFF_LABEL
    labels[mask == 0] = OFF_LABEL
    model = doubled(tiny_model(family))
    vector = vector_A.detach().clone().requires_grad_()
    tuned_CLX, _ = layout.split_rows(vector[None])
    output = {"prefix": _prefixed, "lora": _with_lora, "soft_prompt": _soft_prompted}[tuner](
        model, family, layout, tuned_CLX, ids, mask, labels
    )
    (gradient,) = torch.autograd.grad(output.loss, vector)
    # Its loss is in float32, whatever the model.
    return output.loss.detach().double(), gradient, output.logits[:, -ids.shape[1] :].detach()


def _prefixed(model: PreTrainedModel, family, layout, tuned_CLX, ids, mask, labels):
    """Run with the prompts in the model's own cache; a layer without one has zeros, which its mask hides."""
    prompt_LKHPD = tuned_CLX[0]
    length, cache = prompt_LKHPD.shape[3], DynamicCache()
    for layer in range(model.config.num_hidden_layers):
        own = layer in layout.layers
        pair = prompt_LKHPD[layout.layers.index(layer)] if own else torch.zeros_like(prompt_LKHPD[0])
        cache.update(*pair.unsqueeze(1).expand(-1, len(ids), -1, -1, -1), layer)
    hidden = [module for module in attention_modules(model) if module.layer_idx not in layout.layers]
    handles = [module.register_forward_pre_hook(_hide(length), with_kwargs=True) for module in hidden]
    try:
        return model(
            input_ids=ids,
            attention_mask=torch.cat([torch.ones(len(ids), length, dtype=torch.int64), mask], dim=1),
            position_ids=plain_positions(model, ids),
            past_key_values=cache,
            use_cache=False,
            labels=labels,
        )
    finally:
        for handle in handles:
            handle.remove()


def _with_lora(model: PreTrainedModel, family, layout, tuned_CLX, ids, mask, labels):
    """Run PEFT's own LoRA, its arrays replaced by ours."""
    config = LoraConfig(
        r=LORA.rank,
        lora_alpha=LORA.alpha,
        target_modules=list(FAMILIES[family].lora_targets),
        layers_to_transform=list(layout.layers),
        fan_in_fan_out=family == "gpt2",
        task_type="CAUSAL_LM",
    )
    peft = get_peft_model(model, config)
    named = dict(peft.named_parameters())
    replaced = {}
    for place, layer in enumerate(layout.layers):
        for name, array in layout.geometry.split(tuned_CLX).items():
            end = f"{FAMILIES[family].layers}.{layer}.{name}.default.weight"
            (found,) = [own for own in named if f".{own}".endswith(f".{end}")]
            replaced[found] = array[0, place]
    assert len(replaced) == sum(parameter.requires_grad for parameter in named.values())
    arguments = {"input_ids": ids, "attention_mask": mask, "use_cache": False, "labels": labels}
    return torch.func.functional_call(peft, replaced, (), arguments)


def _soft_prompted(model: PreTrainedModel, family, layout, tuned_CLX, ids, mask, labels):
    """Run on the prompt's vectors before the words', as PEFT does."""
    words = model.get_input_embeddings()(ids)
    prompt = tuned_CLX.reshape(1, SOFT.length, -1).expand(len(ids), -1, -1)
    before = torch.ones(len(ids), SOFT.length, dtype=torch.int64)
    return model(
        inputs_embeds=torch.cat([prompt, words], dim=1),
        attention_mask=torch.cat([before, mask], dim=1),
        use_cache=False,
        labels=torch.cat([torch.full_like(before, OFF_LABEL), labels], dim=1),
    )
