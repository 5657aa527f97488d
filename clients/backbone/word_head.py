"""Label words of several tokens, or several words a class, by the backbone's own frozen LM head.

A word's score is the mean log-likelihood of its tokens over the whole vocabulary, a class's score the mean over its words, as
OpenPrompt's verbalizers aggregate them. A decoder predicts each token behind the text and the tokens of the word before it:
the published decoders do so, and choose the label of least mean loss. An encoder predicts a word of n tokens at the first n
masks, all at once: PET's rule for training (Schick and Schütze 2021, arXiv 2009.07118), which takes the product where this is
a mean. PET's rule for predictions is that of :mod:`clients.backbone.stepwise`.

Shape suffixes: U rows that are read, R reads of an example, B examples, C classes, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from clients.backbone.heads import HeadShapes, Pooling, Reading
from clients.backbone.target_scores import target_scores
from fedsim.core.errors import ModelError
from fedsim.core.reads import Reads
from fedsim.core.words import LabelWords


class WordHead:
    """Scores of label words of any number of tokens.

    Parameters
    ----------
    transform
        The LM head without its last linear layer.
    decoder
        Its last linear layer.
    words
        The words, as the token tables have them.
    loss
        ``labels``: cross-entropy over the classes' scores; ``vocabulary``: the true class's score, negated: the mean negative
        log-likelihood of its words.
    cap
        Bound c of the scores, c tanh(score / c); None for none.
    stepwise
        Predictions fill the masks of a word one after the other.
    """

    shapes: HeadShapes = ()
    pooling: Pooling = "last"

    def __init__(
        self,
        transform: Callable[[Tensor], Tensor],
        decoder: nn.Linear,
        words: LabelWords,
        loss: Literal["labels", "vocabulary"],
        cap: float | None,
        *,
        stepwise: bool = False,
    ) -> None:
        self.words = words
        self.steps = words.num_masks if stepwise else 1
        """Passes of a prediction."""
        self._transform, self._decoder, self._cap = transform, decoder, cap
        self._loss = loss
        self._shares_RC = torch.from_numpy(words.shares_RC).to(decoder.weight.device)
        self.offset_C: Tensor | None = None
        """Class scores to subtract; see ``model.head.calibration``."""
        self.stepwise_offset_C: Tensor | None = None
        """The same, of scores of masks that are filled one after the other."""

    def log_likelihoods(self, hidden_UD: Tensor, reads: Reads) -> Tensor:
        """Return the log-probability of each target, [R], from the last hidden states of ``reads.rows_U``."""
        return target_scores(hidden_UD, reads, self._transform, self._decoder, self._cap).logp_R

    def read_tokens(self, hidden_UD: Tensor, reads: Reads, labels_B: Tensor) -> Reading:
        """Return loss and class scores of each example from the last hidden states of ``reads.rows_U``."""
        logp_R = self.log_likelihoods(hidden_UD, reads)
        # Row by row: a NaN of one example stays in its scores.
        logits_BC = logp_R.view(len(labels_B), -1) @ self._shares_RC.to(logp_R.dtype)
        return self.reading(logits_BC, labels_B, self.offset_C)

    def reading(self, logits_BC: Tensor, labels_B: Tensor, offset_C: Tensor | None) -> Reading:
        """Return loss and class scores, given the scores before ``offset_C`` is subtracted."""
        loss_B = -logits_BC.gather(1, labels_B.unsqueeze(1)).squeeze(1)
        if offset_C is not None:
            logits_BC = logits_BC - offset_C
        if self._loss == "labels":
            loss_B = functional.cross_entropy(logits_BC, labels_B, reduction="none")
        return Reading(loss_B, logits_BC)


def check_decoding(decoding: str, *, predicts_next: bool) -> None:
    """Refuse to fill masks one after the other in a model that has none.

    Raises
    ------
    ModelError
        If the model is a decoder.
    """
    if decoding == "stepwise" and predicts_next:
        raise ModelError(
            "model.head.decoding=stepwise fills masks one after the other, but a decoder has none: it reads each token of a "
            "word behind those before it; set model.head.decoding=parallel, or use an encoder"
        )


def check_words(words: LabelWords, num_classes: int, vocab_size: int, *, is_causal: bool) -> None:
    """Refuse label words that the model cannot score.

    Raises
    ------
    ModelError
        If they are not those of all classes, the model lacks a token, or its attention is not causal where words stand in
        branches: the text would see them all.
    """
    if words.num_classes != num_classes:
        raise ModelError(
            f"model.head.kind=verbalizer needs label words for each of {num_classes} classes, got {words.num_classes}"
        )
    if int(words.ids_Q.min()) < 0 or int(words.ids_Q.max()) >= vocab_size:
        raise ModelError(
            f"a label word has token id {int(words.ids_Q.max())}, but the model knows {vocab_size} words; use the model's own "
            "tokenizer"
        )
    if words.branches is not None and not is_causal:
        raise ModelError(
            "data.task.label_words has words of several tokens, which a decoder with is_causal=false cannot score: its text "
            "would see the word that it has to predict; use words of one token, or model.head.kind=classifier"
        )
