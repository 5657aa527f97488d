"""Which device a worker computes on."""

from __future__ import annotations

import torch

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
