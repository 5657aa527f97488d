"""Label words of several tokens, or several a class: what is read of an example, and the branches behind its text.

A decoder scores a word by its tokens behind the text. All words share one pass over the text, the trunk: behind it stand the
tokens that a word's later ones are predicted from, a branch for each word. Words with the same first tokens share these, so the
branches are a tree. A branch token sees the trunk and those before it in its own branch, and has the position that it
would have if its word alone stood there.

Shape suffixes: B examples, T tokens of a padded batch, W words, C classes, Y branch tokens of an example, Q tokens of all
words, R reads of an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedsim.core.reads import Reads


@dataclass(frozen=True)
class Branches:
    """Tokens behind the trunk of every example, the same for all: its last ``len(branches)`` tokens."""

    ids_Y: np.ndarray
    """int64 token ids."""
    sees_YY: np.ndarray
    """bool; whether a token (row) sees another (column): itself, and those before it in its branch."""

    def __len__(self) -> int:
        return len(self.ids_Y)

    @cached_property
    def depths_Y(self) -> np.ndarray:
        """int64; how far each token is behind the trunk's last one."""
        return self.sees_YY.sum(1)

    @cached_property
    def beyond(self) -> int:
        """Tokens beyond the positions that they take: of an example of n tokens, positions are n less this."""
        return len(self) - int(self.depths_Y.max())

    def positions(self, lengths_B: np.ndarray, num_tokens: int) -> np.ndarray:
        """Return the position of each token of padded examples, int64 [B, T], counted from 0.

        Parameters
        ----------
        lengths_B
            Tokens of each example, branches included.
        num_tokens
            T. Padding has no position beyond the last one that so long an example takes.
        """
        return np.minimum(self._places(lengths_B, num_tokens), num_tokens - 1 - self.beyond)

    def _places(self, lengths_B: np.ndarray, num_tokens: int) -> np.ndarray:
        """Return the same with padding numbered on."""
        places_BT = np.broadcast_to(np.arange(num_tokens), (len(lengths_B), num_tokens))
        node_BT = places_BT - (lengths_B - len(self))[:, None]
        inside_BT = (node_BT >= 0) & (node_BT < len(self))
        back_BT = node_BT + 1 - self.depths_Y[np.clip(node_BT, 0, len(self) - 1)]
        return places_BT - np.where(inside_BT, back_BT, 0)

    def visible(self, lengths_B: np.ndarray, num_tokens: int, window: int | None) -> np.ndarray:
        """Return which tokens each token of padded examples sees, bool [B, T, T]; attention is causal.

        Parameters
        ----------
        lengths_B, num_tokens
            As in :meth:`positions`.
        window
            Positions that a token sees back, its own included; None for all.
        """
        node_BT = np.arange(num_tokens) - (lengths_B - len(self))[:, None]
        inside_BT = (node_BT >= 0) & (node_BT < len(self))
        node_BT = np.clip(node_BT, 0, len(self) - 1)
        position_BT = self._places(lengths_B, num_tokens)
        back_BTT = position_BT[:, :, None] - position_BT[:, None, :]
        own_BTT = inside_BT[:, :, None] & self.sees_YY[node_BT[:, :, None], node_BT[:, None, :]]
        seen_BTT = np.where(inside_BT[:, None, :], own_BTT, back_BTT >= 0)
        return seen_BTT if window is None else seen_BTT & (back_BTT < window)


@dataclass(frozen=True)
class LabelWords:
    """The words of all classes as a model reads them."""

    ids_Q: np.ndarray
    """int64; tokens of the words, one word after another, each with what is scored behind it."""
    lengths_W: np.ndarray
    """int64; tokens of each word, one or more."""
    classes_W: np.ndarray
    """int64; class of each word, ascending."""
    masks: bool
    """Whether words are read at masks, as many as the longest has tokens, and not in branches."""

    @classmethod
    def of(cls, words: Sequence[Sequence[Sequence[int]]], *, masks: bool) -> LabelWords:
        """Return the words of each class, given by their tokens."""
        flat = [list(word) for own in words for word in own]
        return cls(
            np.array([token for word in flat for token in word], np.int64),
            np.array([len(word) for word in flat], np.int64),
            np.repeat(np.arange(len(words)), [len(own) for own in words]),
            masks,
        )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self.classes_W[-1]) + 1

    @property
    def num_masks(self) -> int:
        """Masks of an example."""
        return int(self.lengths_W.max()) if self.masks else 0

    @property
    def single_C(self) -> np.ndarray | None:
        """int64 token of each class's word; None unless each class has one word of one token."""
        return self.ids_Q if len(self.ids_Q) == len(self.classes_W) == self.num_classes else None

    @cached_property
    def words(self) -> tuple[tuple[int, ...], ...]:
        """Tokens of each word."""
        ends = np.cumsum(self.lengths_W).tolist()
        ids = self.ids_Q.tolist()
        return tuple(tuple(ids[end - size : end]) for end, size in zip(ends, self.lengths_W.tolist(), strict=True))

    @cached_property
    def _nodes(self) -> dict[tuple[int, ...], int]:
        """Beginnings of words that later tokens are predicted from, in order; a node of the tree each."""
        starts = (word[:size] for word in self.words for size in range(1, len(word)))
        return {start: node for node, start in enumerate(dict.fromkeys(starts))}

    @cached_property
    def branches(self) -> Branches | None:
        """The branches behind each example; None if there are none, as all words have one token or are read at masks."""
        if self.masks or not self._nodes:
            return None
        sees_YY = np.zeros((len(self._nodes), len(self._nodes)), dtype=bool)
        for start, node in self._nodes.items():
            sees_YY[node, [self._nodes[start[:size]] for size in range(1, len(start) + 1)]] = True
        return Branches(np.array([start[-1] for start in self._nodes], np.int64), sees_YY)

    @cached_property
    def _read_R(self) -> np.ndarray:
        """int64; how far behind the first row that is read each token of each word is predicted."""
        if self.masks:
            return np.concatenate([np.arange(size) for size in self.lengths_W])
        steps = [(word, size) for word in self.words for size in range(len(word))]
        return np.array([self._nodes[word[:size]] + 1 if size else 0 for word, size in steps], np.int64)

    @cached_property
    def shares_RC(self) -> np.ndarray:
        """float64; weight of each read in each class's score: a mean over the class's words of the mean over their tokens."""
        words_C = np.bincount(self.classes_W, minlength=self.num_classes)
        share_W = 1.0 / (self.lengths_W * words_C[self.classes_W])
        of_class_WC = self.classes_W[:, None] == np.arange(self.num_classes)
        return np.repeat(share_W[:, None] * of_class_WC, self.lengths_W, axis=0)

    def reads(self, first_B: np.ndarray) -> Reads:
        """Return what is read of examples; a group for each word of each example.

        Parameters
        ----------
        first_B
            int64 row of each example's first mask, or of its trunk's last token.
        """
        span = int(self._read_R.max()) + 1
        word_R = np.repeat(np.arange(len(self.lengths_W)), self.lengths_W)
        each_B1 = np.arange(len(first_B))[:, None]
        return Reads(
            rows_U=(first_B[:, None] + np.arange(span)).reshape(-1),
            read_R=(each_B1 * span + self._read_R).reshape(-1),
            targets_R=np.tile(self.ids_Q, len(first_B)),
            groups_R=(each_B1 * len(self.lengths_W) + word_R).reshape(-1),
            num_groups=len(first_B) * len(self.lengths_W),
        )
