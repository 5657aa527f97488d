"""The rows of T5 and its relatives: encoders and decoders, of which the encoder is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clients.backbone.families import FAMILIES, Family
from clients.backbone.model_files import ENCODERS_ALONE

if TYPE_CHECKING:
    from torch import Tensor


def _embed(base: Any, vectors_BPD: Tensor) -> Tensor:
    return base.encoder.dropout(vectors_BPD)


def _encoder(name: str, title: str, feed_forward: str = "wo") -> Family:
    return Family(
        name,
        title,
        "base",
        embed=_embed,
        layers="encoder.block",
        has_cache=False,
        attention="layer.0.SelfAttention",
        lora_targets=("q", "v"),
        ia3_targets=("k", "v", feed_forward),
        ia3_feedforward=("wo",) if feed_forward == "wo" else (),
        sublayer_outputs=("layer.0.dropout", "layer.1.dropout"),
        norms=("layer.0.layer_norm", "layer.1.layer_norm"),
        encoder_alone=name in ENCODERS_ALONE,
        position_bias=True,
        overflows=True,
    )


for _family in (_encoder("t5", "T5"), _encoder("mt5", "MT5", "wi_1"), _encoder("umt5", "UMT5")):
    FAMILIES.register(_family.name)(_family)
