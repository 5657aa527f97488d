import subprocess
import sys

from support import ROOT

LARGE = 100 * 2**20
CODE = f"""
from fedsim.core.memory import peak_memory_bytes
before = peak_memory_bytes()
block = bytearray(b"x") * {LARGE}
del block
print(before, peak_memory_bytes())
"""


def test_the_peak_counts_what_is_gone_again_and_nothing_of_the_process_that_started_this_one():
    ballast = bytearray(b"x") * (2 * LARGE)
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 0 < before < LARGE < len(ballast)
    assert 0.95 * LARGE < after - before < 1.2 * LARGE
