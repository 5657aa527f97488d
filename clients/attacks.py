"""Simulated attackers: clients that train on false labels, or send falsified results.

An attacker attacks whenever it trains, including the warm-up of ``layers.share_rule``; its layer scores, spectra and
evaluations are honest.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.config import AttackConfig
from fedsim.core import seeds
from fedsim.core.attack import ATTACKS, Attack, Message
from fedsim.core.errors import PluginError
from fedsim.core.method import Correction
from fedsim.core.plugin_source import blaming

if TYPE_CHECKING:
    from clients.spec import WorkerSpec
    from clients.training.local_job import LocalJob, Parts, TrainingResult


@ATTACKS.register("label_flip")
class LabelFlip(Attack):
    """Attackers train on class C - 1 - y for class y of C."""

    def labels(self, labels_N: np.ndarray, num_classes: int) -> np.ndarray:
        """Return the flipped classes."""
        return num_classes - 1 - labels_N


@ATTACKS.register("sign_flip")
class SignFlip(Attack):
    """Sends P_t - scale (P_i - P_t) instead of P_i, and the matching steps -scale S_i instead of S_i.

    Parameters
    ----------
    scale
        Length of the sent change, relative to the attacker's own.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale

    @classmethod
    def of(cls, attack: Any, params: Any = None) -> Attack:
        """Create the attack from ``attack.scale``."""
        return cls(attack.scale)

    def send(self, message: Message, rng: np.random.Generator) -> Message:
        """Reverse and scale the change."""
        start_F, scale = message.start_F, message.vector_F.dtype.type(self.scale)
        vector_F = start_F - scale * (message.vector_F - start_F)
        turned = {name: stepped_F * -scale for name, stepped_F in message.displacements.items()}
        return replace(message, vector_F=vector_F, displacements=turned)


@ATTACKS.register("noise")
class Noise(Attack):
    """Sends P_i + e instead of P_i and S_i - e instead of S_i, with e drawn from N(0, std^2) in every exchanged entry.

    Parameters
    ----------
    std
        In the units of the prompt's entries.
    """

    def __init__(self, std: float) -> None:
        self.std = std

    @classmethod
    def of(cls, attack: Any, params: Any = None) -> Attack:
        """Create the attack from ``attack.std``."""
        return cls(attack.std)

    def send(self, message: Message, rng: np.random.Generator) -> Message:
        """Add noise to the vector and the matching change to the steps."""
        noise_F = (self.std * rng.standard_normal(len(message.vector_F))).astype(message.vector_F.dtype)
        away = {name: stepped_F - noise_F for name, stepped_F in message.displacements.items()}
        return replace(message, vector_F=message.vector_F + noise_F, displacements=away)


def attackers(config: AttackConfig, num_clients: int, seed: int) -> tuple[int, ...]:
    """Return the attackers' ids among all registered clients, ascending; drawn with the seed if only a number is given."""
    if config.kind == "none" or config.clients is None:
        return ()
    if isinstance(config.clients, tuple):
        return tuple(sorted(config.clients))
    rng = seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, "attackers")
    return tuple(sorted(int(client) for client in rng.choice(num_clients, config.clients, replace=False)))


def with_false_labels(spec: WorkerSpec) -> WorkerSpec:
    """Return the specification with the attackers' labels replaced. Safe in one table: no two clients share an example."""
    attack = spec.training.attack
    if attack is None or type(attack).labels is Attack.labels or not spec.training.attackers:
        return spec
    labels_N = spec.train.labels_N.copy()
    for client in spec.training.attackers:
        own_N = spec.shards.train(client)
        with blaming():
            labels_N[own_N] = attack.labels(labels_N[own_N], spec.num_classes)
    return replace(spec, train=replace(spec.train, labels_N=labels_N))


def falsified(
    attack: Attack,
    corrections: tuple[Correction, ...],
    parts: Parts,
    rng: np.random.Generator,
    job: LocalJob,
    result: TrainingResult,
) -> TrainingResult:
    """Return an attacker's result, falsified by its attack."""
    exchanged_F = parts.exchanged_F
    names = [name for correction in corrections for name in correction.displacements]
    own = Message(
        job.start_A[exchanged_F],
        result.vector_A[exchanged_F],
        {name: result.tallies[name][exchanged_F] for name in names},
    )
    sent = attack.send(own, rng)
    if not isinstance(sent, Message) or sent.vector_F.shape != own.vector_F.shape:
        raise PluginError(f"the attack {type(attack).__name__} must send a Message with {len(own.vector_F)} entries")
    if sent is own:
        return result

    def put(array_A: np.ndarray, sent_F: np.ndarray) -> np.ndarray:
        made_A = array_A.copy()
        made_A[exchanged_F] = sent_F
        return made_A

    tallies = {name: put(result.tallies[name], sent.displacements[name]) for name in names}
    return replace(result, vector_A=put(result.vector_A, sent.vector_F), tallies={**result.tallies, **tallies})
