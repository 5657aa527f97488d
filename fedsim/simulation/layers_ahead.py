"""The exchanged layers as far as they are known before any client has scored them."""

from __future__ import annotations

from clients.tuners.config import ONE_PLACE
from fedsim.configuration.schema import Config
from fedsim.core.layout import VectorLayout
from server.selection import choose_layers, num_chosen


def known_ahead(config: Config, full: VectorLayout) -> tuple[int, ...] | None:
    """Return the exchanged layers if they depend on the config alone; None if scores or spectra choose them.

    Parameters
    ----------
    full
        Layout of all layers.
    """
    layers = config.layers
    if config.tuner.kind in ONE_PLACE or len(full.layers) < full.geometry.num_layers:
        return full.layers
    if layers.choose not in ("all", "fixed") and (layers.choose == "score" or layers.share_rule != "fixed"):
        return None
    return choose_layers(layers, full.geometry.num_layers, None, config.seed)


def stand_in(config: Config, full: VectorLayout, *, least: bool = False) -> tuple[int, ...]:
    """Return the exchanged layers, or as many others in their place.

    Of these, visits take longest: they are the lowest layers. Where spectra decide how many there are, it is all of them, or
    with ``least`` one.
    """
    if (known := known_ahead(config, full)) is not None:
        return known
    depth, layers = full.geometry.num_layers, config.layers
    if layers.share_rule != "fixed":
        return (0,) if least else tuple(range(depth))
    return tuple(range(num_chosen(layers.share, depth)))
