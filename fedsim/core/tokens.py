"""Columnar token table: a tokenised dataset as a few flat arrays, stored once and mapped by every worker.

Shape suffixes: N examples, Z all tokens one after another, B examples of a batch, T tokens of the batch's longest example.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fedsim.core.reads import Reads, of_learned, of_responses
from fedsim.core.words import Branches, LabelWords


@dataclass(frozen=True)
class TokenBatch:
    """A batch padded on the right."""

    input_ids_BT: np.ndarray
    """int64."""
    attention_mask_BT: np.ndarray
    """int64; 1 for a token, 0 for padding."""
    token_type_ids_BT: np.ndarray | None
    """int64; 0 and 1 for the two texts of a pair, or None where the model has no such input."""
    read_positions_B: np.ndarray
    """int64; position of the mask token, or of the last token."""
    labels_B: np.ndarray
    """int64 class numbers."""
    reads: Reads | None = None
    """As in :class:`PackedTokens`: rows count tokens, not padding."""
    branches: Branches | None = None
    """As in :class:`PackedTokens`."""

    @property
    def longest(self) -> int:
        """Positions that the longest example takes."""
        return self.input_ids_BT.shape[1] - (0 if self.branches is None else self.branches.beyond)


@dataclass(frozen=True)
class PackedTokens:
    """A batch without padding: the tokens of its examples one after another."""

    ids_Z: np.ndarray
    """int64 token ids."""
    types_Z: np.ndarray | None
    """int64; 0 and 1 for the two texts of a pair, or None where the model has no such input."""
    lengths_B: np.ndarray
    """int64 number of tokens of each example."""
    read_rows_B: np.ndarray
    """int64; index in ``ids_Z`` of each example's mask token, or of its last token."""
    labels_B: np.ndarray
    """int64 class numbers."""
    reads: Reads | None = None
    """What is read of each example where losses are of tokens; None where ``read_rows_B`` is all."""
    branches: Branches | None = None
    """Beginnings of label words, the last tokens of every example; None if there are none."""

    def __len__(self) -> int:
        return len(self.labels_B)

    @cached_property
    def starts_B(self) -> np.ndarray:
        """int64; index in ``ids_Z`` of each example's first token."""
        return np.cumsum(self.lengths_B) - self.lengths_B

    @cached_property
    def positions_Z(self) -> np.ndarray:
        """int64; position of each token within its example, counted from 0."""
        places_Z = np.arange(len(self.ids_Z)) - np.repeat(self.starts_B, self.lengths_B)
        if self.branches is None:
            return places_Z
        longest = int(self.lengths_B.max())
        return self.branches.positions(self.lengths_B, longest)[np.arange(longest) < self.lengths_B[:, None]]

    @property
    def longest(self) -> int:
        """Positions that the longest example takes."""
        return int(self.lengths_B.max()) - (0 if self.branches is None else self.branches.beyond)

    @cached_property
    def trunks_B(self) -> np.ndarray:
        """int64 number of tokens of each example without its branches."""
        return self.lengths_B - (0 if self.branches is None else len(self.branches))


