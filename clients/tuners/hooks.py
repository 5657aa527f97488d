"""Hooks on modules of the layers for the length of one forward pass, each of which must run."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fedsim.core.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle


class Hooks:
    """Changes of what modules read or return; removed at the end of a ``with`` block.

    Parameters
    ----------
    tuner
        Name of the tuner for errors.
    """

    def __init__(self, layers: nn.ModuleList, tuner: str) -> None:
        self._layers, self._tuner = layers, tuner
        self._handles: list[RemovableHandle] = []
        # Not one set of names: torch.compile would make a graph for each name that a hook knows, so for each layer.
        self._ran: dict[tuple[int, str], list[bool]] = {}

    def output(self, layer: int, path: str, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Replace the output of a module, or the first of several, by ``change(input, output)``."""
        ran = self._ran.setdefault((layer, path), [False])

        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
            ran[0] = True
            if isinstance(output, tuple):  # experts hand back whom they chose, too
                return (change(arguments[0], output[0]), *output[1:])
            return change(arguments[0], output)

        self._handles.append(self._module(layer, path).register_forward_hook(hook))

    def input(self, layer: int, path: str, change: Callable[[Tensor], Tensor]) -> None:
        """Replace the input of a module by ``change(input)``."""
        ran = self._ran.setdefault((layer, path), [False])

        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            ran[0] = True
            return (change(arguments[0]), *arguments[1:])

        self._handles.append(self._module(layer, path).register_forward_pre_hook(hook))

    def __enter__(self) -> Hooks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Remove the hooks.

        Raises
        ------
        ModelError
            If a module never ran in the pass, so that it would silently not be trained.
        """
        for handle in self._handles:
            handle.remove()
        waiting = [key for key, ran in self._ran.items() if not ran[0]]
        if kind is None and waiting:
            layer, path = min(waiting)
            raise ModelError(f"{path} of layer {layer} never ran in a forward pass, so {self._tuner} cannot change it")

    def _module(self, layer: int, path: str) -> nn.Module:
        return self._layers[layer].get_submodule(path)
