"""Bare loops of prompts before the text: concatenated with embeddings or hidden states, texts behind them.

Shape suffixes: B examples, T tokens, P virtual tokens, D hidden size, K prompts of a mixture; S = P + T.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.bare.loop import EncoderLoop
from benchmarks.peers.work import Work


class EmbeddedPrompt(EncoderLoop):
    """A prompt as input embeddings; positions run on through it, as in PEFT's prompt tuning."""

    def hidden(self, arrays: dict[str, Tensor], ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the last hidden states of the texts [B, T, D]."""
        words_BTD = self.model.get_input_embeddings()(ids_BT)
        prompt_BPD = self.prompt(arrays, ids_BT, mask_BT, words_BTD)
        embeddings_BSD = torch.cat([prompt_BPD, words_BTD], dim=1)
        output = self.model(inputs_embeds=embeddings_BSD, attention_mask=_before(prompt_BPD, mask_BT))
        return output.last_hidden_state[:, prompt_BPD.shape[1] :]

    @abstractmethod
    def prompt(self, arrays: dict[str, Tensor], ids_BT: Tensor, mask_BT: Tensor, words_BTD: Tensor) -> Tensor:
        """Return the prompt of each text [B, P, D]."""


class SoftPrompt(EmbeddedPrompt):
    """A trained prompt."""

    def prompt(self, arrays: dict[str, Tensor], ids_BT: Tensor, mask_BT: Tensor, words_BTD: Tensor) -> Tensor:
        """Return the same prompt for each text [B, P, D]."""
        return arrays["prompt"].expand(len(ids_BT), -1, -1)


class GeneratedPrompt(EmbeddedPrompt):
    """A prompt made from the text's first token in the plain model, which runs without gradients."""

    def prompt(self, arrays: dict[str, Tensor], ids_BT: Tensor, mask_BT: Tensor, words_BTD: Tensor) -> Tensor:
        """Return the generator's prompt of each text [B, P, D]."""
        with torch.no_grad():
            read_BD = self.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state[:, 0]
        low_BR = functional.gelu(functional.linear(read_BD, _dense(arrays, "down"), arrays["down.bias"][0]))
        made_BX = functional.linear(low_BR, _dense(arrays, "up"), arrays["up.bias"][0])
        return made_BX.unflatten(1, (-1, words_BTD.shape[2]))


class PromptMixture(EmbeddedPrompt):
    """A trained prompt plus frozen ones and itself, weighted by attention to the text."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self._sources_KPD = torch.from_numpy(work.constants["sources"])

    def prompt(self, arrays: dict[str, Tensor], ids_BT: Tensor, mask_BT: Tensor, words_BTD: Tensor) -> Tensor:
        """Return the mixture for each text [B, P, D]."""
        own = {name: array[0] for name, array in arrays.items() if not name.startswith("head.")}
        largest_BD = words_BTD.masked_fill(mask_BT.unsqueeze(2) == 0, -math.inf).amax(1)
        low_BR = functional.silu(functional.linear(largest_BD, own["down"]))
        query_BD = functional.layer_norm(
            functional.linear(low_BR, own["up"]), largest_BD.shape[1:], own["norm.weight"], own["norm.bias"]
        )
        prompts_KPD = torch.cat([self._sources_KPD, own["prompt"].unsqueeze(0)])
        temperature = self.work.tuner.temperature or math.e * words_BTD.shape[2]
        share_BK = (query_BD @ prompts_KPD.amax(1).T / temperature).softmax(1)
        return own["prompt"] + torch.einsum("bk,kpd->bpd", share_BK, prompts_KPD)


class LatePrompt(EncoderLoop):
    """A prompt before the hidden states of a middle layer; the layers below run without gradients."""

    def hidden(self, arrays: dict[str, Tensor], ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the last hidden states of the texts [B, T, D]."""
        (depth,) = self.work.layers
        with torch.no_grad():
            hidden_BTD = self.model.embeddings(input_ids=ids_BT)
            for layer in self.model.encoder.layer[:depth]:
                hidden_BTD = layer(hidden_BTD, attention_mask=_visible(mask_BT))
        prompt_BPD = self._prompt(arrays, hidden_BTD, mask_BT)
        hidden_BSD = torch.cat([prompt_BPD, hidden_BTD], dim=1)
        visible = _visible(_before(prompt_BPD, mask_BT))
        for layer in self.model.encoder.layer[depth:]:
            hidden_BSD = layer(hidden_BSD, attention_mask=visible)
        return hidden_BSD[:, prompt_BPD.shape[1] :]

    def _prompt(self, arrays: dict[str, Tensor], hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the prompt of each text [B, P, D]: trained itself, or made by the config's generator."""
        kind, length = self.work.tuner.generator, self.work.tuner.length
        if kind == "none":
            return arrays["prompt"].expand(len(hidden_BTD), -1, -1)
        down, down_bias, up, up_bias = (
            arrays[name][0] for name in ("down.weight", "down.bias", "up.weight", "up.bias")
        )
        if kind == "npg":
            low_BR = torch.relu(functional.linear(hidden_BTD[:, 0], down, down_bias))
            return functional.linear(low_BR, up, up_bias).unflatten(1, (length, -1))
        pool = functional.adaptive_max_pool1d if kind == "mppg" else functional.adaptive_avg_pool1d
        low_BTR = functional.linear(hidden_BTD, down, down_bias)
        pooled = [pool(low_TR[own_T].T, length).T for low_TR, own_T in zip(low_BTR, mask_BT.bool(), strict=True)]
        return functional.linear(torch.relu(torch.stack(pooled)), up, up_bias)


def _dense(arrays: dict[str, Tensor], name: str) -> Tensor:
    """Return a map of the generator: the sum of the Kronecker products of its terms."""
    product = torch.einsum("nab,noi->aobi", arrays[f"{name}.left"][0], arrays[f"{name}.right"][0])
    return product.flatten(2).flatten(0, 1)


def _before(prompt_BPD: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the mask [B, S] of texts with their prompts."""
    return torch.cat([mask_BT.new_ones(prompt_BPD.shape[:2]), mask_BT], dim=1)


def _visible(mask_BS: Tensor) -> Tensor:
    """Return the mask of keys [B, 1, 1, S] that a layer takes."""
    return mask_BS.bool()[:, None, None, :]
