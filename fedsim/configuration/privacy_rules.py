"""What a private run refuses: everything that tells more of clients' data than the noisy sum of clipped changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from clients.tuners.config import ONE_PLACE
from fedsim.core.errors import listed
from fedsim.core.messages import VECTOR

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config


def check_privacy(config: Config) -> None:
    """Refuse what would break the guarantee of the section ``privacy`` (docs/privacy.md has the reasons at length).

    Raises
    ------
    ValueError
        Naming the key, what it would tell, and what would be right.
    """
    if config.privacy is None:
        return
    for problems in (_server(config), _draws(config), _reads_of_client_data(config), _noise(config)):
        if (problem := next(problems, None)) is not None:
            raise ValueError(problem)


def _server(config: Config) -> Iterator[str]:
    server, method, chosen = config.server, config.method, config.correction
    because = "privacy clips and sums the clients' changes alone"
    plain = (
        "set server.kind=fedavg, fedavgm, fedadam, fedyogi, fedadagrad, fedprox or feddyn with client.correction=auto"
    )
    if method.one_by_one:
        yield f"{because}, but server.kind={server.kind} takes clients one by one; {plain}"
    if config.tuner.exact:
        yield f"{because}, but tuner.exact=true needs each client's factors; set tuner.exact=false"
    names = [word for part in method.corrections for word in part.spoken(name for name in part.sums if name != VECTOR)]
    if method.combining is not None:
        yield f"{because}, but client.correction={chosen} {method.combining.combines}: sums that are not clipped; {plain}"
    if names:
        who = f"server.kind={server.kind}" if chosen == "none" else f"client.correction={chosen}"
        yield f"{because}, but {who} also sums each client's {listed(names)}; {plain}"
    if server.aggregation != "mean":
        yield (
            f"{because}, but server.aggregation={server.aggregation} reads each client's vector; set server.aggregation=mean"
        )
    if server.weighting != "uniform":
        yield (
            f"privacy bounds what one client changes, but server.weighting={server.weighting} weighs clients by their data; "
            "set server.weighting=uniform"
        )
    if config.attack.kind != "none":
        yield f"privacy counts on clients that clip, but attack.kind={config.attack.kind} has liars; set attack.kind=none"
    if config.client.on_failure == "drop":
        yield (
            "privacy counts on a cohort that does not depend on clients' data, but client.on_failure=drop leaves out those "
            "whose training fails on theirs; set client.on_failure=raise"
        )


def _draws(config: Config) -> Iterator[str]:
    sampling = config.sampling
    if sampling.kind != "uniform":
        yield (
            f"privacy is amplified by uniform draws alone, not by sampling.kind={sampling.kind}; set sampling.kind=uniform"
        )
    if sampling.delay.deadline_seconds is not None:
        yield (
            "privacy counts on a cohort that does not depend on clients' data, but with sampling.delay.deadline_seconds a "
            "client with many examples is late; set sampling.delay.deadline_seconds=null"
        )
    for key, why in {
        "world.devices": "clients are drawn by who is available, not uniformly",
        "world.deadline_seconds": "a client with many examples is late",
        "world.over_selection": "who is left out depends on how many examples clients have",
        "buffer": "a client's weight depends on its staleness, and a step takes in more than one draw",
    }.items():
        if _value(config, key):
            yield f"privacy has no accounting for {key}: {why}; set {key}=null"


def _reads_of_client_data(config: Config) -> Iterator[str]:
    layers, evaluation, public = config.layers, config.evaluation, config.privacy.public if config.privacy else ()
    if config.tuner.kind not in ONE_PLACE and layers.choose == "score":
        yield (
            "layers.choose=score computes scores from clients' examples, without noise, which privacy has to refuse; set "
            "layers.choose=all, top, bottom, random or fixed"
        )
    if config.tuner.kind not in ONE_PLACE and layers.choose != "all" and layers.share_rule != "fixed":
        yield (
            f"layers.share_rule={layers.share_rule} computes spectra of clients' losses, without noise, which privacy has to "
            "refuse; set layers.share_rule=fixed and layers.share"
        )
    if config.partition.holdout_fraction:
        yield (
            "partition.holdout_fraction above 0 has a run end with metrics on clients' own examples, without noise, which "
            "privacy has to refuse; set partition.holdout_fraction=0"
        )
    if evaluation.personalised_every is not None or evaluation.personalised_start:
        key = "personalised_start" if evaluation.personalised_start else "personalised_every"
        yield (
            f"evaluation.{key} reports metrics on clients' own examples, without noise, which privacy has to refuse; leave "
            f"evaluation.{key} out"
        )
    if evaluation.select_on == "holdout":
        yield (
            "evaluation.select_on=holdout chooses and stops by clients' own examples, without noise, which privacy has to "
            "refuse; set evaluation.select_on=validation"
        )
    if config.client.schedule.kind != "constant" and config.client.schedule.total_steps == "all_data":
        yield (
            "client.schedule.total_steps=all_data tells each client how many examples all others have, which privacy has to "
            "refuse; give client.schedule.total_steps a number"
        )
    if config.data.validation_from_train is not None and "validation" not in public:
        yield (
            "data.validation_from_train reports metrics on examples that would be clients', without noise, which privacy has "
            "to refuse; give validation examples of the server's own, or state by privacy.public=[validation] that these are"
        )
    used = {
        "validation": config.data.validation_from_train is not None,
        "start": any(_value(config, key) for key in ("prompt.start_from", "tuner.start_from")),
    }
    if unused := [name for name in public if not used[name]]:
        yield (
            f"privacy.public names {unused[0]}, which has no use here: "
            + ("data.validation_from_train is null" if unused[0] == "validation" else "there is no start_from")
            + f"; leave {unused[0]} out"
        )
    for key in ("prompt.start_from", "tuner.start_from"):
        if _value(config, key) and "start" not in public:
            yield (
                f"privacy does not know what {key} was trained on; state by privacy.public=[start] that it was no data of "
                f"these clients, or leave {key} out"
            )


def _noise(config: Config) -> Iterator[str]:
    privacy, sampling = config.privacy, config.sampling
    assert privacy is not None, "checked by the caller"
    if privacy.noise == "clients" and sampling.draw == "poisson":
        yield (
            "privacy.noise=clients needs to know how many shares come, but with sampling.draw=poisson a cohort has any size; "
            "set privacy.noise=server, or sampling.draw=fixed"
        )
    if privacy.noise == "clients" and sampling.dropout:
        yield (
            "privacy.noise=clients needs the share of every client of the cohort, but with sampling.dropout some do not come; "
            "set privacy.noise=server, or sampling.dropout=0"
        )
    if privacy.noise == "clients" and config.compression.up.kind != "none":
        yield (
            "privacy.noise=clients adds noise to what compression.up has packed, so it would not travel compressed; set "
            "privacy.noise=server, or compression.up.kind=none"
        )
    if privacy.adaptive is not None and privacy.noise_multiplier is not None:
        bits = privacy.adaptive.bit_noise or sampling.clients_per_round / 20
        if privacy.noise_multiplier >= 2.0 * bits:
            yield (
                f"privacy.adaptive.bit_noise is {bits:g}, so the bits alone would tell more than the sums; set it above "
                f"{privacy.noise_multiplier / 2.0:g}, half of privacy.noise_multiplier"
            )


def _value(config: Any, key: str) -> Any:
    """Return the value of a dotted key; None where its section is null."""
    for name in key.split("."):
        config = getattr(config, name, None)
    return config
