"""Bytes of frozen weights, from the shape of a model and how the config stores it."""

from __future__ import annotations

from clients.backbone.product_format import settled
from clients.backbone.quantized_sizes import matrix_bytes
from fedsim.configuration.schema import Config
from fedsim.planning.model_shape import ModelShape


def weight_bytes(config: Config, shape: ModelShape, on_gpu: bool) -> int:
    """Return the bytes of the frozen weights, with the matrices of the layers as ``model.quantize`` or ``products`` says."""
    numbers = shape.num_layers * sum(size_out * size_in for size_out, size_in in shape.matrices)
    others = (shape.num_parameters - numbers) * itemsize(config.model.dtype)
    return others + shape.num_layers * _map_bytes(config, shape, on_gpu)


def _map_bytes(config: Config, shape: ModelShape, on_gpu: bool) -> int:
    """Return the bytes of the linear maps of a layer."""
    if config.model.quantize != "none":
        return sum(matrix_bytes(config.model.quantize, *each) for each in shape.matrices)
    products = settled(config.model, shape.hidden_size, on_gpu=on_gpu).product_dtype
    return sum(size_out * size_in for size_out, size_in in shape.matrices) * itemsize(products)


def layer_bytes(config: Config, shape: ModelShape, weights: int, on_gpu: bool) -> int:
    """Return the bytes of the frozen weights of one layer, without what is small: norms and biases."""
    if not shape.experts:
        return min(_map_bytes(config, shape, on_gpu), weights // shape.num_layers)
    # Experts are known by what is left: all but word embeddings and an LM head of its own.
    outside = 2 * shape.vocab_size * shape.hidden_size * itemsize(config.model.dtype)
    return max(0, weights - outside) // shape.num_layers


def itemsize(dtype: str) -> int:
    """Return the bytes of a number."""
    return {"float64": 8, "float32": 4}.get(dtype, 2)
