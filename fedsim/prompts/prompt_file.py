"""Prompt files: what a run trained, written and read; no model is needed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from clients.config import ModelConfig, PromptConfig
from clients.tuners.config import TunerConfig
from clients.tuners.lora_halves import completed
from clients.tuners.projected import PROJECTION, START, as_prompt
from fedsim import __version__
from fedsim.core.errors import ModelError
from fedsim.core.layout import LayerArrays, LayerShape, OneLayer, PromptGeometry, VectorLayout
from fedsim.core.schema import Schema
from fedsim.core.uses import EVERY_KEY
from fedsim.data.config import TaskConfig

if TYPE_CHECKING:
    from clients.tuners.initial import StartingPoint
    from fedsim.configuration.schema import Config

GLOBAL_PROMPT = "global.safetensors"
BEST_PROMPT = "best.safetensors"
PERSONAL_PROMPTS = "personal.safetensors"
_RECORDS = ("config.yaml", "summary.json", "metrics.jsonl")
"""What says where a prompt comes from."""


def save_prompt(
    path: Path,
    vector_F: np.ndarray,
    layout: VectorLayout,
    config: Config,
    task: TaskConfig,
    round: int | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
    start: StartingPoint | None = None,
) -> None:
    """Write the global prompt (and head) with all that is needed to use it.

    The file holds the arrays of every exchanged layer, the head's arrays by name, and one JSON text of metadata. A prefix's
    array is ``prompt.LAYER`` of shape [2, kv heads, prompt length, head dim]; those of other tuners are ``KIND.LAYER.NAME``, as
    in ``lora.0.TARGET.lora_A``, in PEFT's shapes: of LoRA A and B, whichever was trained or travelled, of IA³ the vectors, 1 +
    what was trained, of a soft prompt the prompt, also a projected one. All are float32, also those of a run that computed
    in float64. The file does not record where or when the run took place, so equal results are equal files.

    Parameters
    ----------
    round
        The round after which this was the prompt, if the file is to say so.
    constants
        Frozen arrays that the tuner holds, by name; they are written too.
    start
        Where the run started, which a half of LoRA that did not travel still has; None where that was drawn from the seed.
    """
    tuned_LX, head = layout.split(np.asarray(vector_F, dtype=np.float32))
    if config.tuner.projection:
        assert constants is not None
        layout, tuned_LX = as_prompt(layout, tuned_LX, constants[START], constants[PROJECTION])
    else:
        layout, tuned_LX = completed(config.tuner, layout, tuned_LX, config.seed, constants, start)
    if config.tuner.origin:
        tuned_LX = tuned_LX + np.float32(config.tuner.origin)
    arrays: dict[str, np.ndarray] = {}
    for layer, tuned_X in zip(layout.layers, tuned_LX, strict=True):
        arrays.update(_named(config.tuner.kind, layout.geometry, layer, tuned_X))
    arrays.update({name: np.ascontiguousarray(array) for name, array in head.items()})
    exact = config.tuner.exact  # named where it is true: then there are residuals
    metadata = {
        "format": 1,
        "fedsim": __version__,
        "model": config.model.model_dump(mode="json", exclude={"device"}, context=EVERY_KEY),
        "prompt": config.prompt.model_dump(mode="json", exclude={"start_from", "dropout"}, context=EVERY_KEY),
        "max_length": config.data.max_length,
        "task": task.model_dump(mode="json"),
        "tuner": _tuner(config.tuner, exact=exact),
        "geometry": _geometry(layout.geometry),
        "layers": list(layout.layers),
        "head_shapes": [[name, list(shape)] for name, shape in layout.head_shapes],
    }
    if round is not None:
        metadata["round"] = round
    _save(arrays, path, metadata)


def _named(kind: str, shape: LayerShape, layer: int, tuned_X: np.ndarray) -> dict[str, np.ndarray]:
    """Return a layer's arrays by the names that they have in a file."""
    if isinstance(shape, LayerArrays):
        return {f"{kind}.{layer}.{name}": np.ascontiguousarray(array) for name, array in shape.split(tuned_X).items()}
    return {f"prompt.{layer}": np.ascontiguousarray(tuned_X)}


def _tuner(tuner: TunerConfig, *, exact: bool) -> dict[str, Any]:
    """Return the section ``tuner`` as metadata, without keys that the file's arrays answer."""
    answered = {"train", "exchange", "start_from", "sources", "projection", *(() if exact else ("exact",))}
    values = tuner.model_dump(mode="json", exclude=answered)
    return values | {"random_sources": tuner.num_sources} if tuner.sources else values


def _geometry(shape: LayerShape) -> dict[str, Any]:
    """Return a shape as metadata."""
    if isinstance(shape, LayerArrays):
        where = {"layer": shape.layer} if isinstance(shape, OneLayer) else {}
        return {"num_layers": shape.num_layers, "arrays": shape.arrays, **where}
    return asdict(shape)  # type: ignore[call-overload]


def _shape(metadata: dict[str, Any]) -> LayerShape:
    """Return the shape that a file's metadata describe."""
    if metadata["tuner"]["kind"] == "prefix":
        return PromptGeometry(**metadata["geometry"])
    geometry = metadata["geometry"]
    arrays = tuple((str(name), tuple(map(int, shape))) for name, shape in geometry["arrays"])
    layers = int(geometry["num_layers"])
    return (
        OneLayer(layers, arrays, layer=int(geometry["layer"])) if "layer" in geometry else LayerArrays(layers, arrays)
    )


