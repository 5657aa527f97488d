"""Masks of label words that are filled one after the other, as PET predicts words of several tokens.

Each word of each example has a text of its own, with as many masks as the word has tokens. A step asks what a model says of the
tokens at the masks that are left, and fills the one whose token is the most likely, until none is left (Schick and Schütze
2021, arXiv 2009.07118, section 3.1). Words whose texts are still the same, as those of equal length are at first, share one.

Shape suffixes: B examples, W words, X = B * W words of examples, K masks of an example, O words with masks left, V texts of a
step, Z packed tokens, R reads of a step, one for each mask left of each word.
"""

from __future__ import annotations

import numpy as np

from fedsim.core.reads import Reads
from fedsim.core.tokens import PackedTokens, rows
from fedsim.core.words import LabelWords

_NONE = -1
"""In place of a token: no mask, or one that is not filled."""


class FilledMasks:
    """The texts of all words of a batch, from step to step.

    Parameters
    ----------
    tokens
        Examples as they are read all at once, with as many masks as the longest word has tokens.
    words
        The words, read at masks.
    """

    def __init__(self, tokens: PackedTokens, words: LabelWords) -> None:
        self._tokens = tokens
        self._words = words
        self._first_B = tokens.read_rows_B - tokens.starts_B
        tokens_WK = np.full((len(words.lengths_W), words.num_masks), _NONE, dtype=np.int64)
        tokens_WK[np.arange(words.num_masks) < words.lengths_W[:, None]] = words.ids_Q
        self._target_XK = np.tile(tokens_WK, (len(tokens), 1))
        self._open_XK = self._target_XK != _NONE
        self._logp_X = np.zeros(len(self._target_XK))

    @property
    def left(self) -> bool:
        """Whether a mask is left to fill."""
        return bool(self._open_XK.any())

    def texts(self) -> tuple[PackedTokens, np.ndarray]:
        """Return the texts of the next step, and the example of each (int64 [V]).

        ``reads`` ask for the token of each mask that is left, a group for each word with masks left.
        """
        tokens, first_B = self._tokens, self._first_B
        num_words, num_masks = len(self._words.lengths_W), self._words.num_masks
        asked_O = np.flatnonzero(self._open_XK.any(1))
        open_OK, example_O = self._open_XK[asked_O], asked_O // num_words
        size_O = self._words.lengths_W[asked_O % num_words]
        filled_OK = np.where(open_OK, _NONE, self._target_XK[asked_O])
        length_O = tokens.lengths_B[example_O] - num_masks + size_O
        # Sorted, so that texts of a length stand together, which is the least work for attention.
        keys, text_O = np.unique(np.column_stack([length_O, size_O, example_O, filled_OK]), axis=0, return_inverse=True)
        text_O = text_O.reshape(-1)
        length_V, size_V, example_V, filled_VK = keys[:, 0], keys[:, 1], keys[:, 2], keys[:, 3:]
        whole_V = tokens.lengths_B[example_V]
        text_Z = np.repeat(np.arange(len(keys)), whole_V)
        mask_Z = np.arange(len(text_Z)) - np.repeat(np.cumsum(whole_V) - whole_V + first_B[example_V], whole_V)
        rows_Z = rows(tokens.starts_B[example_V], whole_V)
        kept_Z = (mask_Z < size_V[text_Z]) | (mask_Z >= num_masks)
        text_Z, mask_Z, rows_Z = text_Z[kept_Z], mask_Z[kept_Z], rows_Z[kept_Z]
        ids_Z = tokens.ids_Z[rows_Z].copy()
        at_mask_Z = np.flatnonzero((mask_Z >= 0) & (mask_Z < size_V[text_Z]))
        fill = filled_VK[text_Z[at_mask_Z], mask_Z[at_mask_Z]]
        ids_Z[at_mask_Z[fill != _NONE]] = fill[fill != _NONE]
        place_VK = np.full(filled_VK.shape, _NONE)
        open_VK = (filled_VK == _NONE) & (np.arange(num_masks) < size_V[:, None])
        place_VK[open_VK] = np.arange(int(open_VK.sum()))
        row_VK = (np.cumsum(length_V) - length_V + first_B[example_V])[:, None] + np.arange(num_masks)
        reads = Reads(
            rows_U=row_VK[open_VK],
            read_R=place_VK[text_O][open_OK],
            targets_R=self._target_XK[asked_O][open_OK],
            groups_R=np.nonzero(open_OK)[0],
            num_groups=len(asked_O),
        )
        packed = PackedTokens(
            ids_Z=ids_Z,
            types_Z=None if tokens.types_Z is None else tokens.types_Z[rows_Z],
            lengths_B=length_V,
            read_rows_B=row_VK[:, 0],
            labels_B=tokens.labels_B[example_V],
            reads=reads,
        )
        return packed, example_V

    def fill(self, logp_R: np.ndarray) -> None:
        """Fill, for each word, the mask whose token is the most likely one, the first of equals.

        Parameters
        ----------
        logp_R
            Log-probabilities of the reads of the last :meth:`texts`.
        """
        asked_O = np.flatnonzero(self._open_XK.any(1))
        open_OK = self._open_XK[asked_O]
        logp_OK = np.full(open_OK.shape, np.nan)
        logp_OK[open_OK] = logp_R
        order_OK = np.full(open_OK.shape, -np.inf)
        # Always more than at a place without a mask, so that a score that is not a number stays in its word.
        order_OK[open_OK] = np.nan_to_num(logp_R.astype(np.float64), nan=0.0)
        chosen_O = order_OK.argmax(1)
        self._logp_X[asked_O] += logp_OK[np.arange(len(asked_O)), chosen_O]
        self._open_XK[asked_O, chosen_O] = False

    def class_scores(self) -> np.ndarray:
        """Return each class's score, float64 [B, C]: the mean over its words of the sum of a word's log-probabilities."""
        words = self._words
        counts_C = np.bincount(words.classes_W, minlength=words.num_classes)
        scores_BC = np.zeros((len(self._tokens), words.num_classes))
        for word, own_B in enumerate(self._logp_X.reshape(len(self._tokens), -1).T):
            scores_BC[:, words.classes_W[word]] += own_B
        return scores_BC / counts_C
