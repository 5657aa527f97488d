"""What is compared: prompt tuning of MiniLM (W1) and of a tiny random model (W2), and carrying vectors (W3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.venvs import ROOT
from fedsim.configuration.schema import Config, read_config

_COMMON = (
    "partition.clients=100",
    "sampling.clients_per_round=10",
    "client.epochs=2",
    "client.batch_size=8",
    "client.threads=1",
    "server.kind=fedavg",
    "evaluation.every=1",
    "ray.num_cpus=2",
    "tracking.plots=false",
    "checkpoint.every=1000000",
)
"""FedAvg, evaluated after every round, by two processes with one thread each."""
_UPPER = ("layers.choose=fixed", "layers.fixed=[3,4,5]")
"""Prompted layers; fedsim caches the output of the layers below them."""


@dataclass(frozen=True)
class Case:
    """Prompt tuning that all sides do."""

    name: str
    config: str
    overrides: tuple[str, ...]
    fedsim_only: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(name, further overrides) of runs of fedsim beside the one that does the same work as the peers."""

    def read(self, overrides: tuple[str, ...] = ()) -> Config:
        """Return the config of the work."""
        return read_config(ROOT / self.config, [*_COMMON, *self.overrides, *overrides])

    def words(self, overrides: tuple[str, ...] = ()) -> list[str]:
        """Return config and overrides as words of the command ``fedsim run``."""
        return [str(ROOT / self.config), *_COMMON, *self.overrides, *overrides]


@dataclass(frozen=True)
class Carrying:
    """Orchestration alone: every client receives a float32 vector, adds one and returns it."""

    clients: int
    elements: int

    @property
    def name(self) -> str:
        """The case in words."""
        return f"W3 {self.clients:,} clients x {self.elements:,} elements"


W3 = tuple(Carrying(clients, elements) for elements in (25_000, 1_000_000) for clients in (100, 1000))


def minilm(data: Path) -> Case:
    """Return W1: MiniLM on SST-2, all six layers prompted; in fedsim also the upper three, with the layers below cached."""
    overrides = (f"data.path={data.absolute()}", "layers.choose=all")
    upper = ("layers 3-5, layers below cached", _UPPER)
    return Case("W1 MiniLM/SST-2", "configs/minilm_sst2.yaml", overrides, (upper,))


def minilm_upper(data: Path) -> Case:
    """Return W1u: as W1, but all sides prompt the layers 3 to 5 only."""
    overrides = (f"data.path={data.absolute()}", *_UPPER)
    return Case("W1u MiniLM/SST-2, layers 3-5", "configs/minilm_sst2.yaml", overrides)


def tiny(folder: Path) -> Case:
    """Return W2: a random model of 4 layers, hidden size 128, that is written to ``folder``."""
    from transformers import RobertaConfig, RobertaModel, set_seed
    from transformers.utils.logging import disable_progress_bar

    from clients.backbone.loading import load_tokenizer
    from clients.config import ModelConfig

    tokenizer = load_tokenizer(ModelConfig())
    disable_progress_bar()
    set_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=130,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    RobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    overrides = (f"model.path={folder}", "model.head.kind=classifier", "layers.choose=all", "client.optimizer.lr=0.01")
    return Case("W2 tiny model", "configs/quickstart.yaml", overrides)
