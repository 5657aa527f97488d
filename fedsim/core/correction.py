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
"""Combines clients' arrays [k, F], given the server's array [F] that they changed, into one array [F], float64."""


@dataclass(frozen=True)
class ClientRound:
    """One client in one round, as NumPy: the input from which a correction computes the client's arrays."""

    config: Any
    """The section ``client``."""
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
    """Totals of :meth:`Correction.stepped`, exchanged entries, by name."""
    new: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What :meth:`Correction.finish` returned."""

    @property
    def trained_F(self) -> np.ndarray:
        """P_i."""
        if self.vector_F is None:
            raise ValueError("the client has not trained yet")
        return self.vector_F

    def read(self, name: str) -> np.ndarray:
        """Return one of the server's arrays; zeros if it has none, as in the warm-up of ``layers.share_rule``."""
        array_F = self.server.get(name)
        return np.zeros_like(self.start_F) if array_F is None else array_F

    def has_kept(self, name: str) -> bool:
        """Whether the client has kept an array of this name; never before its first round."""
        return name in self.old

    def kept(self, name: str) -> np.ndarray:
        """Return what the client kept from its last round; zeros before the first."""
        array_F = self.old.get(name)
        return np.zeros_like(self.start_F) if array_F is None else array_F


class Local(Protocol):
    """Clients that train side by side, one per row, as torch tensors on the device: what the hooks of a step see."""

    config: Any
    """The section ``client``."""
    clipped_C1: Any
    """Factors by which gradients were clipped; available after clipping."""
    tallies: Mapping[str, Any]
    """Tensors [C, A] by name that start at zero; :meth:`Correction.stepped` adds to them."""

    @property
    def lr_C1(self) -> Any:
        """Learning rates of this step."""

    @property
    def vector_CF(self) -> Any:
        """Exchanged entries p before this step."""

    @property
    def start_CF(self) -> Any:
        """P_t, one row per client."""

    def begun(self, name: str) -> Any:
        """Return what :meth:`Correction.begin` returned under this name, [C, F]; [C, 1] if it was a number."""

    def add_to(self, array_CA: Any, change_CF: Any) -> Any:
        """Add to the exchanged entries of an array, in place, and return it."""

    def with_added(self, array_CA: Any, change_CF: Any) -> Any:
        """Return a copy of an array with something added to its exchanged entries."""

    def gain_CA(self) -> Any:
        """Return, per entry, the factor by which the optimizer's step scales a constant gradient."""


class Entries(Protocol):
    """A block of entries of the exchanged vector: sums are formed block by block, in float64, in scratch memory."""

    def float64(self, array_F: np.ndarray) -> np.ndarray:
        """Return the block's entries of an array as a writable float64 copy."""

    def scratch(self) -> np.ndarray:
        """Return a scratch array of the block's size."""


def times(term: np.ndarray, weight: float) -> np.ndarray:
    """Multiply a term in place and return it."""
    return np.multiply(term, weight, out=term) if weight != 1.0 else term


