"""Trained prompts as usable models: :func:`load_adapter`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.config import ModelConfig, PromptConfig
from clients.tuners.config import TunerConfig
from fedsim.core.errors import ModelError
from fedsim.core.uses import EVERY_KEY
from fedsim.data.config import TaskConfig

if TYPE_CHECKING:
    from fedsim.core.tokens import TokenTable
from fedsim.prompts.prompt_file import PromptFile, local_prompt, read_prompt
from fedsim.prompts.writing import Prompt, as_list, check_batch_size, prompt_rows, settings, texts_of


class PromptedModel:
    """A frozen backbone with a trained prompt: predicts labels of texts.

    Created by :func:`load_adapter`.
    """

    def __init__(self, file: PromptFile, model: str | None, device: str, trust_remote_code: bool) -> None:
        import torch

        from clients.backbone.loading import load_shared_weights, load_tokenizer
        from clients.backbone.model import Backbone
        from clients.tuners.make import make_tuner
        from fedsim.data.label_words import label_words
        from fedsim.data.tokenize import empty_text
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
        self._config = config
        self._max_length: int = metadata["max_length"]
        self._head_kind = config.head.kind
        weights = load_shared_weights(config).stored(config)
        words = (
            label_words(self.task, self.tokenizer, weights.kind == "causal_lm")
            if config.head.kind == "verbalizer"
            else None
        )
        self._vocabulary = Vocabulary.of(weights, config.location)
        if words is not None:
            check_label_words(words, self.task, self.tokenizer, self._vocabulary)
        prompt = PromptConfig.model_validate(metadata["prompt"], context=EVERY_KEY)
        trained = TunerConfig.model_validate(metadata["tuner"], context=EVERY_KEY)
        tuner = make_tuner(trained, prompt, weights.family).as_filed()
        words_C = None if words is None else words.single_C
        several = words if words_C is None else None
        classes = self.task.num_classes
        self.backbone = Backbone.build(weights, config, tuner, classes, words_C, device, words=several)
        geometry = file.layout.geometry
        if self.backbone.geometry != geometry:
            raise ModelError(
                f"{file.path} was made for {geometry}, but the model {config.location} has {self.backbone.geometry}"
            )
        if config.head.calibration == "empty_text":
            causal, longest = weights.kind == "causal_lm", self._max_length
            empty = empty_text(self.task, self.tokenizer, head_kind=config.head.kind, causal=causal, max_length=longest)
            self.backbone.calibrate(empty)
        self.tuned_LX = torch.from_numpy(file.tuned_LX).to(self.backbone.device)
        self.head = {name: torch.from_numpy(array).to(self.backbone.device) for name, array in file.head.items()}

    def scores(self, examples: Sequence[str | tuple[str, ...]], batch_size: int = 64) -> np.ndarray:
        """Return class scores (logits), float32 of shape [examples, classes].

        Parameters
        ----------
        examples
            Texts, or tuples of texts for a task of several fields.
        batch_size
            Texts per pass.

        Raises
        ------
        FedsimError
            If the task is one of responses, ``examples`` is no list of texts, or an example has the wrong number of texts, no
            token, or one that the model does not know.
        """
        import torch

        from fedsim.data.sources import Examples
        from fedsim.data.tokenize import tokenize
        from fedsim.data.vocabulary import fitted

        if self.task.of_responses:
            raise ModelError(
                f"task {self.task.name!r} is one of responses, which have no class scores; use generate to write responses"
            )
        texts = [texts_of(each, f"example {number}") for number, each in enumerate(as_list(examples, "examples"))]
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
        check_batch_size(batch_size)
        head_1 = {name: array.unsqueeze(0) for name, array in self.head.items()}
        trained = self.tuned_LX.unsqueeze(0), self.layers, head_1
        texts_each = self.backbone.texts_of_example
        size = max(batch_size // texts_each, 1)
        logits = []
        with torch.no_grad():
            for start in range(0, len(texts), size):
                own = np.arange(start, min(start + size, len(texts)))
                if texts_each > 1:
                    reading = self.backbone.predict(table.pack(own), *trained)
                else:
                    reading = self.backbone.forward(table.batch(own), *trained)
                logits.append(reading.logits_BC.cpu().numpy())
        return np.concatenate(logits) if logits else np.empty((0, len(self.task.labels)), np.float32)

    def _check_lengths(self, table: TokenTable) -> None:
        most = self.backbone.max_tokens + (0 if table.branches is None else table.branches.beyond)
        too_long = np.flatnonzero(table.lengths_N > most)
        if len(too_long):
            example, room = too_long[0], self.backbone.room
            raise ModelError(
                f"example {example} has {table.lengths_N[example]} tokens, but the model {room}; shorten it"
            )

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        do_sample: bool = False,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        batch_size: int = 32,
    ) -> list[str]:
        """Write a response to each prompt, for a model of a task of responses.

        Parameters
        ----------
        prompts
            A text each; or texts, in the order of the fields that the task's prompt has, or by their names; for a dialogue its
            messages, each with ``role`` and ``content``, the last one a question.
        max_new_tokens
            Most tokens of a response.
        do_sample
            Draw each token; else the most likely one is taken.
        temperature, top_k, top_p
            What is drawn from, as in section ``evaluation.generate`` of a config, with its defaults; for ``do_sample`` alone.
        seed
            Root of the draws, which depend on it and on the number of the prompt in ``prompts`` alone; 0 if not given. For
            ``do_sample`` alone.
        batch_size
            Prompts per pass.

        Raises
        ------
        ModelError
            If the model's task is one of classes, ``prompts`` is no list, or a prompt does not fit the task or is too long for
            the model.
        ConfigError
            If a setting has a value that is not allowed, or no use.
        """
        from fedsim.core import seeds
        from fedsim.core.decoding import Decoding
        from fedsim.data.responses import ResponseEncoder
        from fedsim.simulation.generation_spec import decoded, end_ids

        rows = prompt_rows(self.task, prompts)
        check_batch_size(batch_size)
        chosen = settings(
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )
        encoder = ResponseEncoder(self.task, self.tokenizer)
        texts = [np.array(ids, dtype=np.int64) for ids in encoder.prompts(rows)]
        self._check_prompts(texts)
        ends = end_ids(self._config, self.task, self.tokenizer)
        decoding = Decoding(
            chosen.max_new_tokens, ends, chosen.do_sample, chosen.temperature, chosen.top_k, chosen.top_p
        )
        root, names = chosen.seed or 0, (seeds.NO_ROUND, seeds.NO_CLIENT)
        drawn = [decoding.uniform_S(root, *names, number) for number in range(len(texts))] if chosen.do_sample else []
        written = self.backbone.generate(
            texts,
            self.tuned_LX.unsqueeze(0),
            self.layers,
            decoding,
            uniform_NS=np.stack(drawn) if drawn else None,
            batch_size=batch_size,
        )
        return [decoded(self.tokenizer, ids[:-1] if len(ids) and ids[-1] in ends else ids) for ids in written]

    def _check_prompts(self, texts: Sequence[np.ndarray]) -> None:
        for number, ids in enumerate(texts):
            if not len(ids):
                raise ModelError(f"prompt {number} has no token; give it a text")
            if len(ids) >= self.backbone.max_tokens:
                room = self.backbone.room
                raise ModelError(
                    f"prompt {number} has {len(ids)} tokens, but the model {room}, the response included; shorten it"
                )

    def predict(self, examples: Sequence[str | tuple[str, ...]], batch_size: int = 64) -> list[str]:
        """Return the predicted label of each example, as written in the task's ``labels``; takes what :meth:`scores` takes."""
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