@dataclass(frozen=True)
class TokenTable:
    """A tokenised dataset; example i owns the tokens ``offsets_N1[i]`` to ``offsets_N1[i + 1]``."""

    ids_Z: np.ndarray
    """int32 token ids."""
    offsets_N1: np.ndarray
    """int64, one more than examples."""
    read_positions_N: np.ndarray
    """int32; position within its example of the mask or last token; of an example with a response, the last before it."""
    labels_N: np.ndarray
    """int64 class numbers."""
    pad_id: int
    """Token id used for padding."""
    type_ids_Z: np.ndarray | None = None
    """uint8 token types, or None."""
    response_starts_N: np.ndarray | None = None
    """int32; position within its example of the first token of its response, which ends the example; None without responses."""
    learned_Z: np.ndarray | None = None
    """uint8; 1 for the tokens of responses that are learned, where these are not only the last ones; None otherwise."""
    cut_examples: int = 0
    """Number of examples of which something was left out to fit ``data.max_length``."""
    longest_uncut: int = 0
    """Tokens that the longest of them had before; 0 if there are none."""
    cut_prompts: int = 0
    """Number of examples whose prompt was shortened to fit ``data.max_length``."""
    cut_responses: int = 0
    """Number of examples whose response was cut to fit, so that it has no end."""
    cut_answers: int = 0
    """Number of earlier answers that were left out to fit, of dialogues of which all answers are learned."""
    words: LabelWords | None = None
    """Label words of several tokens, or several a class; their branches are the last tokens of every example."""

    def __len__(self) -> int:
        return len(self.labels_N)

    @cached_property
    def lengths_N(self) -> np.ndarray:
        """int64 number of tokens of each example."""
        return np.diff(self.offsets_N1)

    @cached_property
    def responses_N(self) -> np.ndarray:
        """int64 number of tokens of each example that are learned; ones where there are no responses."""
        if self.response_starts_N is None:
            return np.ones(len(self), dtype=np.int64)
        if self.learned_Z is not None:
            return np.diff(np.concatenate([[0], np.cumsum(self.learned_Z, dtype=np.int64)])[self.offsets_N1])
        return self.lengths_N - self.response_starts_N

    @property
    def branches(self) -> Branches | None:
        """Beginnings of label words behind every example; None if there are none."""
        return None if self.words is None else self.words.branches

    @cached_property
    def trunks(self) -> TokenTable:
        """The table without label words and their branches: the texts alone."""
        if self.branches is None:
            return self
        trunks_N = self.lengths_N - len(self.branches)
        own_Z = rows(self.offsets_N1[:-1], trunks_N)
        types_Z = None if self.type_ids_Z is None else self.type_ids_Z[own_Z]
        ends_N1 = np.concatenate([[0], np.cumsum(trunks_N)])
        return replace(self, ids_Z=self.ids_Z[own_Z], offsets_N1=ends_N1, type_ids_Z=types_Z, words=None)

    @property
    def longest(self) -> int:
        """Positions that the longest example takes; 0 without examples."""
        beyond = 0 if self.branches is None else self.branches.beyond
        return max(int(self.lengths_N.max()) - beyond, 0) if len(self) else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self.ids_Z, self.offsets_N1, self.read_positions_N, self.labels_N, self.type_ids_Z)
        more = self.response_starts_N, self.learned_Z
        return sum(array.nbytes for array in (*arrays, *more) if array is not None)

    def pack(self, indices_B: np.ndarray) -> PackedTokens:
        """Return the examples ``indices_B``, in that order, without padding."""
        lengths_B = self.lengths_N[indices_B]
        rows_Z = rows(self.offsets_N1[indices_B], lengths_B)
        ids_Z = self.ids_Z[rows_Z].astype(np.int64)
        return PackedTokens(
            ids_Z=ids_Z,
            types_Z=None if self.type_ids_Z is None else self.type_ids_Z[rows_Z].astype(np.int64),
            lengths_B=lengths_B,
            read_rows_B=np.cumsum(lengths_B) - lengths_B + self.read_positions_N[indices_B],
            labels_B=self.labels_N[indices_B].astype(np.int64),
            reads=self._reads(ids_Z, indices_B),
            branches=self.branches,
        )

    def batch(self, indices_B: np.ndarray) -> TokenBatch:
        """Return the examples ``indices_B``, in that order, padded to the longest of them."""
        starts_B = self.offsets_N1[indices_B]
        lengths_B = self.offsets_N1[indices_B + 1] - starts_B
        steps_T = np.arange(int(lengths_B.max()))
        mask_BT = steps_T[None, :] < lengths_B[:, None]
        flat = (starts_B[:, None] + steps_T[None, :])[mask_BT]
        ids_BT = np.full(mask_BT.shape, self.pad_id, dtype=np.int64)
        ids_BT[mask_BT] = self.ids_Z[flat]
        types_BT = None
        if self.type_ids_Z is not None:
            types_BT = np.zeros(mask_BT.shape, dtype=np.int64)
            types_BT[mask_BT] = self.type_ids_Z[flat]
        return TokenBatch(
            input_ids_BT=ids_BT,
            attention_mask_BT=mask_BT.astype(np.int64),
            token_type_ids_BT=types_BT,
            read_positions_B=self.read_positions_N[indices_B].astype(np.int64),
            labels_B=self.labels_N[indices_B].astype(np.int64),
            reads=self._reads(ids_BT[mask_BT], indices_B),
            branches=self.branches,
        )

    def _reads(self, ids_Z: np.ndarray, indices_B: np.ndarray) -> Reads | None:
        lengths_B = self.lengths_N[indices_B]
        if self.words is not None:
            return self.words.reads(np.cumsum(lengths_B) - lengths_B + self.read_positions_N[indices_B])
        if self.response_starts_N is None:
            return None
        if self.learned_Z is not None:
            learned_Z = self.learned_Z[rows(self.offsets_N1[indices_B], lengths_B)]
            return of_learned(ids_Z, lengths_B, learned_Z.astype(bool))
        return of_responses(ids_Z, lengths_B, self.response_starts_N[indices_B].astype(np.int64))


def rows(starts_B: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
    """Return the int64 indices of all tokens of some examples, one example after another.

    Parameters
    ----------
    starts_B, lengths_B
        int64 index of each example's first token, and its number of tokens.
    """
    shifts_B = starts_B - (np.cumsum(lengths_B) - lengths_B)
    return np.arange(int(lengths_B.sum())) + np.repeat(shifts_B, lengths_B)


def cut(lengths_B: np.ndarray, max_tokens: int | None) -> list[slice]:
    """Cut consecutive examples into pieces of similar token counts, at most ``max_tokens`` and at least one example each."""
    ends_B = np.cumsum(lengths_B)
    pieces = 1 if max_tokens is None else -(-int(ends_B[-1]) // max_tokens)
    edges: list[int] = [0]
    while edges[-1] < len(lengths_B):
        done = int(ends_B[edges[-1] - 1]) if edges[-1] else 0
        left = int(ends_B[-1]) - done
        goal = done + -(-left // max(1, pieces - len(edges) + 1))
        if max_tokens is not None:
            goal = min(goal, done + max_tokens)
        edges.append(max(edges[-1] + 1, int(np.searchsorted(ends_B, goal, side="right"))))
    return [slice(*edge) for edge in itertools.pairwise(edges)]
