"""Products with matrices that differ from client to client, inside one pass of many clients.

Rows of a packed batch are grouped by client and padded to the longest group: one batched product multiplies each group by
its client's matrix. Nothing of one client enters another's product, so a NaN stays with its client, and gradients add up in
a fixed order.

Shape suffixes: C clients, G clients that have rows in a pass, B examples, T tokens, Z packed tokens, M rows of the largest
group, S = G x M slots, I and O features in and out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from clients.backbone.device import to_device
from clients.tuners.moves import apart, together

RowMap = Callable[..., Tensor]
"""Maps rows [G, M, I] and arrays [G, ...] of the same clients to [G, M, O], every row by itself."""


class _OfClients:
    """Rows that can be those of clients, not of a pass."""

    _by_client = False

    @contextmanager
    def of_clients(self) -> Iterator[None]:
        """Take what is mapped in this block as [C, M, I]: rows of each client."""
        self._by_client = True
        try:
            yield
        finally:
            self._by_client = False

    @staticmethod
    def _mapped_by_client(function: RowMap, input_CMI: Tensor, *arrays: Tensor) -> Tensor:
        return function(input_CMI, *(array.to(input_CMI.dtype) for array in arrays))


class PaddedRows(_OfClients):
    """Rows of a padded batch [B, T, I]: the plain way, each example times its client's matrices.

    Parameters
    ----------
    client_of_example_B
        int64 client of each example; None where there is one client.
    """

    def __init__(self, client_of_example_B: Tensor | None) -> None:
        self._client_of_example_B = client_of_example_B

    @property
    def _examples(self) -> int:
        return 1 if self._client_of_example_B is None else len(self._client_of_example_B)

    def mapped(self, function: RowMap, input_BTI: Tensor, *arrays: Tensor) -> Tensor:
        """Return ``function(input, own arrays)``, [B, T, O].

        Parameters
        ----------
        function
            Takes rows [G, M, I] and arrays [G, ...] and maps every row by itself to [G, M, O].
        arrays
            Each client's arrays [C, ...], cast to the number format of the input.
        """
        if self._by_client:
            return self._mapped_by_client(function, input_BTI, *arrays)
        if input_BTI.ndim == 2:  # OPT runs its feed-forward on rows
            folded_BTI = input_BTI.unflatten(0, (self._examples, -1))
            return self.mapped(function, folded_BTI, *arrays).flatten(0, 1)
        arrays = tuple(array.to(input_BTI.dtype) for array in arrays)
        if self._client_of_example_B is None:
            return function(input_BTI, *arrays)
        # Indexing, not index_select: on a GPU only its gradient adds up in a fixed order.
        owner_B = self._client_of_example_B.to(input_BTI.device)
        return function(input_BTI, *(array[owner_B] for array in arrays))

    def low_rank(self, input_BTI: Tensor, down_CIR: Tensor, up_CRO: Tensor) -> Tensor:
        """Return ``input @ down @ up`` with each example's own matrices, [B, T, O]."""
        return self.mapped(_low_rank, input_BTI, down_CIR, up_CRO)


