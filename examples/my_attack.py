"""An attack: boosted updates, the model replacement of Bagdasaryan et al. 2020 (arXiv 1807.00459).

    fedsim run configs/quickstart.yaml --load examples/my_attack.py \
        attack.kind=my_attack attack.clients=10 params.my_attack.scale=10

An attacker trains as all others do, and sends its change many times as long, so that it outweighs the others in the mean.
"""

from dataclasses import replace

import numpy as np
from pydantic import PositiveFloat

import fedsim
from fedsim.core.attack import Attack, Message
from fedsim.core.schema import Schema


@fedsim.register("attack", "my_attack")
class Boost(Attack):
    """P_t + scale (P_i - P_t) for P_i."""

    class Config(Schema):
        """Keys in section ``params.my_attack``."""

        scale: PositiveFloat = 10.0
        """Length of what is sent, in lengths of the attacker's own change."""

    def send(self, message: Message, rng: np.random.Generator) -> Message:
        """Return the boosted message; what its steps took away is as many times as long, so that nothing gives it away."""
        scale, start_F = self.params.scale, message.start_F
        return replace(
            message,
            vector_F=start_F + scale * (message.vector_F - start_F),
            displacements={name: scale * moved_F for name, moved_F in message.displacements.items()},
        )
