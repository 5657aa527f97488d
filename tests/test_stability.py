"""Claims of ``benchmarks.stability`` about the published server step, on the smallest cases."""

import json
from dataclasses import replace

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from benchmarks import stability
from benchmarks.quadratics import BETA, COHORT, ETA_S, PUBLISHED, RECOMMENDED, Problem, Setting, job
from benchmarks.stability import INDEPENDENT, amplification, growth, impulses, threshold
from fedsim.core.messages import CombinedUpdate
from fedsim.methods.control import CHANGE, CONTROL
from server.config import ServerConfig
from server.step import initial_state, step

RHO = 0.1
PUBLISHED_INDEPENDENT = {**PUBLISHED, "coupling": "independent"}


def test_the_forms_are_those_of_the_config():
    published = ServerConfig(kind="fedpeptao_published").model_dump()
    assert ServerConfig(**PUBLISHED).model_dump() == {**published, "kind": "fedpeptao"}
    ours = ServerConfig(kind="fedpeptao")
    assert ServerConfig(**RECOMMENDED, momentum=ours.momentum) == ours


def test_on_a_first_visit_the_step_takes_back_its_share_of_the_progress():
    """The share is eta_s (1 - rho) / (T eta)."""
    config, setting = ServerConfig(**PUBLISHED_INDEPENDENT), Setting(8, 0.04)
    problem, controls_NF = Problem.draw(0), np.zeros((100, 20))
    method = config.method()
    state = initial_state(method, np.full(20, 3.0))
    order = np.arange(COHORT)
    moved_F = state.vector_F - problem.train(order, state.vector_F, setting).mean(axis=0)
    # With the difference of pseudo-gradients at zero, the control variates alone make the step.
    state = replace(state.with_arrays(previous_delta=moved_F), steps=0)
    after = step(method, state, job(problem, config, setting, state, controls_NF, order, 0), RHO)
    left_F = (state.vector_F - after.vector_F) / moved_F
    np.testing.assert_allclose(left_F, 1.0 - ETA_S * (1.0 - RHO) / (8 * 0.04), rtol=1e-12)


def test_after_k_visits_at_one_point_a_client_holds_k_times_its_deviation():
    config, setting = ServerConfig(**PUBLISHED), Setting(8, 0.04)
    problem, controls_NF = Problem.draw(0), np.zeros((100, 20))
    state, everyone = initial_state(config.method(), np.full(20, 3.0)), np.arange(100)
    displacement_NF = (state.vector_F - problem.train(everyone, state.vector_F, setting)) / (8 * 0.04)
    mean_F = displacement_NF.mean(axis=0)
    # c as it is when it has settled: the mean of the displacements.
    state = state.with_arrays(control=mean_F)
    for times in range(1, 6):
        job(problem, config, setting, state, controls_NF, everyone, 0)
        np.testing.assert_allclose(controls_NF, times * (displacement_NF - mean_F), atol=1e-10)


@pytest.mark.parametrize("cohort", [1, 2, 10, 30])
def test_how_often_a_correction_counts(cohort):
    published = ServerConfig(**PUBLISHED)
    assert amplification(published, cohort) == pytest.approx((cohort + 1) / 2 / (1 - BETA))
    assert amplification(published.model_copy(update={"momentum_form": "clean"}), cohort) == (cohort + 1) / 2
    assert amplification(ServerConfig(**PUBLISHED_INDEPENDENT), cohort) == pytest.approx(1 / (1 - BETA))


@pytest.mark.parametrize("position", [0, 4, 9])
@pytest.mark.parametrize("keys", [PUBLISHED, PUBLISHED_INDEPENDENT, {**PUBLISHED, "momentum_form": "clean"}])
def test_how_far_one_correction_moves_the_point_in_the_end(position, keys):
    """Played through the server's own step: one client's correction in one round, none after."""
    config = ServerConfig(**{**keys, "lr_decay": 1.0})
    method = config.method()
    state = initial_state(method, np.zeros(1)).with_arrays(previous_delta=np.zeros(1))
    moved = 0.0
    for round in range(400):
        control_kF = np.zeros((COHORT, 1))
        control_kF[position] = -1.0 if round == 0 else 0.0
        clients = tuple(range(COHORT))
        sums = {CHANGE: np.zeros(1), CONTROL: 10.0 * control_kF.mean(axis=0)}
        # The clients stay where the server put them, and c stays zero.
        combined = CombinedUpdate(
            round, clients, (), 10.0, 10, state.vector_F, sums, {CONTROL: control_kF}, np.ones(COHORT)
        )
        state = step(method, state, combined, RHO)
        moved = float(state.vector_F[0])
    assert -moved / ETA_S == pytest.approx(impulses(config)[position] / COHORT, rel=1e-9)


@pytest.mark.parametrize("progress", [0.001, 0.01, 0.03, 0.1, 0.3])
def test_the_closed_threshold_is_where_the_mean_of_the_published_step_begins_to_grow(progress):
    config = ServerConfig(**PUBLISHED)
    kappa_one = threshold(progress) / amplification(config)
    assert growth(config, 0.9 * kappa_one, progress) < 1.0 < growth(config, 1.1 * kappa_one, progress)


def test_without_velocity_and_chain_the_threshold_is_exact():
    config = ServerConfig(**{**PUBLISHED_INDEPENDENT, "momentum_form": "clean", "momentum": 0.0})
    for progress in (0.05, 0.2, 0.8):
        # The difference of pseudo-gradients, times eta_s, is what the closed form leaves out: 5 % of delta at most.
        kappa = threshold(progress)
        assert growth(config, 0.94 * kappa, progress) < 1.0 < growth(config, 1.06 * kappa, progress)


def test_the_command_prints_tables_and_writes_records(tmp_path):
    app = typer.Typer()
    app.command()(stability.main)
    result = CliRunner().invoke(app, ["--json", str(tmp_path / "records.jsonl"), "--seeds", "2", "--quick"])
    assert result.exit_code == 0, result.output
    assert "published" in result.output and "κ=8.6" in result.output
    rows = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    fields = {"benchmark", "case", "value", "unit", "ratio", "ratio_to", "runs"}
    assert all(fields <= set(row) for row in rows)
    assert {row["check"] for row in rows} == {"grid", "threshold", "noise"}
    grid = {row["case"]: row["ratio"] for row in rows if row["check"] == "grid"}
    assert grid["published"] > 1e6 > grid[INDEPENDENT] > 2.0
    assert grid["recommended, momentum=0"] < 0.5 < grid["control=false"] < 1.0
