"""Notes on surprises of a usable model, shown by runs, ``fedsim plan`` and ``fedsim doctor``."""

from __future__ import annotations

from pathlib import Path

from clients.backbone.location import folder_of, locate
from clients.backbone.model_files import adapter_in
from fedsim.configuration.schema import Config
from fedsim.planning.machine import visible_gpus


def model_notes(config: Config) -> list[str]:
    """Return one note for each possible surprise.

    Raises
    ------
    ModelError
        If the model is not there.
    """
    return [sentence for sentence in (_adapter(config), _slow_format(config), _no_gpus(config)) if sentence is not None]


def _adapter(config: Config) -> str | None:
    """Note that an adapter beside a full model is ignored: only the model's own weights are used."""
    folder = folder_of(locate(config.model))
    adapter = None if folder is None else adapter_in(folder)
    if folder is None or adapter is None or _is_start(config, folder):
        return None
    return (
        f"the folder of model {config.model.location} holds {adapter.named} beside the model, which is ignored: only "
        f"the model's own weights are used; to {adapter.use(folder)}"
    )


def _is_start(config: Config, folder: Path) -> bool:
    start = config.tuner.start_from or config.prompt.start_from
    return start is not None and Path(start).expanduser().absolute() == folder.absolute()


def _slow_format(config: Config) -> str | None:
    """Warn about float16 matrix products on CPUs, most of which have no instructions for them."""
    model = config.model
    key = next((key for key in ("dtype", "autocast", "products") if getattr(model, key) == "float16"), None)
    if key is None or not on_cpus(config):
        return None
    return (
        f"model.{key}=float16 runs on CPUs here, where it is many times slower than bfloat16; set model.{key}=bfloat16"
    )


def _no_gpus(config: Config) -> str | None:
    """Note that a run in this process asks for GPUs that are not here: on a cluster, Ray's plan says so."""
    if config.executor != "local" or config.model.device == "cpu":
        return None
    wanted, here = max(1, int(config.ray.num_gpus_per_actor)), len(visible_gpus())
    keys = {"model.device=cuda": config.model.device == "cuda", "model.offload=true": config.model.offload}
    keys[f"ray.num_gpus_per_actor={wanted}"] = wanted > 1
    asking = [key for key, asks in keys.items() if asks]
    if not asking or here >= wanted:
        return None
    outcome = "a run is refused" if here or len(asking) > (wanted > 1) else "a run computes on the CPU alone"
    return (
        f"{' with '.join(asking)} needs {wanted} GPU{'s' * (wanted > 1)} for executor=local, but nvidia-smi lists {here} here: "
        f"{outcome}"
    )


def on_cpus(config: Config) -> bool:
    """Return whether clients of a run run on CPUs."""
    if config.model.device != "auto":
        return config.model.device == "cpu"
    return not visible_gpus() if config.executor == "local" else config.ray.num_gpus_per_actor == 0
