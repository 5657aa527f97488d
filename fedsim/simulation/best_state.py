"""The global state of the best round so far: ``prompt/best.safetensors``."""

from __future__ import annotations

import numpy as np

from fedsim.core.messages import GlobalState
from fedsim.executors.base import Handle
from fedsim.prompts.prompted_model import BEST_PROMPT, save_prompt
from fedsim.records.events import writing
from fedsim.simulation.context import RunContext
from fedsim.simulation.federation import Federation


class BestState:
    """Keeps a reference to the best round's global state, and writes it as a prompt.

    A reference alone: on Ray the driver holds a vector only while a checkpoint or the file is written. What is lost with its
    node comes back from the checkpoint, of which it is a part.
    """

    def __init__(self, run: RunContext, federation: Federation) -> None:
        self._run = run
        self._federation = federation
        self._round: int | None = None
        self._state: Handle = None
        self._written: int | None = None
        """Round of what this process has written to the file."""

    def note(self, best_round: int | None) -> None:
        """Take over the state of the federation, if its round is the best one."""
        if best_round == self._federation.round:
            self._round, self._state = best_round, self._federation.state

    def restore(self, round: int | None, vector_F: np.ndarray | None) -> None:
        """Take over what a checkpoint holds; None where no round was the best yet."""
        executor, layers = self._run.executor, self._federation.choice.layers
        self._round = None if vector_F is None else round
        self._state = None if vector_F is None else executor.put(GlobalState(round or 0, layers, vector_F))
        self._written = None  # whatever the file holds, it may be of a round that is to be done again

    def vector_F(self) -> np.ndarray | None:
        """Return the state's vector.

        Raises
        ------
        StateLost
            If it is gone with its node.
        """
        if self._round is None:
            return None
        (state,) = self._run.executor.get([self._state])
        vector_F: np.ndarray = np.asarray(state.vector_F)
        return vector_F

    def write(self) -> None:
        """Write the file, if it does not hold this state already; remove it where there is none."""
        run, path = self._run, self._run.folder.prompt / BEST_PROMPT
        if (vector_F := self.vector_F()) is None:
            with writing(path):
                path.unlink(missing_ok=True)
        elif self._round != self._written:
            layout = self._federation.workers[0].full.exchanged(self._federation.choice.layers)
            save_prompt(path, vector_F, layout, run.config, run.prepared.data.task, self._round)
            self._written = self._round
