"""Actor calls that train work groups, as a whole or client by client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import ray

from fedsim.core.messages import WorkGroup
from fedsim.executors.base import Handle
from fedsim.executors.queues import Call
from fedsim.executors.reduction import block_of


def references(client_states: Mapping[int, Handle], clients: Sequence[int]) -> list[ray.ObjectRef]:
    """Return those states of ``clients`` that are objects; the others hold nothing but counts, which workers need not know."""
    return [state for state in map(client_states.__getitem__, clients) if isinstance(state, ray.ObjectRef)]


def train_call(
    index: int,
    group: WorkGroup,
    state: Handle,
    client_states: Mapping[int, Handle],
    trunks: Sequence[Handle],
    keeps_state: bool,
    slot: int | None,
) -> Call:
    """Return the call that trains a group; it can be split into a call for each client.

    Parameters
    ----------
    index
        Number of the call among those of the round.
    trunks
        Those that ``group.with_trunks`` names, in its order.
    keeps_state
        Clients keep tensors between visits, so each returns a new state.
    slot
        The actor that has to run it, None for any.
    """
    call = Call(
        index,
        "train",
        (group, state, *references(client_states, group.clients), *trunks),
        num_returns=2 + len(group.clients) * keeps_state + len(group.keep_trunks),
        slot=slot,
        what=f"round {group.round + 1}, group {group.group}",
        clients=group.clients,
        block=block_of(group),
    )

    def split() -> list[Call]:
        # Without trunks: one that is missing is computed anew in the same bits.
        alone = [WorkGroup(group.round, group.group, (client,), part) for part, client in enumerate(group.clients)]
        return [
            replace(
                call,
                arguments=(one, state, *references(client_states, one.clients)),
                num_returns=2 + keeps_state,
                what=f"{call.what}, client {one.clients[0]}",
                clients=one.clients,
                part=one.part,
                parts=len(alone),
            )
            for one in alone
        ]

    return replace(call, split=split) if len(group.clients) > 1 else call
