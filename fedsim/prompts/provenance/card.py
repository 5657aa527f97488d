"""The model card: front matter of the Hugging Face hub, and how the adapter was trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from fedsim.prompts.provenance.escaping import code, inline
from fedsim.prompts.provenance.origin import Origin

_TASKS = {"generation": "text-generation"}
"""Kind of task on the hub, by ``model.head.kind``; others are text-classification."""


def front_matter(origin: Origin, title: str) -> str:
    """Return the card's YAML block, with its fences."""
    kind = _TASKS.get(origin.metadata["model"].get("head", {}).get("kind"), "text-classification")
    results = [
        EvalResult(
            task_type=kind,
            dataset_type=origin.dataset or f"fedsim-{_word(origin.task)}",
            dataset_name=origin.task,
            metric_type=figure.metric,
            metric_value=figure.value,
            metric_name=f"{figure.metric} on {figure.on}",
        )
        for figure in origin.figures[:1]
    ]
    named: dict[str, Any] = {"model_name": title, "eval_results": results} if results else {}
    metric = origin.metadata["task"]["metric"]
    data = ModelCardData(
        base_model=origin.base,
        library_name="peft",
        pipeline_tag=kind,
        tags=["fedsim", "federated-learning", origin.kind],
        datasets=[origin.dataset] if origin.dataset else None,
        metrics=[metric],
        **named,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _word(text: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in text.lower())


def sections(origin: Origin, files: Sequence[str]) -> str:
    """Return the card's sections on origin and reproduction.

    Parameters
    ----------
    files
        Names of the files beside the card, for what they hold.
    """
    return "\n".join([*_training(origin), *_figures(origin), *_reproduction(origin), *_files(files)])


def _training(origin: Origin) -> Iterator[str]:
    yield "## How it was trained\n"
    if origin.config is None:
        yield "The run is not on record beside the prompt file, so data, method and figures are not stated."
        yield ""
    yield "| | |\n|---|---|"
    for name, value in _rows(origin):
        yield f"| {name} | {value} |"
    yield ""


def _rows(origin: Origin) -> Iterator[tuple[str, str]]:
    yield "base model", _base(origin)
    yield "task", inline(origin.task)
    config, summary = origin.config, origin.summary or {}
    if config is not None:
        yield "data", f"{inline(origin.data_words)}{_hash(origin, 'training_data')}"
        clients = summary.get("clients") or config.partition.clients
        yield "partition", f"{inline(_partition(config))}, {clients} simulated clients{_hash(origin, 'partition')}"
        correction = "" if config.correction == "none" else f", client correction {code(config.correction)}"
        yield "method", f"{code(config.server.kind)}{correction}"
        yield "rounds", f"{origin.rounds}, {_cohort(config)}, seed {config.seed}"
        yield "privacy", _privacy(origin)
    if origin.client is not None:
        yield "client", f"the layers that were not exchanged are those of client {origin.client}"
    products = origin.metadata["model"].get("products")
    if products not in (None, "auto"):
        yield "products", f"of the backbone's layers in {products}"
    for file, digest in origin.plugins.items():
        yield "plug-in", f"{code(file)}, SHA-256 {code(digest)}"
    yield "versions", ", ".join(f"{inline(name)} {inline(version)}" for name, version in origin.versions.items())


def _base(origin: Origin) -> str:
    model = origin.metadata["model"]
    if origin.base is not None:
        words = code(origin.base)
    elif model.get("package") is not None:
        words = f"that of the package {code(model['package'])}"
    else:
        words = "the model that comes with fedsim" if model.get("path") is None else "a local folder"
    return words + _hash(origin, "weights")


def _hash(origin: Origin, name: str) -> str:
    digest = origin.contents.get(name)
    return f" (SHA-256 {code(digest)})" if digest else ""


def _partition(config: Any) -> str:
    kind = config.partition.kind
    alpha = "" if "alpha" in config.partition.useless else f", alpha {config.partition.alpha:g}"
    return f"{kind}{alpha}"


def _cohort(config: Any) -> str:
    if config.buffer is not None:
        return f"{config.buffer.size} arrivals a step"
    return f"{config.sampling.clients_per_round} clients a round"


def _privacy(origin: Origin) -> str:
    found = origin.privacy
    if found is None:
        return "none: no guarantee"
    # The best round is one of those that the guarantee covers.
    epsilon = f"ε = {found['epsilon']:.4g}, δ = {found['delta']:.4g}"
    multiplier = f"noise multiplier {found['noise_multiplier']:.4g}"
    total = (origin.summary or {}).get("rounds")
    return f"client-level, {epsilon} after {total} rounds, {multiplier}, accountant {inline(found['accountant'])}"


def _figures(origin: Origin) -> Iterator[str]:
    if not origin.figures:
        return
    yield "## Figures\n"
    yield "| metric | value | measured on |\n|---|---|---|"
    for figure in origin.figures:
        yield f"| {inline(figure.metric)} | {figure.value:.4f} | {inline(figure.on)} |"
    yield ""
    if origin.privacy is not None:
        yield "The guarantee rests on the following.\n"
        yield from (f"* {inline(sentence)}" for sentence in origin.privacy.get("assumptions", ()))
        yield ""


def _reproduction(origin: Origin) -> Iterator[str]:
    if not origin.commands:
        return
    yield "## To make it again\n"
    yield "```\n" + "\n".join(origin.commands) + "\n```\n"
    hidden = list(dict.fromkeys(origin.public[1]))
    if hidden:
        yield f"Paths to give: {', '.join(map(code, hidden))}. Data and weights are the same if their SHA-256 are."
    yield "The same versions on the same kind of processor give the same bytes.\n"


def _files(files: Sequence[str]) -> Iterator[str]:
    yield "## Files\n"
    yield f"`ro-crate-metadata.json` describes {', '.join(map(code, files))} with their SHA-256 (RO-Crate 1.1)."
