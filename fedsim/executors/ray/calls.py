"""Actor calls for groups of clients, as a whole or client by client, and for ranges of validation examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray

from fedsim.core.messages import WorkGroup
from fedsim.core.returns import TrainReturns
from fedsim.executors.base import Handle
from fedsim.executors.ray.queues import Call


def references(client_states: Mapping[int, Handle], clients: Sequence[int]) -> list[ray.ObjectRef]:
    """Return the states of ``clients`` that are stored objects; the others hold only counts, which workers do not need."""
    return [state for state in map(client_states.__getitem__, clients) if isinstance(state, ray.ObjectRef)]


def train_call(
    index: int,
    group: WorkGroup,
    block: int,
    state: Handle,
    client_states: Mapping[int, Handle],
    caches: Sequence[Handle],
    keeps_state: bool,
    slot: int | None,
) -> Call:
    """Return the call that trains a group; it can be split into one call per client.

    Parameters
    ----------
    index
        Index of the call within the round.
    block
        Number of its block of groups; see :func:`fedsim.executors.ray.reduction.blocks_of`.
    caches
        Cached frozen-layer states that ``group.with_cached`` names, in its order.
    keeps_state
        Whether clients keep tensors between rounds, so that each returns a new state.
    slot
        Actor that must run it; None for any.
    """
    call = Call(
        index,
        "train",
        (group, state, *references(client_states, group.clients), *caches),
        num_returns=TrainReturns.count(group, keeps_state),
        slot=slot,
        what=f"round {group.taken_in + 1}, group {group.group}",
        clients=group.clients,
        round=group.round,
        block=block,
    )

    def split() -> list[Call]:
        # Without cached states: missing ones are recomputed to the same bits.
        alone = [
            WorkGroup(group.round, group.group, (client,), part, step=group.step)
            for part, client in enumerate(group.clients)
        ]
        return [
            replace(
                call,
                arguments=(one, state, *references(client_states, one.clients)),
                num_returns=TrainReturns.count(one, keeps_state),
                what=f"{call.what}, client {one.clients[0]}",
                clients=one.clients,
                part=one.part,
                parts=len(alone),
            )
            for one in alone
        ]

    return replace(call, split=split) if len(group.clients) > 1 else call


def client_call(
    index: int,
    method: str,
    clients: tuple[int, ...],
    arguments: Callable[[tuple[int, ...]], tuple[Any, ...]],
    what: str,
) -> Call:
    """Return a call with one result per client; it can be split into one call per client.

    Parameters
    ----------
    arguments
        Returns the arguments for some clients.
    what
        Name of the work, for messages.
    """
    named = f"client {clients[0]}" if len(clients) == 1 else f"clients {clients[0]} to {clients[-1]}"
    call = Call(index, method, arguments(clients), what=f"{what} of {named}", clients=clients)

    def split() -> list[Call]:
        alone = [client_call(index, method, (client,), arguments, what) for client in clients]
        return [replace(one, part=part, parts=len(alone)) for part, one in enumerate(alone)]

    return replace(call, split=split) if len(clients) > 1 else call


def evaluation_call(
    index: int,
    state: Handle,
    shard: tuple[int, int],
    keeps_cached: bool,
    cached: Handle | None,
    keep_predictions: bool,
) -> Call:
    """Return the call that evaluates a range of validation examples.

    Parameters
    ----------
    keeps_cached
        Whether to return the frozen-layer states of these examples too.
    cached
        Cached states of these examples; None if they have to be computed.
    keep_predictions
        Whether to return what is predicted for each example.
    """
    return Call(
        index,
        "evaluate",
        (state, *shard, keeps_cached, keep_predictions, *([] if cached is None else [cached])),
        num_returns=2 if keeps_cached else 1,
        what=f"evaluation of examples {shard[0]} to {shard[1]}",
    )