def _save(arrays: dict[str, np.ndarray], path: Path, metadata: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # One metadata entry: safetensors does not keep the order of several, and equal results must be equal bytes.
        save_file(arrays, path, metadata={"fedsim": json.dumps(metadata, sort_keys=True)})
    except (OSError, SafetensorError) as error:  # the latter if the disk is full, or a folder has the file's name
        raise ModelError(
            f"the prompt {path} cannot be written: {error}; fix this, then continue with --resume"
        ) from error


def save_personal_prompts(path: Path, clients: Sequence[int], personal_NM: np.ndarray, layers: Sequence[int]) -> None:
    """Write what clients keep of ``layers``, one row per client that trained: all trained numbers of these layers."""
    arrays = {"clients": np.array(clients, dtype=np.int64), "personal": np.ascontiguousarray(personal_NM)}
    _save(arrays, path, {"format": 1, "layers": list(layers)})


@dataclass(frozen=True)
class PromptFile:
    """Contents of a global prompt file."""

    path: Path
    metadata: dict[str, Any]
    layout: VectorLayout
    tuned_LX: np.ndarray
    """float32 trained numbers of ``layout.layers``: of a prefix [L, 2, kv heads, prompt length, head dim]."""
    head: dict[str, np.ndarray]

    @property
    def kind(self) -> str:
        """What was trained: a value of ``tuner.kind``."""
        kind: str = self.metadata["tuner"]["kind"]
        return kind

    def prefix(self, why: str) -> PromptGeometry:
        """Return the shape of the prompts.

        Raises
        ------
        ModelError
            If something else was trained; ``why`` says what needs a prefix.
        """
        if not isinstance(self.layout.geometry, PromptGeometry):
            raise ModelError(f"{self.path} was trained with tuner.kind={self.kind}, but {why} a prefix")
        return self.layout.geometry


def read_prompt(path: str | Path) -> PromptFile:
    """Read a ``prompt/global.safetensors``, given directly or by its run folder; no model is needed.

    Raises
    ------
    ModelError
        If it is not a fedsim prompt.
    """
    path = Path(path)
    file_path = path / "prompt" / GLOBAL_PROMPT if path.is_dir() else path
    try:
        with safe_open(file_path, framework="numpy") as file:
            metadata = json.loads(file.metadata()["fedsim"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if "geometry" not in metadata:
            raise ModelError(f"{file_path} holds personal prompts; load {GLOBAL_PROMPT}")
        metadata.setdefault("tuner", {"kind": "prefix"})  # files of earlier versions hold prefixes
        _check_metadata(metadata)
        shapes = tuple((name, tuple(shape)) for name, shape in metadata["head_shapes"])
        layout = VectorLayout(_shape(metadata), tuple(metadata["layers"]), shapes)
        empty_X = np.empty(layout.geometry.layer_shape, np.float32)
        tuned = []
        for layer in layout.layers:
            wanted = _named(metadata["tuner"]["kind"], layout.geometry, layer, empty_X)
            parts = [_array(arrays, name, array.shape).reshape(-1) for name, array in wanted.items()]
            tuned.append(np.concatenate(parts).reshape(empty_X.shape))
        head = {name: _array(arrays, name, shape) for name, shape in shapes}
        tuned_LX = np.stack(tuned)
        origin = TunerConfig.model_validate(metadata["tuner"], context=EVERY_KEY).origin
        if origin:
            tuned_LX -= np.float32(origin)
    except KeyError as error:
        raise ModelError(f"{file_path} is not a prompt file of a run: it lacks {error}") from None
    except (OSError, TypeError, ValueError, AttributeError, RecursionError, SafetensorError) as error:
        why = str(error)
        why = why if len(why) <= 300 else f"{why[:297]}..."
        raise ModelError(f"{file_path} is not a prompt file of a run: {why}") from None
    return PromptFile(file_path, metadata, layout, tuned_LX, head)


def _check_metadata(metadata: dict[str, Any]) -> None:
    """Refuse values that a run never writes."""
    sections: tuple[tuple[str, type[Schema]], ...] = (
        ("model", ModelConfig),
        ("prompt", PromptConfig),
        ("tuner", TunerConfig),
        ("task", TaskConfig),
    )
    for name, schema in sections:
        try:
            schema.model_validate(metadata[name], context=EVERY_KEY)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(map(str, (name, *first["loc"])))
            raise ValueError(f"its metadata are damaged at {key}: {first['msg']}") from None
    if type(metadata["max_length"]) is not int or metadata["max_length"] < 1:
        raise ValueError("its metadata are damaged at max_length")


def _array(arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    array = arrays[name]
    if array.shape != shape or array.dtype != np.float32:
        raise ValueError(f"array {name} has shape {array.shape}, {array.dtype}, but its metadata say {shape}, float32")
    return array


@contextmanager
def local_prompt(place: str | Path) -> Iterator[Path]:
    """Yield the local path of a run or prompt file; remote prompts are copied to a temporary folder.

    Raises
    ------
    FedsimError
        If the URL does not answer, or holds no prompt.
    """
    from fedsim.records.remote import Remote, is_url

    if not is_url(place):
        yield Path(place)
        return
    run, within, name = str(place).rstrip("/").rpartition("/prompt/")
    source = Remote(run if within else str(place))
    prompt = f"prompt/{name if within else GLOBAL_PROMPT}"
    with TemporaryDirectory(prefix="fedsim-prompt-") as temporary:
        try:
            source.download(prompt, Path(temporary) / prompt)
        except FileNotFoundError:
            raise ModelError(f"{source.url} has no {prompt}; give a finished run") from None
        with suppress(FileNotFoundError):  # if every layer was exchanged
            source.download(f"prompt/{PERSONAL_PROMPTS}", Path(temporary) / "prompt" / PERSONAL_PROMPTS)
        for record in _RECORDS:
            with suppress(FileNotFoundError):
                source.download(record, Path(temporary) / record)
        yield Path(temporary) / prompt
