"""The generation head: losses of responses by the backbone's own frozen LM head; nothing of it is trained.

Shape suffixes: B examples, U rows that are read, R reads, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from transformers import PreTrainedConfig

from clients.backbone.device import to_device
from clients.backbone.families import Family
from clients.backbone.heads import HeadShapes, Pooling, Reading
from clients.backbone.target_scores import group_means, target_scores
from clients.tuners.moves import add_rows
from clients.tuners.tuner import Tuner
from fedsim.core.errors import ModelError
from fedsim.core.reads import Reads


class GenerationHead:
    """Mean loss of each response's tokens, and how many of them are the most likely ones (teacher forced).

    Parameters
    ----------
    transform
        The LM head without its last linear layer.
    decoder
        Its last linear layer.
    cap
        Bound c of the scores, c tanh(score / c); None for none.
    """

    shapes: HeadShapes = ()
    pooling: Pooling = "last"

    def __init__(self, transform: Callable[[Tensor], Tensor], decoder: nn.Linear, cap: float | None = None) -> None:
        self._transform, self._decoder, self._cap = transform, decoder, cap

    def read_tokens(self, hidden_UD: Tensor, reads: Reads, labels_B: Tensor) -> Reading:
        """Return the mean loss of each response and its hits; ``labels_B`` are of no matter."""
        scores = target_scores(hidden_UD, reads, self._transform, self._decoder, self._cap)
        loss_B = group_means(-scores.logp_R, reads)
        read_R, targets_R, groups_R = (
            to_device(array, hidden_UD.device) for array in (reads.read_R, reads.targets_R, reads.groups_R)
        )
        hits_B = add_rows(reads.num_groups, groups_R, (scores.best_U[read_R] == targets_R).long())
        return Reading(loss_B, loss_B.new_empty((len(labels_B), 0)), hits_B)


def check_generates(family: Family, config: PreTrainedConfig) -> None:
    """Refuse models that cannot write a text token by token.

    Raises
    ------
    ModelError
        If the LM head fills in masks, or a token sees those behind it.
    """
    if not family.predicts_next:
        raise ModelError(
            "model.head.kind=generation needs a decoder, whose LM head predicts the next token; a "
            f"{family.name} fills in masked ones"
        )
    if not family.causal_attention(config):
        raise ModelError(
            "model.head.kind=generation needs causal attention: with is_causal=false in config.json a token sees what it has "
            "to predict"
        )


def check_tuner(tuner: Tuner) -> None:
    """Refuse tuners that make something of a whole text.

    Raises
    ------
    ModelError
        If this one does.
    """
    if tuner.reads_text:
        raise ModelError(
            f"tuner.kind={tuner.kind} is made of a whole text, so a response would be among what it is made of; with "
            "model.head.kind=generation use a tuner that does not read the text, such as lora or prefix"
        )
