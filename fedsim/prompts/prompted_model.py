"""Save trained prompts as files and load them as usable models."""

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
    from fedsim.core.tokens import TokenTable

GLOBAL_PROMPT = "global.safetensors"
BEST_PROMPT = "best.safetensors"
PERSONAL_PROMPTS = "personal.safetensors"


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
        yield Path(temporary) / prompt


class PromptedModel:
    """A frozen backbone with a trained prompt: predicts labels of texts.

    Created by :func:`load_adapter`.
    """

    def __init__(self, file: PromptFile, model: str | None, device: str, trust_remote_code: bool) -> None:
        import torch

        from clients.backbone.loading import load_shared_weights, load_tokenizer
        from clients.backbone.model import Backbone
        from clients.tuners.make import make_tuner
        from fedsim.data.tokenize import label_word_ids
        from fedsim.data.vocabulary import Vocabulary, check_label_words

        metadata = file.metadata
        changed: dict[str, Any] = {"path": model, "package": None} if model is not None else {}
        # Compiling would take longer than most predictions; and a file from elsewhere must not decide what code runs.
        changed |= {"compile": False, "trust_remote_code": trust_remote_code}
        # Files of versions without the key were made in float32.
        config = ModelConfig.model_validate({"products": "float32", **metadata["model"], **changed}, context=EVERY_KEY)
        self.task = TaskConfig.model_validate(metadata["task"], context=EVERY_KEY)
        self.layers: tuple[int, ...] = file.layout.layers
        self.tokenizer = load_tokenizer(config)
        self._max_length: int = metadata["max_length"]
        self._head_kind = config.head.kind
        weights = load_shared_weights(config).rounded(config.product_dtype)
        words = (
            label_word_ids(self.task, self.tokenizer, weights.kind == "causal_lm")
            if config.head.kind == "verbalizer"
            else None
        )
        self._vocabulary = Vocabulary.of(weights, config.location)
        if words is not None and self.task.label_words is not None:
            check_label_words(words, self.task.label_words, self.tokenizer, self._vocabulary)
        prompt = PromptConfig.model_validate(metadata["prompt"], context=EVERY_KEY)
        trained = TunerConfig.model_validate(metadata["tuner"], context=EVERY_KEY)
        tuner = make_tuner(trained, prompt, weights.family).as_filed()
        self.backbone = Backbone.build(weights, config, tuner, len(self.task.labels), words, device)
        geometry = file.layout.geometry
        if self.backbone.geometry != geometry:
            raise ModelError(
                f"{file.path} was made for {geometry}, but the model {config.location} has {self.backbone.geometry}"
            )
        self.tuned_LX = torch.from_numpy(file.tuned_LX).to(self.backbone.device)
        self.head = {name: torch.from_numpy(array).to(self.backbone.device) for name, array in file.head.items()}

    def scores(self, examples: Sequence[str | tuple[str, ...]], batch_size: int = 64) -> np.ndarray:
        """Return class scores (logits), float32 of shape [examples, classes].

        Parameters
        ----------
        examples
            Texts, or tuples of texts for a task of several fields.

        Raises
        ------
        FedsimError
            If an example has the wrong number of texts, no token, or one that the model does not know.
        """
        import torch

        from fedsim.data.sources import Examples
        from fedsim.data.tokenize import tokenize
        from fedsim.data.vocabulary import fitted

        texts = [(example,) if isinstance(example, str) else tuple(example) for example in examples]
        wrong = next((text for text in texts if len(text) != len(self.task.fields)), None)
        if wrong is not None:
            raise ModelError(
                f"task {self.task.name!r} takes {len(self.task.fields)} texts an example ({', '.join(self.task.fields)}), "
                f"not {len(wrong)}"
            )
        given = Examples(texts, np.zeros(len(texts), dtype=np.int64), {}, "texts", 0, {})
        table = tokenize(
            given,
            self.task,
            self.tokenizer,
            head_kind=self._head_kind,
            causal=self.backbone.predicts_next,
            max_length=self._max_length,
        )
        table = fitted(table, given, self.task, self.tokenizer, self._vocabulary)
        self._check_lengths(table)
        head_1 = {name: array.unsqueeze(0) for name, array in self.head.items()}
        logits = []
        with torch.no_grad():
            for start in range(0, len(texts), batch_size):
                batch = table.batch(np.arange(start, min(start + batch_size, len(texts))))
                reading = self.backbone.forward(batch, self.tuned_LX.unsqueeze(0), self.layers, head_1)
                logits.append(reading.logits_BC.cpu().numpy())
        return np.concatenate(logits) if logits else np.empty((0, len(self.task.labels)), np.float32)

    def _check_lengths(self, table: TokenTable) -> None:
        most = self.backbone.max_tokens
        too_long = np.flatnonzero(table.lengths_N > most)
        if len(too_long):
            example, room = too_long[0], self.backbone.room
            raise ModelError(
                f"example {example} has {table.lengths_N[example]} tokens, but the model {room}; shorten it"
            )

    def predict(self, examples: Sequence[str | tuple[str, ...]], batch_size: int = 64) -> list[str]:
        """Return the predicted label of each example, as written in the task's ``labels``."""
        return [self.task.labels[i] for i in self.scores(examples, batch_size).argmax(axis=1)]


def load_adapter(
    path: str | Path, model: str | None = None, device: str = "cpu", *, trust_remote_code: bool = False
) -> PromptedModel:
    """Load what a run trained, with any tuner, and its backbone.

    Parameters
    ----------
    path
        A ``prompt/global.safetensors``, or the run folder that holds it; either may be a URL.
    model
        Folder or hub name of the backbone, if it is not where the run found it.
    device
        ``cpu`` or ``cuda``.
    trust_remote_code
        Run Python code that comes with the backbone's tokenizer, regardless of the file's own setting.

    Raises
    ------
    ModelError
        If the file is not a fedsim prompt, or does not fit the model.

    Examples
    --------
    >>> model = load_adapter("runs/quickstart")           # doctest: +SKIP
    >>> model.predict(["the soup was cold and bland"])    # doctest: +SKIP
    ['negative']
    """
    with local_prompt(path) as local:
        return PromptedModel(read_prompt(local), model, device, trust_remote_code)


load_prompt = load_adapter
"""Earlier name of :func:`load_adapter`."""
