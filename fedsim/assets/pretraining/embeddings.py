"""Word vectors from co-occurrence counts, to initialise the backbone's embeddings.

A model this small spends most of a short training on learning which words are similar. Counting does that in seconds:
the positive pointwise mutual information of the tokens of a document, factorised by its leading eigenvectors, is a
classical word embedding (Levy & Goldberg, NIPS 2014, section 5).

Shape suffixes: V vocabulary, E embedding dimension.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fedsim.assets.pretraining.batches import Encoder
from fedsim.assets.pretraining.text import documents

NOISE = 0.3
"""Standard deviation of the random part of a vector, relative to the whole, so that rare tokens differ too."""


def word_vectors(
    tokenizer: PreTrainedTokenizerFast, dimension: int, std: float, num_documents: int, rng: np.random.Generator
) -> Tensor:
    """Return float32 vectors [V, E] of root mean square ``std``, with the same norm for all tokens that occur."""
    counts_VV = torch.zeros(len(tokenizer), len(tokenizer), dtype=torch.float64)
    encoder = Encoder(tokenizer)
    for document in itertools.islice(documents(rng), num_documents):
        tokens = torch.tensor(sorted(set(encoder.encode(document)[0])))
        counts_VV[tokens[:, None], tokens[None, :]] += 1.0
    counts_VV.fill_diagonal_(0.0)
    totals_V = counts_VV.sum(1).clamp(min=1.0)
    information_VV = torch.log(counts_VV * totals_V.sum() / (totals_V[:, None] * totals_V[None, :])).clamp(min=0.0)
    values_E, vectors_VE = (part[..., -dimension:] for part in torch.linalg.eigh(information_VV))
    embedding_VE = vectors_VE * values_E.clamp(min=0.0).sqrt()
    embedding_VE *= dimension**0.5 / embedding_VE.norm(dim=1, keepdim=True).clamp(min=1e-6)
    noise_VE = torch.from_numpy(rng.normal(0.0, NOISE, tuple(embedding_VE.shape)))
    return (std * (embedding_VE + noise_VE)).float()
