"""A client correction with state: each client is pulled to where it ended its own last round.

    fedsim run configs/quickstart.yaml --load examples/my_correction.py \
        server.kind=fedavg client.correction=my_correction params.my_correction.mu=0.1

It is the proximal term of FedProx (Li et al. 2020, arXiv 1812.06127), mu (p - anchor) added to the gradient, with the client's
own last vector for the anchor instead of the global one. A client that has not trained yet has no anchor.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import PositiveFloat

import fedsim
from fedsim.core.correction import ClientRound, Correction, Local
from fedsim.core.schema import Schema


@fedsim.register("correction", "my_correction")
class PullToOwnLast(Correction):
    """Adds mu (p - last_i) to the gradient on the exchanged entries."""

    class Config(Schema):
        """Keys in section ``params.my_correction``."""

        mu: PositiveFloat = 0.1
        """Strength of the pull."""

    kept = ("last",)  # stays with the client between rounds, in checkpoints too

    def begin(self, client: ClientRound) -> Mapping[str, np.ndarray | float]:
        """Return what the steps need: the anchor, and how strongly to pull."""
        return {"anchor": client.kept("last"), "pull": self.params.mu if client.has_kept("last") else 0.0}

    def gradient(self, local: Local, gradient_CA: Any) -> Any:
        """Add the pull; each row is a client of its own."""
        return local.add_to(gradient_CA, local.begun("pull") * (local.vector_CF - local.begun("anchor")))

    def finish(self, client: ClientRound) -> Mapping[str, np.ndarray]:
        """Return what the client keeps."""
        return {"last": client.trained_F}
