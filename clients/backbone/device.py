"""Device selection, transfers to the device, and sharing of one GPU by several processes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from clients.budget import CONTEXT_BYTES
from fedsim.core.deferred import deferred
from fedsim.core.errors import ResourceError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = deferred("torch")


def resolve_device(asked: str, *, gpu_granted: bool) -> str:
    """Return ``cpu`` or ``cuda``.

    Parameters
    ----------
    asked
        ``model.device`` of the config: auto, cpu or cuda.
    gpu_granted
        Whether this process was granted a share of a GPU. A process without one must not use a GPU it can see:
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


def resolve_devices(asked: str, gpus: float, *, gpu_granted: bool) -> tuple[str, ...]:
    """Return the devices of a worker: ``cpu`` or ``cuda`` alone, or each GPU that its model is spread over.

    Parameters
    ----------
    asked, gpu_granted
        As in :func:`resolve_device`.
    gpus
        GPUs that the process was granted, ``ray.num_gpus_per_actor``: a share of one, or several.

    Raises
    ------
    ResourceError
        If cuda was asked for and this process has none, or torch sees fewer GPUs than were granted.
    """
    name = resolve_device(asked, gpu_granted=gpu_granted)
    if name == "cpu" or gpus <= 1:
        return (name,)
    visible = torch.cuda.device_count()
    if visible < gpus:
        raise ResourceError(
            f"ray.num_gpus_per_actor={gpus:g} spreads the model over {gpus:g} GPUs, but torch sees {visible} here; set "
            f"ray.num_gpus_per_actor={visible}"
        )
    return tuple(f"{name}:{number}" for number in range(int(gpus)))


def to_device(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Move an array to a device.

    On a CPU nothing is copied. Transfers to a GPU go through pinned memory, so that this process waits neither for the copy
    nor for the GPU's earlier work.
    """
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def make_deterministic(device: torch.device) -> None:
    """Make computation on a GPU bitwise deterministic; on a CPU it already is, and nothing is changed.

    Fast GPU kernels, including attention's gradient, add up in whatever order their threads arrive. PyTorch then uses
    kernels with a fixed order, and raises if there are none.
    """
    if device.type == "cpu":
        return
    # Read by cuBLAS at start: fixed workspace sizes, without which results may differ between calls.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Do not also fill fresh memory with NaN, which is a debugging aid.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def memory_fraction(share: float, total_bytes: int) -> float:
    """Return the fraction of a GPU's memory available to a process's tensors: its share minus the CUDA context.

    Parameters
    ----------
    share
        Part of the GPU that the process reserved, ``ray.num_gpus_per_actor``.
    total_bytes
        Memory of the GPU.

    Raises
    ------
    ResourceError
        If the share does not exceed the CUDA context.
    """
    fraction = share - CONTEXT_BYTES / total_bytes
    if fraction > 0:
        return fraction
    # The smallest useful share leaves half of itself to tensors.
    most = max(1, total_bytes // (2 * CONTEXT_BYTES))
    raise ResourceError(
        f"a share of {share:.4g} of a GPU with {total_bytes / 2**30:.1f} GiB is no more than the {CONTEXT_BYTES / 2**30:.2g} "
        f"GiB that CUDA takes in each process; set ray.num_gpus_per_actor to 1/{most} or more"
    )


def limit_memory(share: float, device: torch.device) -> None:
    """Limit this process to its share of a GPU, so that it runs out of memory itself instead of its neighbours.

    Does nothing on a CPU, or for a process with exclusive use of the GPU.
    """
    if device.type == "cpu" or share >= 1:
        return
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(memory_fraction(share, total_bytes))
