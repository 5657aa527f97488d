"""The arms of the ablation: what each one changes, as dotted overrides of the study's base."""

from __future__ import annotations

from benchmarks.studies import END_ALONE, Arm

CONFIG = "configs/minilm_sst2.yaml"
BASE = (
    "rounds=10",
    "partition.clients=32",
    "partition.alpha=0.3",
    "sampling.clients_per_round=8",
    "data.train_examples=1280",
    "data.max_length=64",
    "client.epochs=1",
    "client.correction=none",
    *END_ALONE,
)
"""Every client takes part two to three times, so that state kept between rounds has an effect."""
LEARNING_RATES = (0.01, 0.03)
TUNING = ("rounds=5",)
"""Overrides of the runs that tune."""
DATASETS = ("sst2", "mrpc", "rte")
TUNING_ROWS = 600
"""Rows of the training file that the learning rate is chosen on (at most a sixth of the file)."""
TUNING_SEED = 1000

_PUBLISHED_DEVICE = (
    "client.optimizer.kind=adamw_published",
    "client.optimizer.moments=keep",
    "client.schedule.kind=linear",
    "client.schedule.total_steps=all_data",
    "client.dropout=true",
    "layers.score_last=false",
    "layers.score_padding=keep",
    "prompt.position_offset=paper",
)
_ALL = ("layers.choose=all",)

ARMS = (
    Arm("FedPepTAO (half of the layers by score)", "method", ("server.momentum=0.5",), everywhere=True),
    Arm("FedAvg, all layers", "method", ("server.kind=fedavg", *_ALL), everywhere=True),
    Arm("FedAdam, all layers", "method", ("server.kind=fedadam", "server.lr=0.02", *_ALL), everywhere=True),
    Arm("published code", "method", ("server.kind=fedpeptao_published", *_PUBLISHED_DEVICE)),
    Arm("bottom half", "layers", ("layers.choose=bottom",)),
    Arm("random half", "layers", ("layers.choose=random",)),
    Arm("all layers", "layers", _ALL),
    Arm("a third by score", "layers", ("layers.share=0.33",)),
    Arm("momentum 0.9", "server", ("server.momentum=0.9",)),
    Arm("no momentum", "server", ("server.momentum=0",)),
    Arm("no control variates", "server", ("server.control=false",)),
    Arm("neither (FedAvg on the same layers)", "server", ("server.kind=fedavg",)),
    Arm(
        "published step, clients independent",
        "server",
        (
            "server.gradient=difference",
            "server.base=average",
            "server.momentum=0.9",
            "server.momentum_form=control_in_velocity",
            "server.control_form=scaffold",
            "server.control_timing=after",
            "server.coupling=independent",
            "server.debias=false",
            "server.lr=0.05",
            "server.lr_decay=0.99",
        ),
    ),
    Arm("control", "local correction", ("client.correction=control",)),
    Arm("preconditioner", "local correction", ("client.correction=preconditioner",)),
    Arm("proximal", "local correction", ("client.correction=proximal", "client.proximal_mu=0.01")),
    Arm("moments kept between rounds", "local optimizer", ("client.optimizer.moments=keep",)),
)
