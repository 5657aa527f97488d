"""What a finished simulation gives back."""

from __future__ import annotations

from dataclasses import dataclass

from clients.spec import WorkerInfo
from fedsim.core.layout import VectorLayout
from fedsim.core.messages import ClientState, Evaluation, GlobalState
from fedsim.simulation.layer_choice import LayerChoice
from fedsim.simulation.stopping import Stopped
from fedsim.simulation.totals import Totals


@dataclass(frozen=True)
class Result:
    """What a finished simulation gives back."""

    choice: LayerChoice
    layout: VectorLayout
    state: GlobalState
    rounds: int
    """Those that were done."""
    stopped: Stopped | None
    """Why the run ended before its last round; None where it did not."""
    totals: Totals
    personalised: Evaluation | None
    personal: list[ClientState]
    """States of the clients that have trained, ascending, where layers stay on the devices; else empty."""
    workers: list[WorkerInfo]
    seconds: float
    first_group_at: float | None
    """Monotonic time when the first work group of this process was trained; None if there was nothing left to train."""
