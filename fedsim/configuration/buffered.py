"""What buffered asynchronous rounds are not defined for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.core.errors import listed

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config


def check_buffered(config: Config) -> None:
    """Refuse what buffered rounds are not defined for, or have no use for.

    Raises
    ------
    ValueError
        Naming the keys, their values, and what would be right.
    """
    buffer = config.buffer
    if buffer is None:
        return
    clients = config.partition.clients
    if clients is not None and buffer.concurrency > clients:
        raise ValueError(
            f"buffer.concurrency={buffer.concurrency} is more than partition.clients={clients}; set "
            f"buffer.concurrency={clients} or less"
        )
    for given, sentence in _refusals(config):
        if given:
            raise ValueError(f"buffer does not go with {sentence}")
    if (problem := _more_than_the_mean(config)) is not None:
        raise ValueError(problem)


def _refusals(config: Config) -> list[tuple[bool, str]]:
    """Return what is refused by its key alone, whether it is given, and the end of the sentence."""
    sampling, server, tuner, world = config.sampling, config.server, config.tuner, config.world
    return [
        (
            sampling.kind not in ("uniform", "by_size", "round_robin"),
            f"sampling.kind={sampling.kind}, which chooses a whole cohort at once; set sampling.kind=uniform, by_size or "
            "round_robin",
        ),
        (
            bool(sampling.dropout),
            f"sampling.dropout={sampling.dropout:g}, which belongs to the rounds of a cohort; set sampling.dropout=0, and "
            "world.devices.availability for clients that go out of reach",
        ),
        (
            sampling.delay.deadline_seconds is not None,
            "sampling.delay.deadline_seconds: no step waits for a client; leave it out, or set buffer.max_staleness",
        ),
        (
            world.deadline_seconds is not None,
            "world.deadline_seconds: no step waits for a client; leave it out, or set buffer.max_staleness",
        ),
        (
            bool(world.over_selection),
            "world.over_selection: no step waits for a client; leave it out, and set buffer.concurrency",
        ),
        (
            server.aggregation != "mean",
            f"server.aggregation={server.aggregation}, which compares vectors that begin from one state; set "
            "server.aggregation=mean",
        ),
        (
            tuner.train == "alternate",
            "tuner.train=alternate, in which rounds train A and B in turn: changes of A and of B would meet in one step; set "
            "tuner.train=both",
        ),
        (
            bool(tuner.exact),
            "tuner.exact=true, which makes the mean of models exact that begin from one state; set tuner.exact=false",
        ),
        (
            sampling.draw == "poisson",
            "sampling.draw=poisson, which draws whole cohorts of any size; set sampling.draw=fixed",
        ),
        (
            config.compression.down.kind != "none",
            f"compression.down.kind={config.compression.down.kind}: the server sends changes from one round's state to the "
            "next, and clients begin from several; set compression.down.kind=none",
        ),
        (
            config.downlink is not None,
            f"compression.lossless={config.compression.lossless}, which also packs what devices receive: that is counted from "
            "one round's state to the next, and clients begin from several; set compression.lossless=none",
        ),
        (
            config.client.on_failure == "drop" and config.clients_per_step == 1,
            "client.on_failure=drop where buffer.size=1: a step whose only client failed would be none; set buffer.size=2 or "
            "more, or client.on_failure=raise",
        ),
    ]


def _more_than_the_mean(config: Config) -> str | None:
    """Return why the method reads more than the mean of the clients' vectors, None if it does not."""
    method = config.method
    right = "use server.kind=fedavg, fedavgm, fedadam, fedyogi, fedadagrad or fedprox, with client.correction=none or proximal"
    if method.one_by_one:
        return f"buffer does not go with {method.in_turn}; {right}"
    for part in method.corrections:
        names = part.spoken((*part.reads, *part.kept, *part.tallies, *part.sums))
        if names:
            chosen = "" if config.client.correction == "auto" else f" with client.correction={config.client.correction}"
            return (
                f"buffer is defined for methods whose server reads nothing but the mean of the clients' vectors, but "
                f"server.kind={config.server.kind}{chosen} also needs {listed(names)}, which stand for the state that a round "
                f"starts from; {right}"
            )
    return None
