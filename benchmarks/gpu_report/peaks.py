"""What a GPU can do in dense bfloat16 products: its maker's figure, and what one large product reaches."""

from __future__ import annotations

import time

import torch

from benchmarks.gpu_report.figures import Figure

_DATA_SHEETS = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H200 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("GH200", 989e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
)
"""FLOP/s in bfloat16 without sparsity, sums in float32, by a part of the name that torch gives; the first that fits."""
_PRODUCTS = 20
SHEET, PRODUCT = "data sheet", "large product"


def data_sheet(name: str) -> float | None:
    """Return the peak of a GPU by name; None where it is not known, as for a part of a GPU (MIG)."""
    if "MIG" in name:
        return None
    words = name.replace("-", " ")
    return next((peak for part, peak in _DATA_SHEETS if f" {part} " in f" {words} "), None)


def measure(size: int, device: torch.device, name: str | None) -> list[Figure]:
    """Return the data sheet's peak, where there is one, and that of products of two square matrices of ``size``."""
    product = Figure(PRODUCT, "FLOP/s", tuple(_large_products(size, device)))
    peak = None if name is None else data_sheet(name)
    if peak is None:
        return [product]
    return [Figure(SHEET, "FLOP/s", (peak,), note=name or ""), product]


def peak_of(figures: tuple[Figure, ...]) -> float | None:
    """Return the peak for shares: that of the data sheet, else the best large product; None if nothing was measured."""
    by_name = {figure.name: figure for figure in figures if figure.values}
    chosen = by_name.get(SHEET) or by_name.get(PRODUCT)
    return None if chosen is None else max(chosen.values)


def _large_products(size: int, device: torch.device) -> list[float]:
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    rates = []
    for run in range(4):
        seconds = _on_gpu(left, right) if device.type == "cuda" else _on_cpu(left, right)
        if run:  # the first one includes warm-up
            rates.append(_PRODUCTS * 2 * size**3 / seconds)
    return rates


def _on_gpu(left: torch.Tensor, right: torch.Tensor) -> float:
    """Return the GPU's own time, between two events in its stream: launches are hidden behind the products."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for _ in range(_PRODUCTS):
        left @ right
    ended.record()
    torch.cuda.synchronize()
    return began.elapsed_time(ended) / 1e3


def _on_cpu(left: torch.Tensor, right: torch.Tensor) -> float:
    started = time.perf_counter()
    for _ in range(_PRODUCTS):
        left @ right
    return time.perf_counter() - started
