"""The head of a backbone, by ``model.head.kind``."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from clients.backbone.families import Family, Kind
from clients.backbone.generation_head import GenerationHead, check_generates, check_tuner
from clients.backbone.heads import (
    Classifier,
    Head,
    TokenHead,
    Verbalizer,
    check_pooling,
    label_words,
    resolve_pooling,
)
from clients.backbone.word_head import WordHead, check_words
from clients.config import HeadConfig
from clients.tuners.tuner import Tuner
from fedsim.core.errors import ModelError
from fedsim.core.words import LabelWords


def make_head(
    model: PreTrainedModel,
    family: Family,
    kind: Kind,
    config: HeadConfig,
    tuner: Tuner,
    classes: tuple[int, np.ndarray | LabelWords | None],
) -> Head | TokenHead:
    """Return the head that a config asks for.

    Parameters
    ----------
    model, family, kind
        The frozen model: ``base`` has no LM head.
    tuner
        What is trained below it.
    classes
        Number of classes, and the token id of each class's word, or all words; see
        :meth:`clients.backbone.model.Backbone.build`.

    Raises
    ------
    ModelError
        If the head does not fit the model, the tuner or the words.
    """
    if config.kind == "classifier":
        pooling = resolve_pooling(config.pooling, family)
        check_pooling(pooling, is_causal=family.causal_attention(model.config))
        return Classifier(classes[0], model.config.hidden_size, pooling)
    if kind == "base":
        raise ModelError(f"model.head.kind={config.kind} needs a model with its LM head; these weights have none")
    decoder, cap = model.get_output_embeddings(), family.logit_cap(model.config)

    def transform(hidden: Tensor) -> Tensor:
        return family.head_transform(model, hidden)

    if config.kind == "generation":
        check_generates(family, model.config)
        check_tuner(tuner)
        return GenerationHead(transform, decoder, cap)
    num_classes, words = classes
    if isinstance(words, LabelWords):
        is_causal = family.causal_attention(model.config)
        check_words(words, num_classes, model.config.vocab_size, is_causal=is_causal)
        return WordHead(transform, decoder, words, config.loss, cap, stepwise=config.decoding == "stepwise")
    words_C = label_words(words, num_classes, model.config.vocab_size, next(model.parameters()).device)
    return Verbalizer(transform, decoder, words_C, config.loss, cap)
