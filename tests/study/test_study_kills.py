"""A study that is killed again and again ends with the table of one that was left alone."""

import os
import random
import subprocess
import sys

import pytest
from support import ROOT
from test_compare import figures, prompts, silent, written

import fedsim

KILLS = 10


@pytest.mark.wide
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_a_study_killed_at_random_moments_gives_the_same_table(tmp_path, executor):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = fedsim.compare(
        written(tmp_path / "whole", executor="local"), output=tmp_path / "whole/out", console=silent()
    )
    path = written(tmp_path / "killed", executor=executor)
    command = [sys.executable, "-m", "fedsim", "compare", str(path), "--output", str(tmp_path / "killed/out")]
    draw, killed = random.Random(0), 0
    while killed < KILLS:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True
        )
        try:
            process.wait(draw.uniform(1, 15))
            break  # finished between two kills
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # with its actors
            process.wait()
            killed += 1
    again = fedsim.compare(path, ["executor=local"], output=tmp_path / "killed/out", console=silent())
    assert killed >= 3
    assert not again.failed
    assert figures(again) == figures(whole)
    assert prompts(tmp_path / "killed/out/cells") == prompts(tmp_path / "whole/out/cells")
