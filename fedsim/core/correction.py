"""The device's half of a method: :class:`Correction`, and what its hooks see. No torch here.

Shape suffixes: F entries of the exchanged vector, A all parameters a client trains, C clients side by side, k clients of a
round in the order drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from fedsim.core.errors import listed
from fedsim.core.messages import FIRST_MOMENT, PERSONAL, SECOND_MOMENT, VECTOR, CombinedUpdate
from fedsim.core.registry import Registry, subclass_of
from fedsim.core.schema import Schema

if TYPE_CHECKING:
    from fedsim.core.method import ServerState

Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From clients' arrays [k, F] and the server's own [F], which they are changes of, to one array [F], float64."""


@dataclass(frozen=True)
class ClientRound:
    """One client in one round, as NumPy: what a correction makes a client's arrays of."""

    config: Any
    """Section ``client`` in force."""
    num_examples: int
    num_steps: int
    """T_i."""
    start_F: np.ndarray
    """P_t."""
    server: Mapping[str, np.ndarray] = field(default_factory=dict)
    old: Mapping[str, np.ndarray] = field(default_factory=dict)
    vector_F: np.ndarray | None = None
    """P_i; None before training."""
    tallies: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What :meth:`Correction.stepped` has added up, exchanged entries, by name."""
    new: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What :meth:`Correction.finish` has returned."""

    @property
    def trained_F(self) -> np.ndarray:
        """P_i."""
        if self.vector_F is None:
            raise ValueError("the client has not trained yet")
        return self.vector_F

    def read(self, name: str) -> np.ndarray:
        """Return one of the server's arrays; zeros where it has none, as in the warm-up of ``layers.share_rule``."""
        array_F = self.server.get(name)
        return np.zeros_like(self.start_F) if array_F is None else array_F

    def has_kept(self, name: str) -> bool:
        """Tell whether the client has kept something by this name: not before its first round."""
        return name in self.old

    def kept(self, name: str) -> np.ndarray:
        """Return what the client has kept from its last round; zeros before the first."""
        array_F = self.old.get(name)
        return np.zeros_like(self.start_F) if array_F is None else array_F


class Local(Protocol):
    """Clients that train side by side, one a row, as torch tensors on the device: what the hooks of a step see."""

    config: Any
    """Section ``client`` in force."""
    clipped_C1: Any
    """Factors by which gradients were clipped; after clipping."""
    tallies: Mapping[str, Any]
    """Tensors [C, A] that begin at zero, to add to in :meth:`Correction.stepped`, by name."""

    @property
    def lr_C1(self) -> Any:
        """Learning rates of this step."""

    @property
    def vector_CF(self) -> Any:
        """Exchanged entries p before this step."""

    @property
    def start_CF(self) -> Any:
        """P_t, once a client."""

    def begun(self, name: str) -> Any:
        """Return what :meth:`Correction.begin` returned by this name, [C, F]; [C, 1] where it was a number."""

    def add_to(self, array_CA: Any, change_CF: Any) -> Any:
        """Add to the exchanged entries of an array, in place, and return it."""

    def with_added(self, array_CA: Any, change_CF: Any) -> Any:
        """Return an array with something added to its exchanged entries."""

    def gain_CA(self) -> Any:
        """Return what the optimizer's step multiplies a steady gradient by, entry by entry."""


class Entries(Protocol):
    """A block of entries of the exchanged vector: sums are formed block by block, in float64, in scratch memory."""

    def float64(self, array_F: np.ndarray) -> np.ndarray:
        """Return the block's entries of an array, as a copy in float64 that may be written to."""

    def scratch(self) -> np.ndarray:
        """Return room for as many numbers."""


def times(term: np.ndarray, weight: float) -> np.ndarray:
    """Multiply a term in place and return it."""
    return np.multiply(term, weight, out=term) if weight != 1.0 else term


