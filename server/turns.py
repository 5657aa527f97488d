"""Server steps of a method whose rounds train parts of the vector in turn: each part has its own state.

Shape suffixes: F entries of the whole vector, T those that a round trains.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedsim.core.method import ServerState


def part_of(state: ServerState, positions_T: np.ndarray) -> ServerState:
    """Return the state of some entries; arrays of another length than the vector belong to every part."""
    size = len(state.vector_F)
    arrays = {name: array[positions_T] if len(array) == size else array for name, array in _arrays(state)}
    return replace(state, vector_F=state.vector_F[positions_T], arrays=arrays)


def with_part(state: ServerState, part: ServerState, positions_T: np.ndarray) -> ServerState:
    """Return the state with the entries of a part; all other entries are the same numbers as before."""
    arrays = dict(part.arrays)
    for name, array in _arrays(state):
        if len(array) == len(state.vector_F):
            arrays[name] = _put(array, positions_T, part.arrays[name])
    return replace(part, vector_F=_put(state.vector_F, positions_T, part.vector_F), arrays=arrays)


def _arrays(state: ServerState) -> list[tuple[str, np.ndarray]]:
    return [(name, np.atleast_1d(array)) for name, array in state.arrays.items()]


def _put(array_F: np.ndarray, positions_T: np.ndarray, part_T: np.ndarray) -> np.ndarray:
    made_F = array_F.copy()
    made_F[positions_T] = part_T
    return made_F
