"""Result of a finished simulation."""

from __future__ import annotations

from dataclasses import dataclass

from clients.spec import WorkerInfo
from fedsim.core.layout import VectorLayout
from fedsim.core.messages import ClientState, GlobalState
from fedsim.simulation.final import FinalEvaluations
from fedsim.simulation.layer_choice import LayerChoice
from fedsim.simulation.stopping import Stopped
from fedsim.simulation.totals import Totals
from fedsim.world.devices import Devices


@dataclass(frozen=True)
class Result:
    """Result of a finished simulation."""

    choice: LayerChoice
    layout: VectorLayout
    state: GlobalState
    rounds: int
    """Rounds completed."""
    stopped: Stopped | None
    """Why the run ended before its last round; None if it did not."""
    totals: Totals
    final: FinalEvaluations
    personal: list[ClientState]
    """States of the clients that have trained, by ascending id, if layers stay on the devices; else empty."""
    workers: list[WorkerInfo]
    devices: Devices | None
    """The clients' devices, if they are simulated."""
    seconds: float
    first_group_at: float | None
    """Monotonic time at which this process finished its first work group; None if nothing was left to train."""
