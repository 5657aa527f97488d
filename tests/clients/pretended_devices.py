"""Devices that are pretended: their tensors are numbers in main memory that say that they are elsewhere, and behave so.

torch knows them as devices of a backend of its own, ``pretended:0`` and so on, on which autograd works. An operation is
computed by the CPU; tensors of two devices in one operation are an error, as they are on GPUs, and so is one of a device with
one of the CPU (but for single numbers, and rows that index). Copies from device to device are counted.

The backend is there for the rest of the process: import this module in a process of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretended"
COPIES: Counter[tuple[str, str]] = Counter()
"""Copies by the devices that they went from and to."""
_MOVES = ("aten::_to_copy", "aten::copy_")


class _Backend(_DummyBackendModule):
    """The module ``torch.pretended``, as much of it as torch asks for."""

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.empty(0)

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class Pretended(Tensor):
    """A tensor on a pretended device."""

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> Pretended:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = Tensor._make_wrapper_subclass(cls, held.shape, device=device, **layout)
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:
        return f"{self.held!r} on {self.device}"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, arguments, kwargs or {})


class _Everywhere(TorchDispatchMode):
    """Lets operations that make tensors make pretended ones, and all others see which they mix."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, arguments, kwargs or {})


def _no_gradients(mode: bool = True) -> AbstractContextManager[None]:
    return torch.no_grad() if mode else nullcontext()


@contextmanager
def pretended() -> Iterator[None]:
    """Have pretended devices in this block."""
    # Without autograd's threads for each device, and without what such tensors cannot do: be of inference mode, or be made of
    # lists by torch itself.
    inference = mock.patch.object(torch, "inference_mode", _no_gradients)
    listed = mock.patch.object(torch, "tensor", _of_list)
    with _Everywhere(), torch.autograd.set_multithreading_enabled(False), inference, listed:
        yield


def _of_list(values: Any, *, device: Any = None, made: Any = torch.tensor, **kwargs: Any) -> Tensor:
    if device is None or torch.device(device).type != NAME:
        return made(values, device=device, **kwargs)
    return made(values, **kwargs).to(device)


def _computed(function: Any, arguments: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name, asked = function._schema.name, kwargs.get("device")
    if name in ("aten::pin_memory", "aten::_pin_memory"):
        return arguments[0]
    devices: list[torch.device] = []
    here: list[Tensor] = []

    def held(value: Any) -> Any:
        if isinstance(value, Pretended):
            devices.append(value.device)
            return value.held
        if isinstance(value, Tensor) and value.ndim:
            here.append(value)
        return value

    inputs, options = tree_map(held, arguments), tree_map(held, kwargs)
    if asked is not None and torch.device(asked).type == NAME:
        options["device"] = "cpu"
        options.pop("pin_memory", None)
    target = torch.device("cpu") if not devices else devices[0]
    if name in _MOVES:
        target = target if asked is None else torch.device(asked)
        source = arguments[-1 if name == "aten::copy_" else 0].device
        if source != target:
            COPIES[str(source), str(target)] += 1
    else:
        _check(name, devices, here)
        target = target if asked is None else torch.device(asked)
    results = function(*inputs, **options)
    if function._schema.is_mutable:
        return _as_given(arguments, kwargs, inputs, options, results)
    return tree_map(lambda made: _on(target, made), results)


def _check(name: str, devices: list[torch.device], here: list[Tensor]) -> None:
    if len(set(devices)) > 1:
        raise RuntimeError(f"{name} of tensors on {sorted(map(str, set(devices)))}")
    if devices and here and not name.startswith("aten::index"):
        raise RuntimeError(f"{name} of tensors on {devices[0]} and on the CPU: {[tuple(one.shape) for one in here]}")


def _on(device: torch.device, made: Any) -> Any:
    return Pretended(made, device) if isinstance(made, Tensor) and device.type == NAME else made


def _as_given(arguments: Any, kwargs: Any, inputs: Any, options: Any, results: Any) -> Any:
    """Return what was changed in place as it was given."""
    given = [value for value in (*arguments, *kwargs.values()) if isinstance(value, Tensor)]
    own = {id(value.held): value for value in given if isinstance(value, Pretended)}
    return tree_map(lambda made: own.get(id(made), made), results)


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
