"""Layer and RMS normalization as one would write them in Triton: a row is one block of a program.

For bench/gpu.py, which sets them beside ours. Rows of at most 64 KiB.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LONGEST_ROW = 65536  # bytes; more spills registers


@triton.jit
def _forward(x, w, b, y, n, eps, CENTERED: tl.constexpr, BIASED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < n
    v = tl.load(x + row * n + at, mask=inside, other=0).to(tl.float32)
    if CENTERED:
        v = tl.where(inside, v - tl.sum(v, axis=0) / n, 0)
    rstd = 1 / tl.sqrt(tl.sum(v * v, axis=0) / n + eps)
    v = v * rstd * tl.load(w + at, mask=inside, other=0).to(tl.float32)
    if BIASED:
        v += tl.load(b + at, mask=inside, other=0).to(tl.float32)
    tl.store(y + row * n + at, v.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    dy, x, w, dx, dw, db, rows, steps, n, eps, CENTERED: tl.constexpr, BIASED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    # Each program walks rows and keeps its share of the parameters' gradients.
    at = tl.arange(0, BLOCK)
    weight = tl.load(w + at, mask=at < n, other=0).to(tl.float32)
    dweight = tl.zeros([BLOCK], tl.float32)
    dbias = tl.zeros([BLOCK], tl.float32)
    for step in range(steps):
        row = (tl.program_id(0) + step * tl.num_programs(0)).to(tl.int64)
        inside = (at < n) & (row < rows)
        v = tl.load(x + row * n + at, mask=inside, other=0).to(tl.float32)
        g = tl.load(dy + row * n + at, mask=inside, other=0).to(tl.float32)
        if CENTERED:
            v = tl.where(inside, v - tl.sum(v, axis=0) / n, 0)
        rstd = 1 / tl.sqrt(tl.sum(v * v, axis=0) / n + eps)
        xhat = v * rstd
        dweight += g * xhat
        if BIASED:
            dbias += g
        g = g * weight
        d = g - xhat * (tl.sum(g * xhat, axis=0) / n)
        if CENTERED:
            d -= tl.sum(g, axis=0) / n
        tl.store(dx + row * n + at, (d * rstd).to(dx.dtype.element_ty), mask=inside)
    tl.store(dw + tl.program_id(0) * n + at, dweight, mask=at < n)
    if BIASED:
        tl.store(db + tl.program_id(0) * n + at, dbias, mask=at < n)


def _launch(x: torch.Tensor) -> dict[str, int]:
    block = triton.next_power_of_2(x.shape[-1])
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 512))}


def forward(x, w, b, eps, *, centered: bool) -> torch.Tensor:
    """Normalize the rows of x [rows, n]; without a mean where not `centered`; b may be None."""
    y = torch.empty_like(x)
    options = {"CENTERED": centered, "BIASED": b is not None} | _launch(x)
    _forward[(x.shape[0],)](x, w, w if b is None else b, y, x.shape[1], eps, **options)
    return y


def backward(dy, x, w, eps, *, centered: bool, biased: bool) -> tuple[torch.Tensor, ...]:
    """Gradients of x, w and, where `biased`, of the bias."""
    rows, n = x.shape
    programs = 256
    if x.is_cuda:
        programs = 2 * torch.cuda.get_device_properties(x.device).multi_processor_count
    programs = min(rows, programs)
    dx = torch.empty_like(x)
    dw = torch.empty((programs, n), dtype=torch.float32, device=x.device)
    db = torch.empty_like(dw) if biased else dw
    options = {"CENTERED": centered, "BIASED": biased} | _launch(x)
    steps = triton.cdiv(rows, programs)
    _backward[(programs,)](dy, x, w, dx, dw, db, rows, steps, n, eps, **options)
    gradients = [dw, db] if biased else [dw]
    return (dx, *(g.sum(0).to(w.dtype) for g in gradients))
