"""A frozen model as arrays, which every worker of a node maps."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from clients.backbone.families import Family

if TYPE_CHECKING:
    from clients.config import ModelConfig


@dataclass(frozen=True)
class SharedWeights:
    """Everything a worker needs to rebuild the backbone without disk or network.

    Plain NumPy arrays, so that Ray stores them once per node and every worker there maps the same memory.
    """

    config_json: str
    """The model's configuration, as in its config.json."""
    family: Family
    """Handed along, as a plug-in's is known to the driver alone."""
    kind: Literal["masked_lm", "causal_lm", "base"]
    """With the LM head of its family, or without one."""
    arrays: dict[str, np.ndarray]
    """Every parameter and buffer by name, contiguous, tied ones once; also those missing from a checkpoint (rotary
    frequencies), and the scales of quantised matrices. NumPy has no bfloat16: such numbers are stored as uint16 with the
    same bits."""
    dtype: str
    """Number format of the parameters: float32, bfloat16 or float16."""
    aliases: tuple[tuple[str, str], ...] = ()
    """(name, name in ``arrays``) of each tied parameter."""
    linear_maps: tuple[str, ...] = ()
    """Names in ``arrays`` of the weights and biases of the layers' linear maps."""
    loaded_as: str | None = None
    """Fingerprint before the linear maps were rounded or quantised; None if they are as loaded."""

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def layers_prefix(self) -> str:
        """What the names of the layers' arrays begin with; the number of a layer and a dot follow."""
        base = self.family.model_class(self.kind).base_model_prefix
        return f"{self.family.layers}." if self.kind == "base" else f"{base}.{self.family.layers}."

    def layer_of(self, name: str) -> int | None:
        """Return the layer that an array belongs to; None if it is in none."""
        prefix = self.layers_prefix
        return int(name[len(prefix) :].partition(".")[0]) if name.startswith(prefix) else None

    def layer_bytes(self) -> list[int]:
        """Return the bytes of each layer's arrays."""
        found: dict[int, int] = {}
        for name, array in self.arrays.items():
            if (layer := self.layer_of(name)) is not None:
                found[layer] = found.get(layer, 0) + array.nbytes
        return [found[layer] for layer in range(len(found))]

    def stored(self, model: ModelConfig) -> SharedWeights:
        """Return the weights with the layers' linear maps as the config's ``quantize`` or ``products`` says.

        Raises
        ------
        ModelError
            If a matrix cannot be quantised.
        """
        return self.rounded(model.product_dtype) if model.quantize == "none" else self.quantized(model.quantize)

    def quantized(self, kind: str) -> SharedWeights:
        """Return the weights with the matrices of the layers' linear maps as ``int8`` or ``int4`` and scales.

        Raises
        ------
        ModelError
            If a matrix cannot be cut into groups, or holds a number that is not finite.
        """
        from clients.backbone.loading import quantize_array

        arrays, transposed = dict(self.arrays), self.family.transposed_weights
        for name in self.linear_maps:
            if arrays[name].ndim == 2:
                arrays |= quantize_array(name, arrays[name], kind, transposed=transposed)
        return replace(self, arrays=arrays, loaded_as=self.fingerprint())

    def rounded(self, dtype: str) -> SharedWeights:
        """Return the weights with the layers' linear maps in another number format, each number rounded to the nearest."""
        if dtype == self.dtype:
            return self
        from clients.backbone.loading import round_array

        maps = {name: round_array(self.arrays[name], dtype) for name in self.linear_maps}
        return replace(self, arrays=self.arrays | maps, loaded_as=self.fingerprint())

    def fingerprint(self) -> str:
        """Return the SHA-256, as hexadecimal digits, of all names, shapes, number formats and bytes, as they were loaded."""
        if self.loaded_as is not None:
            return self.loaded_as
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays.items()):
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()
