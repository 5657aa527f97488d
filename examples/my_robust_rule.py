"""A robust rule: the geometric median of the clients, as in RFA (Pillutla et al. 2022, arXiv 1912.13445).

    fedsim run configs/quickstart.yaml --load examples/my_robust_rule.py \
        server.kind=fedavg server.aggregation=my_robust_rule params.my_robust_rule.iterations=8 \
        attack.kind=sign_flip attack.clients=20

The point with the least weighted sum of distances to the clients, by Weiszfeld's algorithm: a mean in which each client weighs
the less the further away it was from the mean before.
"""

import numpy as np
from pydantic import PositiveInt

import fedsim
from fedsim.core.correction import Rule
from fedsim.core.robust import RobustRule
from fedsim.core.schema import Schema

NEAREST = 1e-6
"""Smallest distance that counts, so that a client on the spot does not weigh infinitely."""


@fedsim.register("robust_rule", "my_robust_rule")
class GeometricMedian(RobustRule):
    """Finds the clients' shares in their geometric median."""

    class Config(Schema):
        """Keys in section ``params.my_robust_rule``."""

        iterations: PositiveInt = 8
        """Steps of Weiszfeld's algorithm."""

    def fit(self, vector_kF: np.ndarray, weights_k: np.ndarray, vector_F: np.ndarray) -> Rule:
        """Return the mean in those shares, for whatever else the clients send too."""
        share_k = weights_k / weights_k.sum()
        for _ in range(self.params.iterations):
            middle_F = mean(vector_kF, share_k, vector_F)
            distance_k = np.array([np.sqrt(np.square(own_F - middle_F).sum()) for own_F in vector_kF])
            share_k = weights_k / np.maximum(distance_k, NEAREST)
            share_k = share_k / share_k.sum()
        return lambda values_kF, origin_F: mean(values_kF, share_k, origin_F)


def mean(values_kF: np.ndarray, share_k: np.ndarray, origin_F: np.ndarray) -> np.ndarray:
    """Return the origin plus the changes from it, added one by one in float64, in the order drawn."""
    result_F = origin_F.astype(np.float64)
    for value_F, share in zip(values_kF, share_k, strict=True):
        result_F += share * (value_F - origin_F)
    return result_F
