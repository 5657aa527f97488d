"""Rules over keys of several sections: combinations that cannot work together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.configuration.buffered import check_buffered
from fedsim.configuration.generation_rules import check_generation
from fedsim.configuration.privacy_rules import check_privacy
from fedsim.configuration.world_rules import check_devices, check_world
from fedsim.core.compression.links import is_changed, problem_down, problem_up
from fedsim.core.method import METHODS, check_names

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config


def check_combinations(config: Config) -> None:
    """Refuse combinations of keys of several sections that make no sense together.

    Raises
    ------
    ValueError
        Naming the keys, their values, and what would be right.
    """
    client, partition = config.client, config.partition
    cohort = config.sampling.clients_per_round
    if partition.clients is not None and cohort > partition.clients and config.buffer is None:
        raise ValueError(
            f"sampling.clients_per_round={config.sampling.clients_per_round} is more than "
            f"partition.clients={partition.clients}; set "
            f"sampling.clients_per_round={partition.clients} or less"
        )
    check_world(config)
    check_buffered(config)
    check_devices(config)
    _check_method(config)
    _check_halves(config)
    _check_search(config)
    _check_attackers(config)
    _check_compression(config)
    check_privacy(config)
    if config.executor == "ray" and config.model.device == "cuda" and not config.ray.num_gpus_per_actor:
        raise ValueError(
            "model.device=cuda needs a share of a GPU for each actor, but ray.num_gpus_per_actor is 0; set "
            "ray.num_gpus_per_actor=1, or a fraction such as 1/4, or model.device=auto"
        )
    if config.executor == "ray" and config.model.offload and not config.ray.num_gpus_per_actor:
        raise ValueError(
            "model.offload=true brings layers to an actor's GPU, but ray.num_gpus_per_actor is 0; set "
            "ray.num_gpus_per_actor=1, or model.offload=false"
        )
    if config.ray.num_gpus_per_actor > 1 and config.model.compile:
        raise ValueError(
            f"ray.num_gpus_per_actor={config.ray.num_gpus_per_actor:g} spreads the layers over GPUs, which has not been tried "
            "with compiled layers; set model.compile=false"
        )
    if partition.kind == "by_column" and partition.column is None:
        raise ValueError("partition.kind=by_column needs partition.column, the column whose values are the clients")
    if (
        client.optimizer.moments == "keep"
        and client.schedule.kind != "constant"
        and client.schedule.total_steps is None
    ):
        raise ValueError(
            f"client.schedule.kind={client.schedule.kind} with client.optimizer.moments=keep needs "
            "client.schedule.total_steps, because the schedule continues over all rounds of a client"
        )
    if config.evaluation.select_on == "holdout" and not partition.holdout_fraction:
        raise ValueError(
            "evaluation.select_on=holdout needs examples that clients hold out, but partition.holdout_fraction=0; set "
            "partition.holdout_fraction=0.1, or evaluation.select_on=validation"
        )
    if config.evaluation.personalised_start and not partition.holdout_fraction:
        raise ValueError(
            "evaluation.personalised_start=true needs examples that clients hold out, but partition.holdout_fraction=0; set "
            "partition.holdout_fraction=0.1, or leave evaluation.personalised_start out"
        )
    if config.model.compile and config.tuner.kind != "prefix":
        raise ValueError(
            f"model.compile=true needs tuner.kind=prefix, but tuner.kind={config.tuner.kind}; set model.compile=false"
        )
    if config.tuner.start == "label_words" and config.model.head.kind != "verbalizer":
        raise ValueError(
            f"tuner.start=label_words needs label words, but with model.head.kind={config.model.head.kind} there are none; set "
            "tuner.start=vocabulary, or model.head.kind=verbalizer"
        )
    check_generation(config)
    if config.data.source == "files" and config.data.path is None:
        raise ValueError("data.source=files needs data.path, a folder with train.* and validation.*")


def _check_method(config: Config) -> None:
    """Refuse a method, corrections and a robust rule that do not work together."""
    server, chosen = config.server, config.client.correction
    kind = METHODS[server.kind]
    if kind.allowed is not None and config.correction not in kind.allowed:
        raise ValueError(
            f"server.kind={server.kind} needs client.correction={' or '.join(kind.allowed)} (or auto), not {chosen}"
            + (f"; {kind.instead}" if kind.instead else "")
        )
    method = config.method
    check_names(method.corrections)
    for part in method.corrections:
        if not set(part.reads) <= set(method.serves):
            raise ValueError(
                f"client.correction={config.correction} needs {part.needs}, which server.kind={server.kind} does not keep; "
                f"use {part.kept_by}"
            )
    rule = config.rule
    if rule is None:
        return
    if method.combining is not None:
        auto = f" (auto with server.kind={server.kind})" if chosen == "auto" else ""
        raise ValueError(
            f"server.aggregation={server.aggregation} compares the clients' vectors, but client.correction="
            f"{config.correction}{auto} {method.combining.combines}; set client.correction=none, or control"
        )
    if (problem := rule.problem(config.sampling.clients_per_round)) is not None:
        raise ValueError(f"sampling.clients_per_round={config.sampling.clients_per_round}, but {problem}")


def _check_halves(config: Config) -> None:
    """Refuse what has no meaning where rounds train A and B in turn, or clients keep one of them."""
    tuner, layers = config.tuner, config.layers
    if tuner.train != "alternate" and tuner.exchange == "both" and not tuner.exact:
        return
    key = "tuner.train=alternate" if tuner.train == "alternate" else f"tuner.exchange={tuner.exchange}"
    key = "tuner.exact=true" if tuner.exact else key
    server, step = config.server, config.method.config
    plain = step.lr == step.lr_decay == 1 and server.aggregation == "mean"
    if tuner.exact and not (plain and config.correction == "none"):
        raise ValueError(
            "tuner.exact=true makes the mean of the clients' models exact, so it needs server.lr=1, server.lr_decay=1, "
            "server.aggregation=mean and client.correction=none"
        )
    if layers.unselected == "local":
        raise ValueError(f"{key} does not go with personal layers; set layers.unselected=none")
    if layers.share_rule != "fixed":
        raise ValueError(
            f"{key} does not go with layers.share_rule={layers.share_rule}, whose warm-up knows neither; set "
            "layers.share_rule=fixed and layers.share"
        )
    if tuner.train == "alternate" and config.client.optimizer.moments == "keep":
        raise ValueError(f"{key} changes what is trained after every round; set client.optimizer.moments=restart")


def _check_search(config: Config) -> None:
    """Refuse what needs gradients where there are none, and what a search cannot cope with."""
    key, server = "client.optimizer.kind=cma_es", config.server
    if config.client.optimizer.kind != "cma_es":
        if server.kind == "fedbpt":
            raise ValueError(f"server.kind=fedbpt combines searches without gradients; set {key}")
        return
    if not config.tuner.projection:
        raise ValueError(
            f"{key} searches a few hundred numbers, so it needs tuner.kind=soft_prompt and tuner.projection, for example 500"
        )
    if config.model.head.kind == "classifier":
        raise ValueError(f"{key} cannot train a classifier; set model.head.kind=verbalizer")
    if config.model.gradient_checkpointing:
        raise ValueError(
            f"model.gradient_checkpointing=true computes layers again for gradients, which {key} does not have; set "
            "model.gradient_checkpointing=false"
        )
    if any(part.needs_gradients for part in config.method.corrections):
        chosen = "" if config.client.correction == "auto" else f" with client.correction={config.client.correction}"
        raise ValueError(
            f"server.kind={server.kind}{chosen} corrects gradients, which {key} does not have; set server.kind=fedbpt, or "
            "fedavg with client.correction=none"
        )
    if server.kind == "fedbpt" and server.aggregation != "mean":
        raise ValueError(
            f"server.kind=fedbpt learns from the mean of the clients' squared steps, for which server.aggregation="
            f"{server.aggregation} has no robust form; set server.aggregation=mean, or server.kind=fedavg"
        )


def _check_attackers(config: Config) -> None:
    named, population = config.attack.clients or (), config.partition.clients
    if population is None:  # known only after the data are read
        return
    many, largest = (named, named - 1) if isinstance(named, int) else (len(named), max(named, default=0))
    if many > population or largest >= population:
        given = f"names {many} clients" if isinstance(named, int) else f"names client {largest}"
        raise ValueError(
            f"attack.clients {given}, but partition.clients={population}; give at most that many, with ids from 0 to "
            f"{population - 1}"
        )


def _check_compression(config: Config) -> None:
    """Refuse codecs that cannot write what the method sends."""
    corrections, client, compression = config.method.corrections, config.client, config.compression
    up, down = config.uplink, config.downlink
    auto = f" (auto with server.kind={config.server.kind})" if client.correction == "auto" else ""
    if up is not None and (problem := problem_up(up, compression.up.kind, corrections, client)) is not None:
        raise ValueError(problem.format(correction=f"client.correction={config.correction}{auto}"))
    if down is not None and (problem := problem_down(down, compression.down.kind, corrections, client)) is not None:
        raise ValueError(problem)
    if config.tuner.exact and is_changed(down):
        raise ValueError(
            "tuner.exact=true gives every device the exact mean of the clients' models, but compression.down.kind="
            f"{compression.down.kind} changes what the server sends; set compression.down.kind=none"
        )
