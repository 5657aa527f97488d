"""RO-Crate 1.1 metadata of an adapter's folder: its files, and the run that made them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedsim.prompts.provenance.origin import CONFIG, Origin

NAME = "ro-crate-metadata.json"
_CONTEXT = ["https://w3id.org/ro/crate/1.1/context", {"sha256": "https://w3id.org/ro/terms/workflow-run#sha256"}]
_FORMATS = {
    ".json": "application/json",
    ".md": "text/markdown",
    ".yaml": "application/yaml",
    ".safetensors": "application/octet-stream",
}
_DESCRIBED = {
    "README.md": "Model card: how to use the adapter, and how it was trained",
    "adapter_config.json": "Configuration of the adapter, as PEFT reads it",
    "adapter_model.safetensors": "The adapter's arrays",
    "head.safetensors": "The classifier that was trained with the adapter",
    CONFIG: "The run's configuration, without paths of the machine that it ran on",
}
_RUN, _SOFTWARE, _BASE, _DATA = "#run", "#fedsim", "#base-model", "#data"
_LICENSE = "#license"

Entity = dict[str, Any]


def write_crate(folder: Path, origin: Origin, title: str) -> None:
    """Write ``ro-crate-metadata.json`` of all files in a folder."""
    graph = list(_graph(folder, origin, title))
    text = json.dumps({"@context": _CONTEXT, "@graph": graph}, indent=2, ensure_ascii=False)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")


def _graph(folder: Path, origin: Origin, title: str) -> Iterator[Entity]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != NAME)
    figures, parameters = list(_figures(origin)), list(_parameters(origin))
    yield {
        "@id": NAME,
        "@type": "CreativeWork",
        "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
        "about": {"@id": "./"},
    }
    yield {
        "@id": "./",
        "@type": "Dataset",
        "name": f"{title} for the task {origin.task}",
        "description": f"An adapter for PEFT, trained by federated learning on simulated clients with fedsim: {origin.kind}.",
        "datePublished": (origin.ended or datetime.now(UTC).isoformat())[:10],
        "license": {"@id": _LICENSE},
        "hasPart": [{"@id": path.name} for path in files],
        "mentions": {"@id": _RUN},
        **({"variableMeasured": _references(figures)} if figures else {}),
    }
    yield {
        "@id": _LICENSE,
        "@type": "CreativeWork",
        "name": "Not stated",
        "description": "fedsim does not know the license: that of an adapter depends on its base model and its data.",
    }
    yield from map(_file, files)
    yield _action(origin, files, parameters)
    yield {
        "@id": _SOFTWARE,
        "@type": "SoftwareApplication",
        "name": "fedsim",
        "softwareVersion": origin.versions["fedsim"],
        "version": origin.versions["fedsim"],
        "softwareRequirements": ", ".join(f"{name} {version}" for name, version in origin.versions.items()),
    }
    yield _base(origin)
    yield _data(origin)
    yield from parameters
    yield from figures


def _file(path: Path) -> Entity:
    return {
        "@id": path.name,
        "@type": "File",
        "name": path.name,
        "description": _DESCRIBED.get(path.name, path.name),
        "encodingFormat": _FORMATS.get(path.suffix, "application/octet-stream"),
        "contentSize": str(path.stat().st_size),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def _action(origin: Origin, files: list[Path], parameters: list[Entity]) -> Entity:
    made = [path for path in files if path.name != CONFIG]
    inputs = [{"@id": _BASE}, {"@id": _DATA}, *({"@id": CONFIG} for path in files if path.name == CONFIG)]
    return {
        "@id": _RUN,
        "@type": "CreateAction",
        "name": f"Federated training for the task {origin.task}",
        "description": "; ".join(origin.commands) or "The run is not on record.",
        "instrument": {"@id": _SOFTWARE},
        "object": [*inputs, *_references(parameters)],
        "result": [{"@id": path.name} for path in made],
        "actionStatus": {"@id": "http://schema.org/CompletedActionStatus"},
        **({"endTime": origin.ended} if origin.ended else {}),
    }


def _base(origin: Origin) -> Entity:
    weights = origin.contents.get("weights")
    return {
        "@id": _BASE,
        "@type": "CreativeWork",
        "name": origin.base or "The base model",
        **({"url": f"https://huggingface.co/{origin.base}"} if origin.base else {}),
        **({"sha256": weights} if weights else {}),
    }


def _data(origin: Origin) -> Entity:
    digest = origin.contents.get("training_data")
    return {
        "@id": _DATA,
        "@type": "CreativeWork",
        "name": f"Training data of the task {origin.task}",
        "description": origin.data_words,
        **({"url": f"https://huggingface.co/datasets/{origin.dataset}"} if origin.dataset else {}),
        **({"sha256": digest} if digest else {}),
    }


def _parameters(origin: Origin) -> Iterator[Entity]:
    config = origin.config
    found: dict[str, Any] = {"products": origin.metadata["model"].get("products")}
    if config is not None:
        found |= {
            "method": config.server.kind,
            "partition": config.partition.kind,
            "rounds": origin.rounds,
            "seed": config.seed,
            "config_hash": (origin.summary or {}).get("config_hash"),
        }
    if origin.privacy is not None:
        found |= {key: origin.privacy[key] for key in ("epsilon", "delta")}
    for name, digest in origin.plugins.items():
        found[f"plug-in {name}"] = digest
    for number, (name, value) in enumerate(found.items()):
        if value is not None:
            yield {"@id": f"#parameter-{number}", "@type": "PropertyValue", "name": name, "value": value}


def _figures(origin: Origin) -> Iterator[Entity]:
    for number, figure in enumerate(origin.figures):
        yield {
            "@id": f"#figure-{number}",
            "@type": "PropertyValue",
            "name": figure.metric,
            "value": figure.value,
            "description": f"Measured on {figure.on}",
        }


def _references(entities: list[Entity]) -> list[Entity]:
    return [{"@id": entity["@id"]} for entity in entities]
