"""When and why the published server step diverges: ``python -m benchmarks.stability [--json FILE]``.

Three checks on federated quadratics (:mod:`benchmarks.quadratics`), where everything can be said in advance:

1. the published step, each of its choices switched back alone, and our step, against FedAvg over a grid of T and eta;
2. the closed threshold of the mean iteration against the growth that is seen;
3. the noise of the control variates, which grows with the rounds a client takes part in, against its closed form.

``docs/method.md`` derives the formulas. Shape suffixes: N clients, F entries, R rounds, m positions in a cohort.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.quadratics import COHORT, ETA_S, PUBLISHED, RECOMMENDED, SCRIPT, Problem, Setting, cohorts, simulate
from server.config import ServerConfig

CLIENTS, ROUNDS, SEEDS = 100, 100, 7
RHO = COHORT / CLIENTS
LAST = 10
"""Rounds at the end over which the excess loss is averaged."""
FEDAVG, INDEPENDENT = "FedAvg", "coupling=independent (aliasing off)"
FORMS: dict[str, dict[str, Any]] = {
    FEDAVG: {"kind": "fedavg"},
    "published": PUBLISHED,
    INDEPENDENT: {**PUBLISHED, "coupling": "independent"},
    "momentum_form=clean": {**PUBLISHED, "momentum_form": "clean"},
    "control_timing=before": {**PUBLISHED, "control_timing": "before"},
    "control_form=displacement": {**PUBLISHED, "control_form": "displacement"},
    "gradient=pseudo": {**PUBLISHED, "gradient": "pseudo"},
    "independent and clean": {**PUBLISHED, "coupling": "independent", "momentum_form": "clean"},
    "control=false": {**PUBLISHED, "control": False},
    "recommended, momentum=0": {**RECOMMENDED, "momentum": 0.0},
    "recommended, momentum=0.5": {**RECOMMENDED, "momentum": 0.5},
}
"""The published step, then with one choice switched, then ours."""
SETTINGS = (
    Setting(2, 0.01),
    Setting(8, 0.01),
    Setting(32, 0.01),
    Setting(8, 0.04),
    Setting(32, 0.04),
    SCRIPT,
    Setting(1000, 0.04),
)


# -- theory ------------------------------------------------------------------------------------------------------------


def amplification(config: ServerConfig, cohort: int = COHORT) -> float:
    """Return m_eff: how often a lasting correction c - c_i counts in the server's point.

    Chaining adds it up (m + 1) / 2 times for the mean point; a velocity that carries it, 1 / (1 - beta) times.
    """
    return float(impulses(config, cohort).mean())


def impulses(config: ServerConfig, cohort: int = COHORT) -> np.ndarray:
    """Return how far the point moves in the end, per eta_s, by the correction of the client in each position [m], times m."""
    if config.momentum_form != "control_in_velocity":
        return np.arange(cohort, 0, -1.0) if config.coupling == "chained" else np.ones(cohort)
    if config.coupling == "independent":
        return np.full(cohort, 1.0 / (1.0 - config.momentum))
    left_m = np.arange(cohort, 0, -1)  # clients from this position to the last
    kept = [config.momentum ** np.arange(left) for left in left_m]
    now_m = np.array([np.sum((left - np.arange(left)) * k) for left, k in zip(left_m, kept, strict=True)])
    velocity_m = np.array([k.sum() for k in kept]) / cohort
    position = np.arange(1, cohort + 1)
    decay = config.momentum**position
    per_velocity = np.sum((cohort - position + 1) * decay) / (1.0 - decay.mean())
    moved_m: np.ndarray = now_m + velocity_m * per_velocity
    return moved_m


def threshold(progress: float, rho: float = RHO) -> float:
    """Return the kappa above which the mean iteration grows, in an entry of which a round covers the share ``progress``."""
    return (1.0 + rho * (1.0 - progress) / progress) / (1.0 - rho)


def mean_matrix(config: ServerConfig, kappa_one: float, progress: float, cohort: int, rho: float) -> np.ndarray:
    """Return the matrix of the mean iteration of (P, delta of the last round, eta_s v, T eta c).

    Clients alike, with as many local steps each; the mean is over cohorts; P counts from the optimum.
    """
    beta, clients = config.momentum, cohort if config.coupling == "chained" else 1
    position = np.arange(1, clients + 1)
    later = (clients - position + 1) / clients
    kept = beta**position
    fed = (1.0 - kept) / (1.0 - beta)
    point, previous, velocity, memory = np.eye(4)
    delta = progress * point
    change = (1.0 - beta) * ETA_S * ((previous - delta) if config.gradient == "difference" else delta)
    scale = kappa_one if config.control_form == "scaffold" else ETA_S
    correction = scale * (1.0 - rho) * (memory - delta) if config.control_timing == "after" else 0.0 * point
    in_velocity = config.momentum_form == "control_in_velocity"
    force = change + correction if in_velocity else change
    moved = (later @ kept) * velocity + (later @ fed) * force + (0.0 if in_velocity else later.sum()) * correction
    next_velocity = kept.mean() * velocity + fed.mean() * force
    return np.stack([point - delta - moved, delta, next_velocity, (1.0 - rho) * memory + rho * delta])


def growth(config: ServerConfig, kappa_one: float, progress: float, cohort: int = COHORT, rho: float = RHO) -> float:
    """Return the factor by which the mean iteration grows in a round in the long run: its spectral radius."""
    return float(np.abs(np.linalg.eigvals(mean_matrix(config, kappa_one, progress, cohort, rho))).max())


def noise_factor(config: ServerConfig, kappa_one: float, visits_N: np.ndarray) -> float:
    """Return the mean of (1 - k kappa)^2 over rounds k and positions: the walk's mean square relative to FedAvg's."""
    return float(np.mean((1.0 - kappa_one * np.multiply.outer(visits_N, impulses(config))) ** 2))


# -- the three checks --------------------------------------------------------------------------------------------------


def _record(case: str, value: float, unit: str, ratio: float, ratio_to: str, runs: int, **more: Any) -> dict[str, Any]:
    row = {"benchmark": "stability", "case": case, "value": value, "unit": unit}
    return {**row, "ratio": ratio, "ratio_to": ratio_to, "runs": runs, **more}


def _final_loss(problem: Problem, path_RF: np.ndarray) -> float:
    return statistics.mean(problem.excess_loss(vector_F) for vector_F in path_RF[-LAST:])


def compare(settings: tuple[Setting, ...] = SETTINGS, seeds: int = SEEDS) -> Iterator[dict[str, Any]]:
    """Check 1: every form's final excess loss against FedAvg's, with the same problem and cohorts for each seed."""
    for setting in settings:
        losses: dict[str, list[float]] = {name: [] for name in FORMS}
        for seed in range(seeds):
            problem = Problem.draw(seed, CLIENTS)
            for name, keys in FORMS.items():
                start_F = np.full(len(problem.optimum_F), 3.0)
                path_RF = simulate(problem, ServerConfig(**keys), setting, seed, start_F, ROUNDS)
                losses[name].append(_final_loss(problem, path_RF))
        for name, values in losses.items():
            ratios = [value / base for value, base in zip(values, losses[FEDAVG], strict=True)]
            yield _record(
                name,
                statistics.median(values),
                "excess loss",
                statistics.median(ratios),
                FEDAVG,
                seeds,
                check="grid",
                steps=setting.steps,
                lr=setting.lr,
                kappa=setting.kappa_one * amplification(ServerConfig(**PUBLISHED)),
                ratio_lowest=min(ratios),
                ratio_highest=max(ratios),
            )


def check_threshold(seeds: int = 20, rounds: int = 150) -> Iterator[dict[str, Any]]:
    """Check 2: growth a round of the root mean square over runs, on clients alike, around the closed threshold."""
    for name in ("published", INDEPENDENT):
        config = ServerConfig(**{**FORMS[name], "lr_decay": 1.0})
        for progress in (0.03, 0.1, 0.3):
            problem = Problem(np.full((CLIENTS, 1), progress), np.zeros((CLIENTS, 1)))
            for share in (0.7, 1.5, 2.0, 3.0):
                kappa_one = share * threshold(progress) / amplification(config)
                setting = Setting(1000, ETA_S / (1000 * kappa_one))
                paths = [simulate(problem, config, setting, seed, np.ones(1), rounds) for seed in range(seeds)]
                exact = 1.0 - (1.0 - progress / setting.steps) ** setting.steps
                yield _record(
                    name,
                    _observed_growth(paths),
                    "factor a round",
                    share,
                    "threshold",
                    seeds,
                    check="threshold",
                    progress=progress,
                    kappa=kappa_one * amplification(config),
                    predicted=growth(config, kappa_one, exact),
                )


def _observed_growth(paths: list[np.ndarray]) -> float:
    """Return the growth a round, from a line through the logarithm over the second half of the rounds."""
    rounds = min(len(path) for path in paths)
    square_R = np.mean([path[:rounds, 0] ** 2 for path in paths], axis=0)[rounds // 2 :]
    return float(np.exp(np.polyfit(np.arange(len(square_R)), 0.5 * np.log(square_R), 1)[0]))


def check_noise(seeds: int = 10, clients: int = 1000, block: int = 100) -> Iterator[dict[str, Any]]:
    """Check 3: random walk of P at the optimum, in entries too slow to be pulled back, in blocks of one round per client.

    A population of 1,000 makes a block much longer than the velocity remembers.
    """
    for name in ("published", INDEPENDENT):
        config = ServerConfig(**{**FORMS[name], "lr_decay": 1.0})
        squares: list[np.ndarray] = []
        rounds: list[np.ndarray] = []
        for seed in range(seeds):
            centre_NF = np.random.default_rng([seed, 3]).normal(size=(clients, 30))
            problem = Problem(np.full(centre_NF.shape, 1e-6), centre_NF - centre_NF.mean(axis=0))
            paths = [
                simulate(problem, chosen, SCRIPT, seed, np.zeros(30), 10 * block)[block // 2 :: block]
                for chosen in (config, ServerConfig(kind="fedavg"))
            ]
            squares.append(np.square(np.diff(paths, axis=1)).mean(axis=2))
            rounds.append(_visits(clients, seed, 10 * block)[block::block])
        walked_2B = np.mean(squares, axis=0)
        for number, (square, base) in enumerate(walked_2B.T):
            counts_N = np.concatenate([counts_BN[number] for counts_BN in rounds]) + 1.0
            yield _record(
                name,
                float(square),
                "mean square of the walk",
                float(square / base),
                FEDAVG,
                seeds,
                check="noise",
                visits=float(counts_N.mean()),
                kappa=SCRIPT.kappa_one * amplification(config),
                predicted=noise_factor(config, SCRIPT.kappa_one, counts_N),
            )


def _visits(clients: int, seed: int, rounds: int) -> np.ndarray:
    """Return how often each client took part before each round, [R, N], in a run with this seed."""
    drawn_RN = np.zeros((rounds, clients))
    for round, order in enumerate(cohorts(clients, seed, rounds - 1)):
        drawn_RN[round + 1, order] = 1.0
    return drawn_RN.cumsum(axis=0)


# -- output ------------------------------------------------------------------------------------------------------------


def _grid_table(rows: list[dict[str, Any]]) -> Table:
    cells = list(dict.fromkeys((row["steps"], row["lr"], row["kappa"]) for row in rows))
    headings = [f"T={steps} η={lr:g}\nκ={kappa:.2g}" for steps, lr, kappa in cells]
    table = Table("server step", *headings, title="final excess loss relative to FedAvg: median (range) over seeds")
    for name in FORMS:
        found = {(row["steps"], row["lr"]): row for row in rows if row["case"] == name}
        table.add_row(name, *(_ratio(found[cell[:2]]) for cell in cells))
    return table


def _ratio(row: dict[str, Any]) -> str:
    if row["ratio"] > 1e6:
        return "> 1e6"
    return f"{row['ratio']:.2g} ({row['ratio_lowest']:.2g} to {row['ratio_highest']:.2g})"


def _check_table(title: str, unit: str, rows: list[dict[str, Any]], *keys: str) -> Table:
    table = Table("server step", *keys, f"{unit}, seen", "predicted", title=title)
    for row in rows:
        seen = row["value"] if row["check"] == "threshold" else row["ratio"]
        table.add_row(row["case"], *(f"{row[key]:.3g}" for key in keys), f"{seen:.3f}", f"{row['predicted']:.3f}")
    return table


def main(
    records_file: Annotated[Path | None, typer.Option("--json", help="Write one line of JSON a figure.")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds of the comparison.")] = SEEDS,
    quick: Annotated[
        bool, typer.Option(help="One setting and few rounds: shows that it runs, proves nothing.")
    ] = False,
) -> None:
    """Run the three checks and print their tables."""
    console = Console(highlight=False, width=190)
    if quick:
        checks = compare((Setting(8, 0.04),), seeds), check_threshold(2, 40), check_noise(1, 100, 10)
    else:
        checks = compare(SETTINGS, seeds), check_threshold(), check_noise()
    grid, growths, noise = (list(rows) for rows in checks)
    console.print(_grid_table(grid))
    console.print(_check_table("growth of the mean", "factor a round", growths, "progress", "ratio", "kappa"))
    console.print(
        _check_table("noise after a client's k-th round, as a multiple of FedAvg's", "ratio", noise, "visits", "kappa")
    )
    if records_file is not None:
        records_file.write_text("".join(json.dumps(row) + "\n" for row in [*grid, *growths, *noise]), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
