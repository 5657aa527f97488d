"""Ascending positions as bytes: a bitmap, or the gaps between them, whichever is shorter.

Shape suffixes: F entries of a vector, K positions, N bytes.
"""

from __future__ import annotations

import numpy as np

_BITMAP, _GAPS = 0, 1
_BITS = 7
"""Bits of a gap in a byte; the eighth says that more follow (LEB128)."""


def positions_to_bytes(positions_K: np.ndarray, size: int) -> bytes:
    """Return one byte that names the form, and the positions in a vector of ``size`` entries."""
    gaps = _gaps_to_bytes(positions_K)
    if len(gaps) < -(-size // 8):
        return bytes([_GAPS]) + gaps
    marked_F = np.zeros(size, np.uint8)
    marked_F[positions_K] = 1
    return bytes([_BITMAP]) + np.packbits(marked_F).tobytes()


def positions_from_bytes(data: memoryview, size: int) -> np.ndarray:
    """Return the int64 positions."""
    rest_N = np.frombuffer(data, np.uint8)[1:]
    if data[0] == _BITMAP:
        return np.flatnonzero(np.unpackbits(rest_N, count=size))
    # A gap is the sum of its bytes' bits, each shifted by its place in the gap.
    starts_K = np.flatnonzero(np.concatenate([[True], rest_N[:-1] < 128])) if len(rest_N) else np.empty(0, np.int64)
    place_N = np.arange(len(rest_N)) - np.repeat(starts_K, np.diff(starts_K, append=len(rest_N)))
    bits_N = (rest_N & 127).astype(np.int64) << (_BITS * place_N)
    gap_K = np.add.reduceat(bits_N, starts_K) if len(starts_K) else bits_N
    return np.cumsum(gap_K + 1) - 1


def most_bytes(size: int, count: int) -> int:
    """Return the length of the longest form of ``count`` positions: a bitmap's, or that of the largest gaps there can be."""
    gaps, longer = count, size >> _BITS
    while longer:  # gaps of 128 and more, of 128^2 and more ...: together they are no longer than the vector
        gaps += longer
        longer >>= _BITS
    return 1 + min(-(-size // 8), gaps)


def _gaps_to_bytes(positions_K: np.ndarray) -> bytes:
    """Return how many entries lie before each position and behind the one before it, 7 bits to a byte, the lowest first."""
    gap_K = np.diff(positions_K, prepend=-1) - 1
    length_K = np.ones(len(gap_K), np.int64)
    for more in range(1, 1 + int(gap_K.max(initial=0)).bit_length() // _BITS):
        length_K += gap_K >= 1 << (_BITS * more)
    owner_N = np.repeat(np.arange(len(gap_K)), length_K)
    place_N = np.arange(len(owner_N)) - np.repeat(np.cumsum(length_K) - length_K, length_K)
    byte_N = gap_K[owner_N] >> (_BITS * place_N) & 127
    byte_N[place_N < length_K[owner_N] - 1] |= 128
    return byte_N.astype(np.uint8).tobytes()
