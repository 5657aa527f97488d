"""Server rounds of FedPepTAO on whole prefixes, as the published code runs them or with its aliasing off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray


@dataclass
class Method:
    """Settings of the published code, and whether its dictionaries are shared between clients."""

    layers: Sequence[int]
    personalised: bool
    aliased: bool
    sample_rate: float
    lr: float
    server_lr: float
    beta: float = 0.9

    def mask(self, prefix: Array) -> Array:
        """Return 1 for entries of exchanged layers, else 0."""
        mask = np.zeros(prefix.shape)
        mask[:, list(self.layers)] = 1.0
        return mask


@dataclass
class Federation:
    """Everything that lives from round to round."""

    method: Method
    prefix: Array
    server_lr: float
    velocity: Array
    control: Array
    controls: list[Array]
    locals: list[Array]
    previous: Array | None = None
    record: dict[str, list[Array]] = field(default_factory=dict)

    @classmethod
    def start(cls, method: Method, prefix: Array, num_clients: int) -> Federation:
        zeros = np.zeros(prefix.shape)
        copies = [[zeros.copy() for _ in range(num_clients)], [prefix.copy() for _ in range(num_clients)]]
        return cls(method, prefix.copy(), method.server_lr, zeros.copy(), zeros.copy(), *copies)

    def start_of(self, client: int) -> Array:
        """Return the prefix with which a client trains, and is evaluated."""
        if not self.method.personalised:
            return self.prefix.copy()
        mask = self.method.mask(self.prefix)
        return mask * self.prefix + (1.0 - mask) * self.locals[client]

    def round(
        self, clients: Sequence[int], trained: Sequence[Array], sizes: Sequence[int], steps: Sequence[int]
    ) -> None:
        """Take over what the cohort trained, in the order in which it was drawn, and step."""
        method, start = self.method, self.prefix
        for client, prefix in zip(clients, trained, strict=True):
            self.locals[client] = prefix.copy()
        mean = weighted(trained, sizes)
        delta = start - mean
        after = [
            self.controls[client] - self.control + (start - prefix) / (count * method.lr)
            for client, prefix, count in zip(clients, trained, steps, strict=True)
        ]
        moved = [steps[k] * (after[k] - self.controls[client]) for k, client in enumerate(clients)]
        self.control = self.control + method.sample_rate * sum(moved) / sum(steps)
        for client, control in zip(clients, after, strict=True):
            self.controls[client] = control
        mask = method.mask(start)
        base = mask * mean + (1.0 - mask) * trained[-1] if method.personalised else mean
        self._keep(global_before=start, aggregated=mean, delta=delta)
        if self.previous is None:
            self.prefix = mean
            self._keep_step(None, None, [np.full(start.shape, np.nan)] * len(clients), None)
        else:
            self._server_step(self.previous - delta, base, after, sizes)
        self.previous = delta
        self._keep(clients_c=np.stack(self.controls), global_c=self.control, server_lr=np.array(self.server_lr))
        self._keep(global_after=self.prefix)

    def _server_step(self, gradient: Array, base: Array, after: list[Array], sizes: Sequence[int]) -> None:
        method = self.method
        self.server_lr = max(0.99 * self.server_lr, 1e-4)
        mask = method.mask(base)
        point, velocity, points, velocities = base, self.velocity, [], []
        for control in after:
            from_velocity, from_point = (velocity, point) if method.aliased else (self.velocity, base)
            velocity = method.beta * from_velocity + (1.0 - method.beta) * gradient + self.control - control
            point = from_point - self.server_lr * velocity
            points.append(point)
            velocities.append(velocity)
        self.velocity = weighted(velocities, sizes)
        average = weighted(points, sizes)
        self.prefix = mask * average + (1.0 - mask) * points[-1]
        self._keep_step(gradient, average, points, velocities)

    def _keep_step(
        self, gradient: Array | None, average: Array | None, points: list[Array], velocities: list[Array] | None
    ) -> None:
        nothing = np.full(self.prefix.shape, np.nan)
        self._keep(w_each=np.stack(points), v_each=np.stack(velocities or points))
        self._keep(delta_g=nothing if gradient is None else gradient, w_mean=nothing if average is None else average)
        self._keep(global_v=self.velocity)

    def _keep(self, **arrays: Array) -> None:
        for name, array in arrays.items():
            self.record.setdefault(name, []).append(np.array(array))


def weighted(arrays: Sequence[Array], weights: Sequence[int]) -> Array:
    """Return the weighted mean."""
    return sum(weight * array for weight, array in zip(weights, arrays, strict=True)) / sum(weights)
