"""The global state of the best round so far: ``prompt/best.safetensors``."""

from __future__ import annotations

import numpy as np

from fedsim.core.messages import GlobalState
from fedsim.executors.base import Handle
from fedsim.prompts.prompt_file import BEST_PROMPT, save_prompt
from fedsim.records.events import writing
from fedsim.simulation.context import RunContext
from fedsim.simulation.federation import Federation


class BestState:
    """Keeps a reference to the global state of the best round and writes it as a prompt file.

    On Ray the driver holds the vector itself only while it writes a checkpoint or the file. A state that is lost with its
    node is restored from the checkpoint.
    """

    def __init__(self, run: RunContext, federation: Federation) -> None:
        self._run = run
        self._federation = federation
        self._round: int | None = None
        self._state: Handle = None
        self._written: int | None = None
        """Round of the state that this process last wrote to the file."""

    @property
    def latest(self) -> tuple[int | None, Handle]:
        """The best round so far, None before any evaluation, and its state."""
        return self._round, self._state

    def note(self, best_round: int | None) -> None:
        """Keep the current global state if its round is the best one."""
        if best_round == self._federation.round:
            self._round, self._state = best_round, self._federation.state

    def restore(self, round: int | None, vector_F: np.ndarray | None) -> None:
        """Restore the best state from a checkpoint; ``vector_F`` is None before any round is evaluated."""
        executor, layers = self._run.executor, self._federation.choice.layers
        self._round = None if vector_F is None else round
        self._state = None if vector_F is None else executor.put(GlobalState(round or 0, layers, vector_F))
        self._written = None  # the file may hold the state of a round that will be repeated

    def vector_F(self) -> np.ndarray | None:
        """Return the best state's vector, or None if there is none yet.

        Raises
        ------
        StateLost
            If it was lost with its node.
        """
        if self._round is None:
            return None
        (state,) = self._run.executor.get([self._state])
        vector_F: np.ndarray = np.asarray(state.vector_F)
        return vector_F

    def write(self) -> None:
        """Write the file unless it already holds this state; remove it if there is no best state."""
        run, path = self._run, self._run.folder.prompt / BEST_PROMPT
        if (vector_F := self.vector_F()) is None:
            with writing(path):
                path.unlink(missing_ok=True)
        elif self._round != self._written:
            full, layers = self._federation.workers[0].full, self._federation.choice.layers
            layout = run.prepared.spec.exchanged(full, layers)
            spec, task = run.prepared.spec, run.prepared.data.task
            save_prompt(path, vector_F, layout, run.config, task, self._round, spec.tuner.constants, spec.start)
            self._written = self._round