class Correction:
    """The device's half of a method; this base class corrects nothing.

    Hooks are called with many clients side by side or with a single one; rows never mix. Each array name belongs to one
    correction: two active corrections must not share a name.
    """

    Config: ClassVar[type[Schema] | None] = None
    """Keys of a plug-in, in section ``params.NAME``; passed in as :attr:`params`."""
    params: Any = None
    """An instance of ``Config``, or None if there is none."""
    reads: tuple[str, ...] = ()
    """Server arrays that it reads; see :attr:`Method.serves`."""
    kept: tuple[str, ...] = ()
    """Arrays [F] that a client keeps between rounds."""
    tallies: tuple[str, ...] = ()
    """Arrays accumulated over the local steps."""
    displacements: tuple[str, ...] = ()
    """The tallies that hold what steps subtracted from the vector: an attacker falsifies them together with it."""
    positive: tuple[str, ...] = ()
    """Arrays that travel and are positive, as divisors are: compression has to keep each entry to within a factor."""
    sums: tuple[str, ...] = ()
    """Sums over clients that it forms. If ``vector`` is among them, it replaces the sum of w_i P_i."""
    words: Mapping[str, str] = MappingProxyType({})
    """Readable names of arrays, where the name itself is not clear: of ``down`` and ``up``, and in error messages."""
    needs: str = "arrays of the server"
    """What it reads, as worded in error messages."""
    kept_by: str = "another server.kind"
    """Config that provides it, as worded in error messages."""
    combines: str = "combines them in its own way"
    """What it does to clients' vectors if ``vector`` is among its sums, as worded in error messages."""

    def __init__(self, params: Any = None) -> None:
        self.params = params

    @classmethod
    def of(cls, client: Any, params: Any = None) -> Correction:
        """Build the correction from section ``client`` and its ``Config`` (None if it has none); called by the driver."""
        return cls() if cls.Config is None else cls(params)

    @property
    def needs_gradients(self) -> bool:
        """Whether it takes part in the steps of an optimizer that has gradients."""
        hooks = ("gradient", "step", "stepped")
        return any(getattr(type(self), hook) is not getattr(Correction, hook) for hook in hooks)

    @classmethod
    def spoken(cls, names: Iterable[str]) -> list[str]:
        """Return readable names of arrays, each once."""
        return list(dict.fromkeys(cls.words.get(name, name.replace("_", " ")) for name in names))

    def down(self, client: Any) -> tuple[str, ...]:
        """Return the vectors a real server would send a device besides the trained vector; may depend on section ``client``."""
        return self.reads

    def up(self, client: Any) -> tuple[str, ...]:
        """Return the vectors a real device would send besides the trained vector."""
        return ()

    def begin(self, client: ClientRound) -> Mapping[str, np.ndarray | float]:
        """Return what the steps need, arrays [F] and numbers, by name; see :meth:`Local.begun`."""
        return {}

    def gradient(self, local: Local, gradient_CA: Any) -> Any:
        """Return the gradient with what is added to it before clipping."""
        return gradient_CA

    def step(self, local: Local, step_CA: Any) -> Any:
        """Return the step with what is added to the optimizer's direction; it is then scaled by the learning rate."""
        return step_CA

    def stepped(self, local: Local, step_CA: Any) -> None:
        """Add this step's contribution to ``local.tallies``."""

    def finish(self, client: ClientRound) -> Mapping[str, np.ndarray]:
        """Return what the client keeps, keyed by the names in ``kept``."""
        return {}

    def terms(self, client: ClientRound, weight: float, entries: Entries) -> Mapping[str, np.ndarray]:
        """Return the client's terms of the sums in a block of entries, in float64, already weighted."""
        return {}

    def singles(self, *, robust: bool) -> tuple[str, ...]:
        """Return the names of arrays sent to the server per client.

        Parameters
        ----------
        robust
            True for a robust rule, False for a method that processes clients one by one.
        """
        return ()

    def single(self, client: ClientRound, name: str) -> np.ndarray:
        """Return the client's array of a name from :meth:`singles`."""
        raise KeyError(name)

    def average(self, sums: Mapping[str, np.ndarray], weight_sum: float) -> np.ndarray:
        """Return P_bar from the sums, float64; called on the server if ``vector`` is among the sums."""
        average_F: np.ndarray = sums[VECTOR] / weight_sum
        return average_F

    def remake(self, combined: CombinedUpdate, state: ServerState, rule: Rule) -> CombinedUpdate:
        """Return the update with the means of its sums replaced by a robust rule."""
        return combined


def check_names(corrections: Iterable[Correction]) -> None:
    """Refuse corrections that use the same name for two arrays.

    Raises
    ------
    ValueError
        Naming the array.
    """
    taken = {"kept": {PERSONAL, FIRST_MOMENT, SECOND_MOMENT}, "tallies": set[str](), "sums": set[str]()}
    for part in corrections:
        for where, names in taken.items():
            if twice := names & set(getattr(part, where)):
                raise ValueError(f"two active corrections both declare {listed(sorted(twice))} in {where}; rename one")
            names |= set(getattr(part, where))


CORRECTIONS: Registry[type[Correction]] = Registry(
    "local correction",
    "client.correction",
    ("fedsim.methods.control", "fedsim.methods.preconditioner", "fedsim.methods.proximal"),
    subclass_of(Correction),
)
CORRECTIONS.register("none")(Correction)
