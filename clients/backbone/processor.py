"""What of a worker's machine decides the last bits of its results, in words."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import torch

_PREFIXES = ("ATEN_", "CUBLAS_", "DNNL_", "GLIBC_", "MKL_", "NPY_", "NVIDIA_", "OMP_", "ONEDNN_", "OPENBLAS_", "TORCH_")
"""Environment variables with which libraries let their kernels be chosen."""


def describe_processor(device: torch.device) -> str:
    """Return processor, instructions, cores and settings of this process: with the same ones kernels give the same bits."""
    name, flags = _cpu()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    instructions = hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:8]
    parts = [name, f"{cores} cores", torch.backends.cpu.get_cpu_capability(), f"instructions {instructions}"]
    parts.append(" ".join(platform.libc_ver()))
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        parts += [f"{properties.name} {properties.major}.{properties.minor}", f"CUDA {torch.version.cuda}"]
        parts.append(f"cuDNN {torch.backends.cudnn.version()}")
    settings = sorted(f"{key}={value}" for key, value in os.environ.items() if key.startswith(_PREFIXES))
    return ", ".join([*parts, *settings])


def _cpu() -> tuple[str, str]:
    """Return the processor's name and its instruction sets, as far as the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    values = dict(line.replace("\t", "").split(":", 1) for line in reversed(text.splitlines()) if ":" in line)
    name = values.get("model name", "").strip() or platform.processor() or platform.machine()
    return name, values.get("flags", values.get("Features", ""))