class PackedRows(_OfClients):
    """Rows of a packed batch [1, Z, I], or those that a head reads [1, U, I], as the narrowed top layer has them.

    Parameters
    ----------
    client_of_example_B
        int64 client of each example; None where there is one client. An array, as a tensor would have to be copied from its
        device, which waits for all earlier work there.
    lengths_B
        Tokens of each example, in packed order.
    examples_U
        int64 example of each row that the head reads; None for one row of each.
    """

    def __init__(
        self,
        client_of_example_B: np.ndarray | Tensor | None,
        lengths_B: np.ndarray,
        examples_U: np.ndarray | None = None,
    ) -> None:
        self._client_of_example_B, self._lengths_B = client_of_example_B, lengths_B
        self._examples_U = examples_U
        self._groupings: dict[tuple[int, torch.device], _Grouping] = {}
        self._last: tuple[Tensor, Tensor] | None = None

    def of_lengths(self, lengths_B: np.ndarray) -> PackedRows:
        """Return the rows of the same examples with other numbers of tokens."""
        return PackedRows(self._client_of_example_B, lengths_B)

    def mapped(self, function: RowMap, input_1ZI: Tensor, *arrays: Tensor) -> Tensor:
        """Return ``function(input, own arrays)``, [1, Z, O]; parameters as in :meth:`PaddedRows.mapped`."""
        if self._by_client:
            return self._mapped_by_client(function, input_1ZI, *arrays)
        if input_1ZI.ndim == 2:  # OPT runs its feed-forward on rows
            return self.mapped(function, input_1ZI.unsqueeze(0), *arrays)[0]
        grouping = self._grouping(input_1ZI.shape[1], input_1ZI.device)
        # The targets of a layer often read the same tensor, as query and value do: it is grouped once.
        if self._last is None or self._last[0] is not input_1ZI:
            self._last = (input_1ZI, grouping.grouped(input_1ZI[0]))
        own = (grouping.own(array.to(input_1ZI.dtype)) for array in arrays)
        return grouping.ungrouped(function(self._last[1], *own)).unsqueeze(0)

    def low_rank(self, input_1ZI: Tensor, down_CIR: Tensor, up_CRO: Tensor) -> Tensor:
        """Return ``input @ down @ up`` with each row's own matrices, [1, Z, O]."""
        return self.mapped(_low_rank, input_1ZI, down_CIR, up_CRO)

    @property
    def _owners_B(self) -> np.ndarray:
        owners_B = self._client_of_example_B
        if owners_B is None:
            return np.zeros(len(self._lengths_B), dtype=np.int64)
        return owners_B.cpu().numpy() if isinstance(owners_B, Tensor) else owners_B

    def _grouping(self, num_rows: int, device: torch.device) -> _Grouping:
        if (num_rows, device) not in self._groupings:
            self._groupings[num_rows, device] = _Grouping(self._owners(num_rows), device)
        return self._groupings[num_rows, device]

    def _owners(self, num_rows: int) -> np.ndarray:
        """Return the client of each row."""
        owners_B = self._owners_B
        if num_rows == int(self._lengths_B.sum()):
            return np.repeat(owners_B, self._lengths_B)
        if self._examples_U is not None and num_rows == len(self._examples_U):
            return owners_B[self._examples_U]
        if num_rows == len(owners_B):  # as tuners map that make something of each text
            return owners_B
        raise ValueError(f"{num_rows} rows are neither the tokens nor the examples of the pass")


def _low_rank(rows_GMI: Tensor, down_GIR: Tensor, up_GRO: Tensor) -> Tensor:
    return rows_GMI @ down_GIR @ up_GRO


class _Grouping:
    """Rows grouped by client, each group padded to the largest."""

    def __init__(self, owners_Z: np.ndarray, device: torch.device) -> None:
        clients_G, group_Z, counts_G = np.unique(owners_Z, return_inverse=True, return_counts=True)
        self._clients = clients_G.tolist()
        self._most = int(counts_G.max())
        order_Z = np.argsort(group_Z, kind="stable")
        starts_G = np.cumsum(counts_G) - counts_G
        own_GM = np.arange(self._most) < counts_G[:, None]
        # A padding slot holds a row of its own client: another's could be NaN, and NaN times zero is NaN.
        rows_GM = order_Z[starts_G[:, None] + np.where(own_GM, np.arange(self._most), 0)]
        slots_Z = np.empty(len(owners_Z), dtype=np.int64)
        slots_Z[rows_GM[own_GM]] = np.flatnonzero(own_GM)
        moves = (rows_GM.reshape(-1), slots_Z, np.flatnonzero(~own_GM))
        self._moves = None
        if len(clients_G) > 1:
            self._moves = tuple(to_device(array, device) for array in moves)

    def own(self, matrix_CIO: Tensor) -> Tensor:
        """Return the matrices of the clients that have rows, [G, I, O]."""
        if len(self._clients) == len(matrix_CIO):
            return matrix_CIO
        return torch.stack([matrix_CIO[client] for client in self._clients])

    def grouped(self, rows_ZI: Tensor) -> Tensor:
        """Return the rows by client, [G, M, I]."""
        if self._moves is None:
            return rows_ZI.unsqueeze(0)
        return apart(rows_ZI, *self._moves).view(len(self._clients), self._most, -1)

    def ungrouped(self, groups_GMO: Tensor) -> Tensor:
        """Return the rows in the order of the batch, [Z, O]."""
        return groups_GMO[0] if self._moves is None else together(groups_GMO.flatten(0, 1), *self._moves)
