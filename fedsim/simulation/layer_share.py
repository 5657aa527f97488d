"""Share of layers to exchange, estimated from the clients' Hessian spectra after a warm-up with prompts in all layers.

Follows the published programs: some rounds of plain FedAvg over all layers, then one spectrum per client at the last global
prompt, then the mean of the clients' shares. As in the published separate script, the warmed-up prompt is discarded and the
run begins from the initial prompt. The cost of the estimate is recorded, because every choice incurs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from clients.tuners.initial import InitialVector
from fedsim.configuration.schema import Config
from fedsim.core import seeds
from fedsim.core.layout import VectorLayout
from fedsim.core.messages import ClientReport, ClientState, SpectrumReport
from fedsim.core.method import plain
from fedsim.executors.base import Executor, Handle
from fedsim.simulation.client_failures import usable
from fedsim.simulation.open_round import usable_reports
from fedsim.simulation.round import Draw, Round
from server.aggregation import population_weight
from server.config import DelayConfig
from server.selection import combine_shares


@dataclass(frozen=True)
class ShareCost:
    """Cost of an estimate of the share, on top of the run itself."""

    warmup_rounds: int
    client_visits: int
    """Local trainings of a client in the warm-up."""
    client_steps: int
    """Local steps in these trainings."""
    spectra: int
    """Clients whose spectrum was computed."""
    hessian_vector_products: int
    bytes_down: int
    """Bytes that real devices would have received: all prompts and the head, for each training and each spectrum."""
    bytes_up: int
    """Bytes that real devices would have sent in local training; see :mod:`fedsim.core.traffic`. (A share is one number.)"""
    seconds_warmup: float
    seconds_spectra: float


@dataclass(frozen=True)
class ShareEstimate:
    """Estimated share of the layers, with the clients' reports that it is based on."""

    rule: str
    weighting: str
    share: float
    """In [0, 1]."""
    reports: tuple[SpectrumReport, ...]
    """One per client, by ascending id."""
    cost: ShareCost


def estimate_share(
    config: Config,
    executor: Executor,
    full: VectorLayout,
    sizes_N: np.ndarray,
    phase: Callable[[str], None],
    initial: InitialVector,
    note: Callable[[str], None] = lambda text: None,
) -> ShareEstimate:
    """Warm up, compute the clients' spectra, and combine their shares; for ``layers.share_rule`` density and eigengap.

    The server runs plain FedAvg (with ``server.weighting`` and ``server.aggregation``); devices train as set in ``client``.
    Each local training begins with a fresh client state and keeps nothing, neither moments nor control variates.

    Parameters
    ----------
    executor
        Started executor; the server started on it here is replaced when the run begins.
    full
        Layout with a prompt in every layer.
    sizes_N
        Training examples of each client.
    phase
        Called with the current phase, for the progress display.
    initial
        Initial parameters of a layout, at which the warm-up starts.
    note
        Called with warnings about clients that failed and were dropped.

    Raises
    ------
    ClientError
        If a client fails in training or in computing its spectrum.
    """
    settings = config.layers.spectrum
    started = time.monotonic()
    state, last, trained_reports = _warm_up(config, executor, full, sizes_N, phase, initial, note)
    warm = time.monotonic()
    clients = _clients(config, sizes_N, last)
    phase(f"computing the Hessian spectra of {len(clients)} clients")
    spectra = executor.spectrum(state, [(client,) for client in clients])
    reports = usable(spectra, "to estimate its share of the layers", config.client.on_failure, note)
    share = combine_shares(
        [report.share for report in reports], [report.num_examples for report in reports], settings.weighting
    )
    ok = usable_reports(trained_reports)
    vector_bytes = np.dtype(config.model.exchange_dtype).itemsize * full.size
    received = [report for report in spectra if report.failure is None or report.failure.kind == "error"]
    cost = ShareCost(
        warmup_rounds=settings.warmup_rounds,
        client_visits=len(ok),
        client_steps=sum(report.num_steps for report in ok),
        spectra=len(reports),
        hessian_vector_products=sum(report.products for report in reports),
        bytes_down=sum(report.bytes_down for report in trained_reports) + vector_bytes * len(received),
        bytes_up=sum(report.bytes_up for report in trained_reports),
        seconds_warmup=warm - started,
        seconds_spectra=time.monotonic() - warm,
    )
    return ShareEstimate(config.layers.share_rule, settings.weighting, share, tuple(reports), cost)


def _warm_up(
    config: Config,
    executor: Executor,
    full: VectorLayout,
    sizes_N: np.ndarray,
    phase: Callable[[str], None],
    initial: InitialVector,
    note: Callable[[str], None],
) -> tuple[Handle, tuple[int, ...], list[ClientReport]]:
    """Return the last global state, the last cohort in the order drawn, and all client reports, including failed ones."""
    rounds = config.layers.spectrum.warmup_rounds
    vector_F = initial(full)
    vector_F = vector_F.astype(config.model.exchange_dtype)
    everybody: dict[str, Any] = {"dropout": 0.0, "delay": DelayConfig()}
    if config.sampling.kind in ("tiers", "oort", "power_of_choice"):  # of speeds and losses the warm-up knows nothing
        everybody["kind"] = "uniform"
    sample_rate = config.sampling.clients_per_round / config.partition.population
    weight = population_weight(config.server.weighting, sizes_N)
    method = plain(config.method.corrections)
    executor.server.start(method, vector_F, full.layers, sample_rate, weight, config.rule)
    draw = Draw.of(config.model_copy(update={"sampling": config.sampling.model_copy(update=everybody)}), sizes_N)
    order: tuple[int, ...] = ()
    trained_reports: list[ClientReport] = []
    for number in range(rounds):
        phase(f"warm-up round {number + 1} of {rounds}, all layers trained")
        round = Round(number, draw, executor)
        order = round.plan.clients
        for _ in round.train(executor.server.global_state(), {client: ClientState(client) for client in order}):
            pass
        reports = [report for group in round.trained() for report in group.reports]
        usable(reports, f"in warm-up round {number + 1}", config.client.on_failure, note)
        trained_reports += reports
        round.step()
    return executor.server.global_state(), order, trained_reports


def _clients(config: Config, sizes_N: np.ndarray, last: tuple[int, ...]) -> list[int]:
    able, wanted = np.flatnonzero(sizes_N > 0), config.layers.spectrum.clients
    if wanted is None:
        return sorted(last)
    rng = seeds.stream(config.seed, seeds.NO_ROUND, seeds.NO_CLIENT, "spectrum")
    return sorted(int(client) for client in rng.choice(able, min(wanted, len(able)), replace=False))