class Correction:
    """The device's half of a method; this base class corrects nothing.

    Hooks are called with many clients side by side, and with each alone; rows never mix. An array of a name belongs to one
    correction: two that are in force together must not share names.
    """

    Config: ClassVar[type[Schema] | None] = None
    """Keys of a plug-in, in section ``params.NAME``; they come as :attr:`params`."""
    params: Any = None
    """Its ``Config``, None where it has none."""
    reads: tuple[str, ...] = ()
    """Server arrays that it is handed; see :attr:`Method.serves`."""
    kept: tuple[str, ...] = ()
    """Arrays [F] that a client keeps between rounds."""
    tallies: tuple[str, ...] = ()
    """Arrays that are added to in each step."""
    displacements: tuple[str, ...] = ()
    """Those of the tallies that hold what steps took away from the vector: an attacker falsifies them with it."""
    sums: tuple[str, ...] = ()
    """Sums over clients that it forms. ``vector`` among them takes the place of the sum of w_i P_i."""
    words: Mapping[str, str] = MappingProxyType({})
    """What ``down`` and ``up`` name, in words for people, where the name does not do."""
    needs: str = "arrays of the server"
    """What it reads, in words, for a message."""
    kept_by: str = "another server.kind"
    """Which config has it, in words."""
    combines: str = "takes them together in its own way"
    """What it does to clients' vectors where ``vector`` is among its sums, in words."""

    def __init__(self, params: Any = None) -> None:
        self.params = params

    @classmethod
    def of(cls, client: Any, params: Any = None) -> Correction:
        """Make it from the section ``client`` and from its ``Config``, None where it has none; called by the driver."""
        return cls() if cls.Config is None else cls(params)

    def down(self, client: Any) -> tuple[str, ...]:
        """Return the vectors that a real server would send a device beside the prompt; may depend on section ``client``."""
        return self.reads

    def up(self, client: Any) -> tuple[str, ...]:
        """Return the vectors that a real device would send beside the prompt."""
        return ()

    def begin(self, client: ClientRound) -> Mapping[str, np.ndarray | float]:
        """Return what the steps need, arrays [F] and numbers, by name; see :meth:`Local.begun`."""
        return {}

    def gradient(self, local: Local, gradient_CA: Any) -> Any:
        """Return the gradient with what is added to it before clipping."""
        return gradient_CA

    def step(self, local: Local, step_CA: Any) -> Any:
        """Return the step, which is taken times the learning rate, with what is added to the optimizer's direction."""
        return step_CA

    def stepped(self, local: Local, step_CA: Any) -> None:
        """Add to ``local.tallies`` what is to be known of the step."""

    def finish(self, client: ClientRound) -> Mapping[str, np.ndarray]:
        """Return what the client keeps, by the names in ``kept``."""
        return {}

    def terms(self, client: ClientRound, weight: float, entries: Entries) -> Mapping[str, np.ndarray]:
        """Return the client's terms of the sums in a block of entries, in float64, already weighted."""
        return {}

    def singles(self, *, robust: bool) -> tuple[str, ...]:
        """Return the names of arrays that go to the server client by client.

        Parameters
        ----------
        robust
            For a robust rule; else for a method that takes clients one by one.
        """
        return ()

    def single(self, client: ClientRound, name: str) -> np.ndarray:
        """Return the client's array of such a name."""
        raise KeyError(name)

    def average(self, sums: Mapping[str, np.ndarray], weight_sum: float) -> np.ndarray:
        """Return P_bar of the sums, float64, on the server; asked where ``vector`` is among the sums."""
        average_F: np.ndarray = sums[VECTOR] / weight_sum
        return average_F

    def remake(self, combined: CombinedUpdate, state: ServerState, rule: Rule) -> CombinedUpdate:
        """Return the update with a robust rule in the place of the means of its sums."""
        return combined


def check_names(corrections: Iterable[Correction]) -> None:
    """Refuse corrections that give one name to two arrays.

    Raises
    ------
    ValueError
        Naming it.
    """
    taken = {"kept": {PERSONAL, FIRST_MOMENT, SECOND_MOMENT}, "tallies": set[str](), "sums": set[str]()}
    for part in corrections:
        for where, names in taken.items():
            if twice := names & set(getattr(part, where)):
                raise ValueError(f"two corrections in force have an array {listed(sorted(twice))} among their {where}")
            names |= set(getattr(part, where))


CORRECTIONS: Registry[type[Correction]] = Registry(
    "local correction",
    "client.correction",
    ("fedsim.methods.control", "fedsim.methods.preconditioner", "fedsim.methods.proximal"),
    subclass_of(Correction),
)
CORRECTIONS.register("none")(Correction)
