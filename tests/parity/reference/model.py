"""RoBERTa for masked words with a prefix of keys and values, written out.

Shape suffixes: B examples, T tokens, E hidden size, H heads, S tokens with the prefix before them, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear


@dataclass(frozen=True)
class Batch:
    ids_BT: Tensor
    mask_BT: Tensor
    read_B: Tensor
    labels_B: Tensor

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(self.ids_BT[rows], self.mask_BT[rows], self.read_B[rows], self.labels_B[rows])

    def __len__(self) -> int:
        return len(self.ids_BT)


class Roberta:
    """A frozen model; ``weights`` maps the names of a RobertaForMaskedLM to tensors of the number format to compute in."""

    def __init__(self, config: dict, weights: dict[str, Tensor]) -> None:
        self.heads = config["num_attention_heads"]
        self.layers = config["num_hidden_layers"]
        self.pad = config["pad_token_id"]
        self.eps = config["layer_norm_eps"]
        self.weights = weights

    def __call__(self, batch: Batch, prefix: Tensor, visible: list[int]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the mean loss over all words, the scores [B, V] at the read position, and all hidden states.

        Parameters
        ----------
        prefix
            [P, L, 2, E].
        visible
            Layers that see their prefix.
        """
        hidden_BTE = self._embed(batch, len(prefix))
        states = [hidden_BTE]
        for layer in range(self.layers):
            own = prefix[:, layer] if layer in visible else prefix[:0, layer]
            hidden_BTE = self._layer(f"roberta.encoder.layer.{layer}.", hidden_BTE, own, batch.mask_BT)
            states.append(hidden_BTE)
        read_BE = hidden_BTE[torch.arange(len(batch)), batch.read_B]
        read_BE = self._norm("lm_head.layer_norm", gelu(self._linear("lm_head.dense", read_BE)))
        words_VE = self.weights["roberta.embeddings.word_embeddings.weight"]
        logits_BV = linear(read_BE, words_VE, self.weights["lm_head.bias"])
        loss = (logits_BV.logsumexp(1) - logits_BV[torch.arange(len(batch)), batch.labels_B]).mean()
        return loss, logits_BV, states

    def _embed(self, batch: Batch, prefix_length: int) -> Tensor:
        token_BT = (batch.ids_BT != self.pad).long()
        positions_BT = (token_BT.cumsum(1) + prefix_length) * token_BT + self.pad
        name = "roberta.embeddings."
        total_BTE = self.weights[f"{name}word_embeddings.weight"][batch.ids_BT]
        total_BTE = total_BTE + self.weights[f"{name}token_type_embeddings.weight"][0]
        total_BTE = total_BTE + self.weights[f"{name}position_embeddings.weight"][positions_BT]
        return self._norm(f"{name}LayerNorm", total_BTE)

    def _layer(self, name: str, hidden_BTE: Tensor, prefix_P2E: Tensor, mask_BT: Tensor) -> Tensor:
        attended_BTE = self._attend(name, hidden_BTE, prefix_P2E, mask_BT)
        out_BTE = self._linear(f"{name}attention.output.dense", attended_BTE)
        hidden_BTE = self._norm(f"{name}attention.output.LayerNorm", out_BTE + hidden_BTE)
        inner_BTE = self._linear(f"{name}output.dense", gelu(self._linear(f"{name}intermediate.dense", hidden_BTE)))
        return self._norm(f"{name}output.LayerNorm", inner_BTE + hidden_BTE)

    def _attend(self, name: str, hidden_BTE: Tensor, prefix_P2E: Tensor, mask_BT: Tensor) -> Tensor:
        query_BTE, key_BTE, value_BTE = (
            self._linear(f"{name}attention.self.{part}", hidden_BTE) for part in ("query", "key", "value")
        )
        examples = len(hidden_BTE)
        key_BSE = torch.cat([prefix_P2E[:, 0].expand(examples, -1, -1), key_BTE], dim=1)
        value_BSE = torch.cat([prefix_P2E[:, 1].expand(examples, -1, -1), value_BTE], dim=1)
        seen_BS = torch.cat([torch.ones(examples, len(prefix_P2E), dtype=torch.bool), mask_BT.bool()], dim=1)
        size = hidden_BTE.shape[2] // self.heads
        pieces = []
        for head in range(self.heads):
            part = slice(head * size, (head + 1) * size)
            scores_BTS = query_BTE[..., part] @ key_BSE[..., part].transpose(1, 2) / size**0.5
            scores_BTS = scores_BTS.masked_fill(~seen_BS[:, None, :], -torch.inf)
            pieces.append(scores_BTS.softmax(2) @ value_BSE[..., part])
        return torch.cat(pieces, dim=2)

    def _linear(self, name: str, values: Tensor) -> Tensor:
        return linear(values, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, values: Tensor) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return layer_norm(values, weight.shape, weight, bias, self.eps)
