"""The aggregator actor, and the reduction of a round's sums on their way to it.

On one node, groups' sums go straight to the aggregator. On several, if a round has several blocks of groups, a block's
sums are first added on the node that trained most of them, and one object per block leaves the node. Both give the same
bits, since a block is added in the same order everywhere (``server/blocks.py``).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray

from fedsim.core.messages import WorkGroup
from fedsim.executors.base import Handle, InOrder, StateLost
from fedsim.executors.cluster.callers_group import beside_driver, group_of_caller
from fedsim.executors.cluster.placement import on_node
from fedsim.executors.config import RayConfig
from fedsim.executors.ray.appearance import Appearance
from fedsim.executors.ray.deadlines import wait_for
from fedsim.executors.ray.failures import SYSTEM_ERRORS, reason
from fedsim.executors.ray.shipping import shipped
from server.blocks import BLOCK_GROUPS

if TYPE_CHECKING:
    import numpy as np

    from fedsim.core.method import Method
    from server.core import StepReport

_FOLD_BYTES, _FOLD_UPDATES = 16 * 2**20, 16
"""Most sums buffered before they are sent: one call each would cost more than the sums."""


def blocks_of(groups: Sequence[WorkGroup]) -> list[int]:
    """Return the block to which each group's sums belong, numbered from 0; none mixes server steps or rounds."""
    keys = [(group.taken_in, group.round, group.group // BLOCK_GROUPS) for group in groups]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return [numbers[key] for key in keys]


class Aggregator:
    """Driver-side handle of the aggregator actor; a call that fails with the actor or its node raises ``StateLost``.

    Parameters
    ----------
    actor_class, block_class
        :class:`server.aggregator.AggregatorActor` and :class:`server.aggregator.BlockActor`.
    shown
        What they are called.
    """

    def __init__(self, config: RayConfig, actor_class: Any, block_class: Any, shown: Appearance) -> None:
        self._config, self._shown = config, shown
        self._actor_class, self._block_class = actor_class, block_class
        self._group = group_of_caller(config)
        self._actor: Any = None
        self._adders: dict[str, Any] = {}
        self._folds: deque[ray.ObjectRef] = deque()
        """Pending calls that fold the round's sums; their errors surface at the server step at the latest."""
        self._unfolded: list[Handle] = []
        """Buffered sums that come next in order, all of one round."""
        self._unfolded_round = 0
        self._arrays: ray.ObjectRef | None = None
        """Reference to the server's state after its last step; it outlives the actor."""
        self.at_once = 1
        """Number of sums sent in one call."""

    def create(self) -> None:
        """Create the actor on the driver's node, so that losing another node does not lose it."""
        self._actor = self._new(beside_driver(self._group), self._actor_class, "server")

    def create_adders(self, nodes: set[str]) -> None:
        """Have each of several nodes add up its own sums; on a single node this would save nothing."""
        for adder in self._adders.values():
            ray.kill(adder, no_restart=True)
        self._adders = {
            node: self._new(on_node(node), self._block_class, f"sums-{number}")
            for number, node in enumerate(sorted(nodes) if len(nodes) > 1 else ())
        }

    def _new(self, where: dict[str, Any], actor_class: Any, role: str) -> Any:
        options, arguments = self._shown.actor(role)
        return actor_class.options(**where, **options).remote(**arguments)

    @property
    def actors(self) -> list[Any]:
        """All server-side actors."""
        return [*([] if self._actor is None else [self._actor]), *self._adders.values()]

    @property
    def actor(self) -> Any:
        """The aggregator actor."""
        return self._actor

    def revive(self) -> None:
        """Recreate the actor if it is lost; its state must be reloaded either way."""
        self._folds.clear()
        self._unfolded = []
        try:
            wait_for([self._actor.peak_memory_bytes.remote()], *self._deadline("the aggregator actor to answer"))
        except SYSTEM_ERRORS:
            ray.kill(self._actor, no_restart=True)
            self.create()

    def start(self, method: Method, vector_F: np.ndarray, *arguments: Any) -> None:
        """Create or recreate the server."""
        self.at_once = max(1, min(_FOLD_UPDATES, _FOLD_BYTES // (8 * len(vector_F))))
        self._folds.clear()
        self._unfolded = []
        self._result(
            self._actor.start.remote(shipped(method), vector_F, *map(shipped, arguments)), "the server to start"
        )
        self._keep_arrays()

    def global_state(self, *version: int) -> Handle:
        """Return the reference to the state that the next round starts from, or an earlier one."""
        return self._actor.global_state.remote(*version)

    def round(self, groups: Sequence[WorkGroup]) -> RoundSums:
        """Return a collector that takes the sums of a round's groups in any order."""
        in_blocks = len(self._adders) > 1 and len(set(blocks_of(groups))) > 1
        return RoundSums(self, groups, self._adders if in_blocks else {})

    def fold(self, round: int, update: Handle) -> None:
        """Send the next sums in order, without waiting for the server to add them."""
        if self._unfolded and round != self._unfolded_round:
            self._send()
        self._unfolded.append(update)
        self._unfolded_round = round
        if len(self._unfolded) >= self.at_once:
            self._send()

    def _send(self) -> None:
        round = self._unfolded_round
        self._folds.append(self._actor.fold.remote(round, *self._unfolded))
        self._unfolded = []
        if len(self._folds) > 1:  # so that sums do not pile up if the server is slower than the clients
            self._result(self._folds.popleft(), f"the server to fold sums of round {round + 1}")

    def apply(self, round: int, order: tuple[int, ...], **named: Any) -> StepReport:
        """Take the server step."""
        if self._unfolded and round != self._unfolded_round:
            self._send()  # what a later step takes in
        unfolded, self._unfolded = self._unfolded, []
        step, arrays = self._actor.apply.options(num_returns=2).remote(round, order, *unfolded, **named)
        del unfolded
        what = f"the server step of round {round + 1}"
        while self._folds:
            self._result(self._folds.popleft(), what)
        report: StepReport = self._result(step, what)
        self._arrays = arrays
        return report

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the server's state after its last step, even if the actor was lost since."""
        if self._arrays is None:
            raise StateLost("the server's state was asked for before there was any")
        arrays: dict[str, np.ndarray] = self._result(self._arrays, "the server's state")
        return arrays

    def load_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """Load a checkpoint's state into the server."""
        self._result(self._actor.load_arrays.remote(arrays), "the server to load a checkpoint")
        self._keep_arrays()

    def _keep_arrays(self) -> None:
        self._arrays = self._actor.arrays.remote()

    def _result(self, ref: ray.ObjectRef, what: str) -> Any:
        # Not interruptible: a server step is short, and half a step could not be saved.
        try:
            return wait_for([ref], *self._deadline(what))[0]
        except SYSTEM_ERRORS as error:
            raise StateLost(f"the aggregator actor, or sums on their way to it, were lost ({reason(error)})") from error

    def _deadline(self, what: str) -> tuple[float, str, str]:
        return self._config.group_timeout_seconds, what, "ray.group_timeout_seconds"


class RoundSums:
    """Takes the sums of a round's groups as they arrive and sends them on in group order.

    Parameters
    ----------
    adders
        Actors that add up a block's sums, by node; empty if all sums go straight to the aggregator.
    """

    def __init__(self, aggregator: Aggregator, groups: Sequence[WorkGroup], adders: dict[str, Any]) -> None:
        self._aggregator = aggregator
        self._groups = groups
        self._adders = adders
        self._in_order = InOrder()
        self._blocks: dict[int, _Block] = {}
        self._numbers = blocks_of(groups) if adders else []
        for index, number in enumerate(self._numbers):
            self._blocks.setdefault(number, _Block(index)).indices.append(index)
        self._places = {block: place for place, block in enumerate(self._blocks)}

    def add(self, index: int, updates: Sequence[Handle], node: str) -> None:
        """Add the sums of group ``index``; ``updates`` has several entries if it came in parts.

        Parameters
        ----------
        node
            Node that trained it.
        """
        if not self._adders:
            for round, some in self._in_order.next(index, (self._groups[index].taken_in, updates)):
                for update in some:
                    self._aggregator.fold(round, update)
            return
        number = self._numbers[index]
        block = self._blocks[number]
        block.nodes[node] += 1
        for some in block.in_order.next(index - block.first, updates):
            block.pending += some
            block.done += 1
            self._add_up(block)
        if block.done == len(block.indices):
            for last, total in self._in_order.next(self._places[number], (index, block.total)):
                if total is not None:
                    self._aggregator.fold(self._groups[last].taken_in, total)

    def _add_up(self, block: _Block) -> None:
        """Have the sums of a block added, in batches and at its end."""
        last = block.first + block.done - 1
        ends = block.done == len(block.indices)
        if not block.pending or not (ends or len(block.pending) >= self._aggregator.at_once):
            return
        if block.adder is None:
            known = [node for node, _ in block.nodes.most_common() if node in self._adders]
            block.adder = self._adders[known[0]] if known else next(iter(self._adders.values()))
        whole = ends or self._groups[last + 1].group != self._groups[last].group
        block.total = block.adder.add.remote(block.total, whole, *block.pending)
        block.pending = []


class _Block:
    """Groups whose sums are added together on one node."""

    def __init__(self, first: int) -> None:
        self.first = first
        """Index of its first group."""
        self.indices: list[int] = []
        self.in_order = InOrder()
        self.nodes: Counter[str] = Counter()
        """Number of groups that each node trained."""
        self.adder: Any = None
        self.total: Handle = None
        self.pending: list[Handle] = []
        self.done = 0
