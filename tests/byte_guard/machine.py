"""The process that does the runs, started so that its last bits are not those of the CPU at hand.

Libraries choose their kernels by what the CPU has. Kernels with AVX2, FMA or AVX-512 add in another order and round less often
than those with SSE2, so that the same code gives other last bits on another machine. Each variable below takes that choice from
one library, down to what every x86-64 CPU has. They are read when a library is loaded: hence a process of its own.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]

PINNED: dict[str, str] = {
    # torch's own loops (sums, softmax, layer norm, random numbers): the build without AVX2 and AVX-512.
    "ATEN_CPU_CAPABILITY": "default",
    # torch's matrix products and eigenvalues are MKL's; COMPATIBLE is its branch that is promised to be the same on all CPUs.
    "MKL_CBWR": "COMPATIBLE",
    # torch's GELU is oneDNN's, which makes machine code for the CPU at hand; it has one name in newer builds, one in older.
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "DNNL_MAX_CPU_ISA": "SSE41",
    # One thread each for torch, MKL and NumPy's OpenBLAS: sums are cut by the number of threads.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # NumPy's matrix products and eigenvalues (layer scores, spectra): OpenBLAS's kernels for SSE4.2.
    "OPENBLAS_CORETYPE": "Nehalem",
    # The C library's exp, log, sin and pow have variants with FMA, which round otherwise: random draws, and torch's float64.
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-AVX512F,-FMA,-FMA4",
    # Not for bits: nothing is to be asked of the hub, and no threads are started for a few texts.
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # What an earlier run has kept would hide a change in what computes it.
    "FEDSIM_CACHE": "off",
}
"""What is set, beside NPY_DISABLE_CPU_FEATURES: all loops that NumPy was built with beyond its baseline, since its exp, log and
pow differ by them. What is left differs between Intel's and AMD's CPUs, nothing pins it, and so each has its table."""


def environment() -> dict[str, str]:
    """Return the environment of the process."""
    simd = np.show_config(mode="dicts").get("SIMD Extensions", {})
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    return {**os.environ, **PINNED, "NPY_DISABLE_CPU_FEATURES": " ".join(simd.get("found", ())), "PYTHONPATH": paths}


def made_with() -> dict[str, str]:
    """Return what the digests depend on beside the code: libraries round, draw and add in their own ways."""
    from importlib.metadata import version

    return {
        "machine": platform.machine(),
        "cpu": _cpu(),
        "libc": " ".join(platform.libc_ver()),
        **{package: version(package) for package in ("numpy", "torch", "transformers")},
    }


def _cpu() -> str:
    """Return whose CPU it is; of Intel's which one, too: AMD's give the same bits, of Intel's only one has been tried."""
    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    except OSError:
        return ""
    said = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    vendor = said.get("vendor_id", "")
    return vendor if vendor == "AuthenticAMD" else f"{vendor} {said.get('cpu family')}/{said.get('model')}"


def run_all(names: Sequence[str] = (), env: dict[str, str] | None = None, cwd: Path | None = None) -> dict[str, str]:
    """Do the runs in one process; return a digest for each, or its error.

    Parameters
    ----------
    names
        Cases, those that others start from included; all if empty.
    env
        Another environment, to see what it is that a variable does.
    cwd
        Where the process starts; in a folder of its own if not given.
    """
    with tempfile.TemporaryDirectory(prefix="byte-guard-") as folder:
        answer = Path(folder) / "digests.json"
        done = subprocess.run(
            [sys.executable, "-m", "byte_guard.work", str(answer), *names],
            env=environment() if env is None else env,
            cwd=cwd or folder,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"the process that does the runs ended with {done.returncode}:\n{done.stderr[-4000:]}")
        return json.loads(answer.read_text())
