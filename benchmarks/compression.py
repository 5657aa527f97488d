"""What a codec costs: nanoseconds an entry to write a message and to read it, beside a plain NumPy copy of the same vector.

A copy before and after each codec is its other side, so that a ratio is of one moment; both are medians of the repeats.

    python -m benchmarks.compression [--entries N] [--repeats N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fedsim.core.compression.blocks import Blocks
from fedsim.core.compression.codec import CODECS
from fedsim.core.compression.config import CodecConfig
from fedsim.core.compression.message import Packer

LAYERS = 6
SHARES = {"top_k": (0.1, 0.01), "random_k": (0.1, 0.01)}


def main() -> None:
    """Measure all codecs and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compression", description=__doc__)
    parser.add_argument("--entries", type=int, default=300_000, help="length of the vector")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = measure(arguments.entries, arguments.repeats)
    print(f"{arguments.entries:,} float32; ns an entry, and times a copy of the vector\n")
    print(f"{'codec':18}{'bytes/entry':>12}{'write':>8}{'read':>8}{'copy':>8}{'ratio':>8}")
    for row in rows:
        sizes = f"{row['bytes_per_entry']:12.3f}{row['write_ns']:8.2f}{row['read_ns']:8.2f}{row['copy_ns']:8.2f}"
        print(f"{row['codec']:18}{sizes}{row['ratio']:8.1f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2))


def measure(entries: int, repeats: int) -> list[dict[str, Any]]:
    """Return a row for each codec."""
    vector_F = (1e-3 * np.random.default_rng(0).standard_normal(entries)).astype(np.float32)
    blocks = Blocks.of_sizes([entries // LAYERS] * (LAYERS - 1) + [entries - entries // LAYERS * (LAYERS - 1)])
    rows = []
    for name, packer in _packers():
        rng, messages = np.random.default_rng(1), []

        def write(packer: Packer = packer, rng: np.random.Generator = rng, messages: list[bytes] = messages) -> None:
            messages[:] = [packer.pack(vector_F, blocks, rng)]

        def read(packer: Packer = packer, messages: list[bytes] = messages) -> None:
            packer.unpack(messages[0], blocks)

        seconds = _side_by_side((vector_F.copy, write, read), repeats)
        copy, written, reading = (each / entries * 1e9 for each in seconds)
        rows.append(
            {
                "codec": name,
                "bytes_per_entry": len(messages[0]) / entries,
                "write_ns": written,
                "read_ns": reading,
                "copy_ns": copy,
                "ratio": (written + reading) / copy if copy else float("nan"),
            }
        )
    return rows


def _packers() -> list[tuple[str, Packer]]:
    made = []
    for kind in CODECS:
        for share in SHARES.get(kind, (None,)):
            config = CodecConfig(kind=kind) if share is None else CodecConfig(kind=kind, share=share)
            name = kind if share is None else f"{kind} {share:.0%}"
            made.append((name, Packer(config.codec(), kind)))
    return [*made, ("int8 and zstd", Packer(CodecConfig(kind="int8").codec(), "int8", zstd=True))]


def _side_by_side(sides: tuple[Callable[[], Any], ...], repeats: int) -> list[float]:
    """Return the median seconds of each side; one call of all comes first and is not counted."""
    taken: list[list[float]] = [[] for _ in sides]
    for repeat in range(repeats + 1):
        for side, own in zip(sides, taken, strict=True):
            started = time.process_time()
            side()
            if repeat:
                own.append(time.process_time() - started)
    return [median(own) for own in taken]


if __name__ == "__main__":
    main()
