"""How the layers of a model are cut into runs, one for each GPU of an actor; torch is not needed to plan it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from fedsim.core.errors import ModelError


def split(outside_bytes: int, layer_bytes: Sequence[int], devices: int) -> tuple[int, ...]:
    """Return how many layers each device holds: runs in the order of the layers, whose largest device is as small as can be.

    Of the ways with the same largest device the most even one is taken, measured by squares of bytes.

    Parameters
    ----------
    outside_bytes
        Bytes of what is in no layer (embeddings, last norm, LM head): the first device holds it.
    layer_bytes
        Bytes of each layer, from the lowest.
    devices
        Number of devices. The first may be left without layers, if what it holds besides outweighs them.

    Raises
    ------
    ModelError
        If there are fewer layers than devices that need one.
    """
    layers = len(layer_bytes)
    if layers < devices:
        raise ModelError(
            f"a model of {layers} layers cannot be over {devices} GPUs, each of which holds whole layers; set "
            f"ray.num_gpus_per_actor={layers}"
        )
    ends = [0, *accumulate(layer_bytes)]
    # (largest device, sum of squares, layers of each device) of the best way to put the first n layers on some devices.
    # The largest device of a longer way follows from those of its parts, so that ways need to be known by their ends alone.
    ways = [_Way.of(outside_bytes + ends[stop], (stop,)) for stop in range(layers + 1)]
    for device in range(1, devices):
        ways = [
            min(
                (ways[start].then(ends[stop] - ends[start], stop - start) for start in range(device - 1, stop)),
                default=_NONE,
            )
            for stop in range(layers + 1)
        ]
    return ways[layers].counts


class _Way(tuple[float, float, tuple[int, ...]]):
    """A way to cut layers, comparable: the smaller the better."""

    __slots__ = ()

    @classmethod
    def of(cls, nbytes: float, counts: tuple[int, ...]) -> _Way:
        return cls((nbytes, nbytes**2, counts))

    def then(self, nbytes: float, count: int) -> _Way:
        largest, squares, counts = self
        return _Way((max(largest, nbytes), squares + nbytes**2, (*counts, count)))

    @property
    def counts(self) -> tuple[int, ...]:
        return self[2]


_NONE = _Way((float("inf"), float("inf"), ()))
