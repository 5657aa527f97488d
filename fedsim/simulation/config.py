"""Schemas of the sections ``evaluation``, ``checkpoint`` and ``stop``."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from fedsim.core.schema import Schema
from fedsim.core.uses import Use, Uses

TextMetric = Literal["exact_match", "f1", "rouge1", "rouge2", "rougeL", "chrf"]
"""Names of :data:`fedsim.data.text_metrics.TEXT_METRICS`."""


class GenerateConfig(Schema):
    """Responses that the model writes by itself, token by token."""

    every: NonNegativeInt = 0
    """Rounds between two times that the global model writes; 0 for after the last round alone, when it writes in any case."""
    at_start: bool = True
    """Let the global model write before any training as well, in round 0: the text metrics of a run say nothing of what tuning
    did without it. It costs as much as another such round, more where an untuned model does not end its responses."""
    examples: PositiveInt = 64
    """Validation examples whose prompts it answers, drawn with the seed, the same ones each time; all, if there are fewer."""
    client_examples: NonNegativeInt = 4
    """Held-out examples of each client that the client's own model answers, at the end, where clients keep something of their
    own (``layers.unselected: local``, ``tuner.exchange``); 0 for none."""
    max_new_tokens: PositiveInt = 64
    """Most tokens of a response. It also ends at the tokenizer's end token, at those of the model's generation_config.json, and
    where the model's positions do."""
    do_sample: bool = False
    """Draw each token by its probability; otherwise the most likely one is taken."""
    temperature: PositiveFloat = 1.0
    """do_sample: what scores are divided by; below 1 likely tokens become likelier."""
    top_k: PositiveInt | None = None
    """do_sample: draw from so many of the most likely tokens; null for all."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """do_sample: draw from the fewest most likely tokens whose probabilities add up to this."""
    seed: NonNegativeInt | None = None
    """do_sample: root of the draws, the run's seed if not given. They depend on it, round, client and example alone."""
    metrics: tuple[TextMetric, ...] = Field(default=("exact_match", "f1"), min_length=1)
    """How texts are compared to those of the data: exact_match and f1 (of words, both as SQuAD normalises), rouge1, rouge2,
    rougeL and chrf; ROUGE and chrF need ``pip install fedsim[text]``. The first one stands in the lines of rounds."""

    uses: ClassVar[Uses] = dict.fromkeys(("temperature", "top_k", "top_p", "seed"), (Use("do_sample", (True,)),))

    @field_validator("metrics")
    @classmethod
    def _once(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        twice = next((name for name in metrics if metrics.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} is there twice; name each metric once")
        return metrics


class EvaluationConfig(Schema):
    """When and how prompts are evaluated."""

    every: PositiveInt = 1
    """Rounds between evaluations of the global prompt on the validation examples; the last round is always evaluated."""
    personalised_every: PositiveInt | None = None
    """Rounds between personalised evaluations (each client's own prompts on its held-out examples); if not given, only once,
    at the end."""
    personalised_start: bool = False
    """Evaluate the clients' held-out examples with the untrained prompts as well, once, at the end: then it is known which
    clients are better off than without tuning."""
    keep_predictions: bool = False
    """Write to ``predictions.parquet`` what the global prompt predicts for each validation example, after the last round and
    after the best one; each takes an evaluation."""
    generate: GenerateConfig | None = None
    """Tasks of responses: let the model write, and compare its texts to those of the data; null for losses alone."""
    select_on: Literal["validation", "holdout"] = "validation"
    """Examples used to choose the best round and to apply ``stop.target`` and ``stop.patience``: validation, or holdout (the
    clients' held-out examples, with the global prompt). With holdout, validation figures are not biased by the choice of
    the round."""
    batch_size: PositiveInt = 64
    """Examples per forward pass."""
    shard_size: PositiveInt = 256
    """Validation examples per actor call."""
    overlap: bool = True
    """Evaluate the start and each round while the next round trains, so that no actor idles; a round is recorded and saved
    once its evaluation is done. Rounds do so unless a personalised evaluation is due or with ``select_on: holdout``. Same
    numbers, less time."""


class CheckpointConfig(Schema):
    """When the complete state of the run is saved."""

    every: PositiveInt = 1
    """Rounds between checkpoints; an interrupt and the end of the run also save one."""
    keep: PositiveInt = 2
    """Checkpoints to keep; an older one is used if the newest is damaged."""


class StopConfig(Schema):
    """When a run ends before ``rounds``; the summary names the rule. With the same rules, the run counts as finished."""

    target: float | None = None
    """Stop when the metric reaches this value; see ``evaluation.select_on``."""
    patience: PositiveInt | None = None
    """Stop after this many rounds without a better metric, checked at evaluated rounds."""
    metric: TextMetric | None = None
    """Metric of ``target`` and ``patience``: null for the task's own, or one of ``evaluation.generate.metrics``, of what the
    global model writes to the validation examples, checked at the rounds that ``evaluation.generate.every`` names."""
    seconds: Annotated[float, Field(gt=0.0)] | None = None
    """Stop after this running time, counted across resumes; the current round is finished first."""
    bytes: Annotated[float, Field(gt=0.0)] | None = None
    """Stop when simulated traffic reaches this many bytes, up and down, all clients together."""
    epsilon: Annotated[float, Field(gt=0.0)] | None = None
    """Stop where another round would spend more than this epsilon (``privacy``)."""

    @property
    def aim(self) -> float | None:
        """What a metric is held against; None without."""
        return self.patience if self.target is None else self.target
