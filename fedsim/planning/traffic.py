"""What a real device would receive and send in a round, for ``fedsim plan``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsim.configuration.schema import Config
from fedsim.core.compression.blocks import Blocks
from fedsim.core.compression.codec import Plain
from fedsim.core.compression.links import Link, most_bytes, sent_down, sent_up
from fedsim.core.compression.message import Packer
from fedsim.display.report import format_bytes
from fedsim.planning.memory import MemoryEstimate


def traffic_rows(config: Config, memory: MemoryEstimate) -> list[tuple[str, str]]:
    """Describe both ways."""
    traffic = config.traffic
    most = "" if config.layers.share_rule == "fixed" else "at most "
    vectors = memory.in_turn or (memory.exchanged,)
    up, down = config.uplink, config.downlink
    if up is None:
        sent = most + _a_round([traffic.bytes_up(num_bytes) for num_bytes in vectors])
    else:
        sent = "at most " + _a_round(bytes_sent(config, memory, up))
    if down is None:
        received = most + _a_round([traffic.bytes_down(num_bytes, memory.exchanged) for num_bytes in vectors])
    else:
        whole, changes = bytes_received(config, memory, down)
        received = f"at most {format_bytes(whole)}"
        if not down.exact:
            received += f"; {format_bytes(changes)} for every round since its last one, where that is less"
    ways = ((received, traffic.down, config.compression.down.kind), (sent, traffic.up, config.compression.up.kind))
    links = (down, up)
    rows = [
        f"{size} ({', '.join(names)}{_as(kind, link)})" for (size, names, kind), link in zip(ways, links, strict=True)
    ]
    read = "sums over a round's clients alone: secure aggregation fits"
    if not config.sums_are_enough:
        read = "each client's vectors: secure aggregation does not fit"
    return [("a client receives", rows[0]), ("a client sends", rows[1]), ("the server reads", read)]


def bytes_sent(config: Config, memory: MemoryEstimate, link: Link) -> list[int]:
    """Return the bytes that a device sends at most, in a round, or in one of each turn; without zstd and top_k always."""
    corrections = config.method.corrections
    names = sent_up(corrections, config.client)
    return [most_bytes(link, names, corrections, Blocks.of(layout), _itemsize(config)) for layout in memory.travelling]


def bytes_received(config: Config, memory: MemoryEstimate, link: Link) -> tuple[int, int]:
    """Return the bytes that a device receives at most: of the arrays themselves, and of one round's changes."""
    corrections = config.method.corrections
    names = sent_down(corrections, config.client, config.method.serves)
    assert memory.whole is not None
    blocks = Blocks.of(memory.whole)
    whole = len(names) * Packer(Plain(), "none").most_bytes(blocks, _itemsize(config))
    return whole, most_bytes(link, names, corrections, blocks, _itemsize(config))


def _as(kind: str, link: Link | None) -> str:
    """Describe a link, behind the names of what travels."""
    if link is None:
        return ""
    return f"; {' and '.join([kind] * (kind != 'none') + ['zstd'] * link.changes.zstd)}"


def _a_round(bytes_in_turn: Sequence[int]) -> str:
    """Describe the bytes of a round, or those of odd and of even rounds."""
    if len(set(bytes_in_turn)) == 1:
        return f"{format_bytes(bytes_in_turn[0])} a round"
    odd, even = map(format_bytes, bytes_in_turn)
    return f"{odd} in odd rounds, {even} in even rounds"


def _itemsize(config: Config) -> int:
    return np.dtype(config.model.exchange_dtype).itemsize
