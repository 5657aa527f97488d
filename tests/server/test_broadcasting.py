"""What the server sends: what devices hold and what is left add up to all steps, and sizes are those of the messages missed."""

import numpy as np
import pytest

from fedsim.core.compression.blocks import Blocks
from fedsim.core.compression.codec import CODECS
from fedsim.core.compression.config import CompressionConfig
from fedsim.core.compression.links import downlink
from fedsim.core.messages import VECTOR
from fedsim.core.method import ServerState
from server.broadcasting import Broadcasting, Broadcasts

SIZE, ROUNDS = 300, 12


def states():
    """Return a server's states before and after each of its own steps, which start from what devices hold."""
    rng = np.random.default_rng(0)
    return rng.normal(0.0, 0.1, SIZE).astype(np.float32).astype(np.float64), rng.normal(0.0, 0.01, (ROUNDS, SIZE))


def made(kind, state):
    link = downlink(CompressionConfig(down={"kind": kind}))
    plan = Broadcasting(link, (VECTOR, "control"), frozenset(), Blocks.of_sizes([200, 100]), 0)
    return Broadcasts(plan, np.dtype(np.float32), state)


@pytest.mark.parametrize("kind", [kind for kind in CODECS if kind != "none"])
def test_what_devices_hold_and_what_is_left_add_up_to_all_steps(kind):
    start_F, steps_RF = states()
    state = ServerState(start_F, lr=1.0, arrays={"control": np.zeros(SIZE)})
    sent, resumed, wanted_F, control_F = made(kind, state), None, start_F, np.zeros(SIZE)
    for round, step_F in enumerate(steps_RF, 1):
        before_F, wanted_F, control_F = state.vector_F, wanted_F + step_F, control_F + step_F
        after = state.with_arrays(before_F + step_F, control=control_F)
        state = sent.sent(before_F, after, round)
        if resumed is not None:  # the same state, the same messages
            assert resumed.sent(before_F, after, round).vector_F.tobytes() == state.vector_F.tobytes()
            assert [d.since(1) for d in resumed.downloads(state).values()] == [
                d.since(1) for d in sent.downloads(state).values()
            ]
        if round == 5:
            resumed = made(kind, state)
            resumed.load(sent.saved())
        np.testing.assert_allclose(state.vector_F + sent.saved()["unsent"], wanted_F, rtol=0, atol=1e-12)
        assert np.array_equal(state.vector_F, state.vector_F.astype(np.float32))  # as devices hold it
        assert np.array_equal(state.array("control"), control_F)  # the server's own stays exact
        held_F = sent.arrays(("control",), state)["control"]
        bound = 10 * np.linalg.norm(step_F)  # no kind drifts
        assert max(np.linalg.norm(held_F - control_F), np.linalg.norm(state.vector_F - wanted_F)) < bound


def test_a_device_downloads_what_it_missed_or_the_whole_whichever_is_shorter():
    start_F, steps_RF = states()
    state = ServerState(start_F, lr=1.0, arrays={"control": np.zeros(SIZE)})
    sent = made("int8", state)
    whole, message = 10 + 4 * SIZE, 10 + 2 * 4 + SIZE
    for round in range(ROUNDS):
        found = sent.downloads(state)
        assert set(found) == {VECTOR, "control"}
        for download in found.values():
            assert download.since(-1) == whole
            assert [download.since(last) for last in range(round)] == [
                min(whole, (round - last) * message) for last in range(round)
            ]
        state = sent.sent(state.vector_F, state.with_arrays(state.vector_F + steps_RF[round]), round + 1)
