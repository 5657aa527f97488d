"""Which device a worker computes on, how numbers get there, and how several processes share one."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor

from clients.budget import CONTEXT_BYTES
from fedsim.core.errors import ResourceError


def resolve_device(asked: str, *, gpu_granted: bool) -> str:
    """Return ``cpu`` or ``cuda``.

    Parameters
    ----------
    asked
        ``model.device`` of the config: auto, cpu or cuda.
    gpu_granted
        Whether this process was given a share of a GPU. A process without one must not use a GPU it happens to see:
        recent Ray shows all of a node's GPUs to actors that reserved none.

    Raises
    ------
    ResourceError
        If cuda was asked for and this process has none.
    """
    usable = gpu_granted and torch.cuda.is_available()
    if asked == "cuda" and not usable:
        reason = "torch sees no GPU here" if gpu_granted else "the worker has no share of a GPU"
        raise ResourceError(
            f"model.device is cuda, but {reason}; set ray.num_gpus_per_actor to 1/n, or model.device=cpu"
        )
    return "cuda" if usable and asked != "cpu" else "cpu"


def to_device(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Return numbers of this process's memory on a device.

    On a CPU they are where they should be, and nothing is copied. On their way to a GPU they pass through pinned memory, so
    that this process need not wait for the copy, nor for the work that the GPU has before it.
    """
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def make_deterministic(device: torch.device) -> None:
    """Let this process compute the same bits every time on a GPU; on a CPU it does so anyway, and nothing is changed.

    Fast kernels of a GPU, those of attention's gradient among them, add up in whatever order their threads arrive. PyTorch
    then takes others that keep an order, and raises where there are none.
    """
    if device.type == "cpu":
        return
    # cuBLAS reads it when it starts: workspaces of a fixed size, without which its results may differ from call to call.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Its second service, filling fresh memory with NaN to show who reads it too early, is for those who look for such bugs.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def memory_fraction(share: float, total_bytes: int) -> float:
    """Return the fraction of a GPU's memory that the tensors of a process may take: its share less CUDA's own part.

    Parameters
    ----------
    share
        Part of the GPU that the process reserved, ``ray.num_gpus_per_actor``.
    total_bytes
        Memory of the GPU.

    Raises
    ------
    ResourceError
        If the share holds no more than CUDA's own part.
    """
    fraction = share - CONTEXT_BYTES / total_bytes
    if fraction > 0:
        return fraction
    # Half of a share for tensors is little enough to name as the smallest that is of use.
    most = max(1, total_bytes // (2 * CONTEXT_BYTES))
    raise ResourceError(
        f"a share of {share:.4g} of a GPU with {total_bytes / 2**30:.1f} GiB is no more than the {CONTEXT_BYTES / 2**30:.2g} "
        f"GiB that CUDA takes in each process; set ray.num_gpus_per_actor to 1/{most} or more"
    )


def limit_memory(share: float, device: torch.device) -> None:
    """Keep this process within its share of a GPU, so that it runs out of memory itself instead of its neighbours.

    Does nothing on a CPU, or for a process that has the GPU to itself.
    """
    if device.type == "cpu" or share >= 1:
        return
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(memory_fraction(share, total_bytes))
