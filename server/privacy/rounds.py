"""What a private server keeps from round to round: the clipping norm."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedsim.core.clipping import Clipping
from fedsim.core.errors import CheckpointError
from fedsim.core.messages import CombinedUpdate
from server.privacy.mechanism import Mechanism

_NORM = "clip_norm"


class PrivateRounds:
    """Applies a mechanism to round after round.

    Attributes
    ----------
    clip_norm
        Clipping norm of the next round.
    """

    def __init__(self, mechanism: Mechanism) -> None:
        self._mechanism = mechanism
        self.clip_norm = mechanism.clip_norm

    @property
    def clipping(self) -> Clipping:
        """What the next round's clients are told."""
        return self._mechanism.told(self.clip_norm)

    def combined(self, round: int, combined: CombinedUpdate, start_F: np.ndarray) -> CombinedUpdate:
        """Return a round's sums with the private mean, and adapt the clipping norm."""
        made = self._mechanism.private(round, combined, start_F, self.clip_norm)
        self.clip_norm = self._mechanism.next_norm(round, combined, self.clip_norm)
        return made

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the state as arrays, for a checkpoint."""
        return {_NORM: np.asarray(self.clip_norm)}

    def load(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Load the state of a checkpoint, and return the other arrays.

        Raises
        ------
        CheckpointError
            If the checkpoint has none.
        """
        rest = dict(arrays)
        if _NORM not in rest:
            raise CheckpointError(
                f"the server state of the checkpoint lacks {_NORM}; it was written by another version of fedsim"
            )
        self.clip_norm = float(rest.pop(_NORM))
        return rest
