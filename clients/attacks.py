"""Simulated attackers: clients that train on false labels, or send something else than what they have trained.

What an attacker keeps follows from what it sends: its control variate is that of the falsified vector. It attacks whenever it
trains, in the warm-up of ``layers.share_rule`` too; layer scores, spectra and evaluations are those of an honest client.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from clients.config import AttackConfig
from clients.training.local_job import LocalJob, Parts, TrainingResult
from fedsim.core import seeds
from fedsim.core.shards import Shards
from fedsim.core.tokens import TokenTable

if TYPE_CHECKING:
    from clients.spec import WorkerSpec, WorkSettings


def attackers(config: AttackConfig, num_clients: int, seed: int) -> tuple[int, ...]:
    """Return the ids of the attackers among all registered clients, ascending; a number of them is drawn with the seed."""
    if config.kind == "none" or config.clients is None:
        return ()
    if isinstance(config.clients, tuple):
        return tuple(sorted(config.clients))
    rng = seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, "attackers")
    return tuple(sorted(int(client) for client in rng.choice(num_clients, config.clients, replace=False)))


def with_false_labels(spec: WorkerSpec) -> WorkerSpec:
    """Return the specification to train by: with ``label_flip`` the attackers' training examples have flipped labels."""
    settings = spec.settings
    if settings.attack.kind != "label_flip" or not settings.attackers:
        return spec
    return replace(spec, train=flipped(spec.train, spec.shards, settings.attackers, spec.num_classes))


def flipped(table: TokenTable, shards: Shards, clients: tuple[int, ...], num_classes: int) -> TokenTable:
    """Return the table with class C - 1 - y for class y where ``clients`` train on the example; no two share an example."""
    labels_N = table.labels_N.copy()
    for client in clients:
        own_N = shards.train(client)
        labels_N[own_N] = num_classes - 1 - labels_N[own_N]
    return replace(table, labels_N=labels_N)


def falsified(
    settings: WorkSettings, parts: Parts, round: int, job: LocalJob, result: TrainingResult
) -> TrainingResult:
    """Return the result that a client works on with: its own, or what an attacker makes of it.

    ``sign_flip``: P_t - scale (P_i - P_t) for P_i; ``noise``: P_i + e, e of N(0, std^2) in every exchanged entry. With the
    preconditioner correction the steps S_i are those that would have led there: -scale S_i, and S_i - e.
    """
    attack = settings.attack
    if job.client not in settings.attackers or attack.kind not in ("sign_flip", "noise"):
        return result
    exchanged_F, dtype = parts.exchanged_F, result.vector_A.dtype
    vector_A = result.vector_A.copy()
    stepped_A = None if result.stepped_A is None else result.stepped_A.copy()
    if attack.kind == "sign_flip":
        scale = dtype.type(attack.scale)
        start_F = job.start_A[exchanged_F]
        vector_A[exchanged_F] = start_F - scale * (vector_A[exchanged_F] - start_F)
        if stepped_A is not None:
            stepped_A[exchanged_F] *= -scale
    else:
        rng = seeds.stream(settings.seed, round, job.client, "attack")
        noise_F = (attack.std * rng.standard_normal(len(exchanged_F))).astype(dtype)
        vector_A[exchanged_F] += noise_F
        if stepped_A is not None:
            stepped_A[exchanged_F] -= noise_F
    return replace(result, vector_A=vector_A, stepped_A=stepped_A)
