"""torch eager and torch.compile as peers, on tensors that share the workload's memory.

Backward calls the native backward functions with the statistics saved by forward, as we do, and
goes through autograd where torch has none on the CPU. Methods that torch does not have are the
plain formula. Channels-last cases are tensors of NCHW shape in channels_last memory, as torch
users have them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from . import formulas
from .formulas import eps_of
from .peers import Prepared
from .workload import Unsupported, Workload

aten = torch.ops.aten
Call = tuple[Callable[..., Any], tuple[Any, ...]]  # a function of tensors, and those tensors
ALL = [True, True, True]


class TorchEager:
    """torch as called without a compiler."""

    name = "torch"
    version = torch.__version__

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)

    def prepare(self, work: Workload, kernel: bool) -> Prepared:
        """torch.nn.functional or a formula, and the native backward or autograd."""
        if work.case.direction == "backward" and work.case.op not in _NATIVE_BACKWARD:
            return Prepared(_autograd(work, lambda function: function), _to_numpy(work))
        return Prepared(_without_grad(*_call_of(work)), _to_numpy(work))

    def forget(self) -> None:
        """Nothing is kept."""


class TorchCompile:
    """The same functions through torch.compile, for exactly these shapes."""

    name = "compile"
    version = torch.__version__

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)

    def prepare(self, work: Workload, kernel: bool) -> Prepared:
        """The compiled function; the compiler runs at the first call."""
        if (work.case.op, work.case.direction) in _BUILDERS or work.case.direction == "forward":
            function, tensors = _call_of(work)
            return Prepared(_without_grad(_compiled(function), tensors), _to_numpy(work))
        # A graph that is kept for the next call may give no memory away.
        with torch._functorch.config.patch(donated_buffer=False):
            return Prepared(_autograd(work, _compiled), _to_numpy(work))

    def forget(self) -> None:
        """Drop compiled code, or torch stops compiling after a number of shapes."""
        torch._dynamo.reset()


def tensor_of(array: np.ndarray) -> torch.Tensor:
    """A tensor over the array's memory, bfloat16 too."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(function, dynamic=False, fullgraph=True)
    return compiled


def _without_grad(function: Callable[..., Any], tensors: tuple[Any, ...]) -> Callable[[], Any]:
    def call() -> Any:
        with torch.inference_mode():
            return function(*tensors)

    return call


def _to_numpy(work: Workload) -> Callable[[Any], list[np.ndarray]]:
    def results(output: Any) -> list[np.ndarray]:
        parts = output if isinstance(output, tuple) else (output,)
        arrays = [part for part in parts if part is not None]
        if work.case.layout == "NHWC":
            arrays[0] = arrays[0].permute(0, 2, 3, 1)
        return [part.detach().float().contiguous().numpy() for part in arrays]

    return results


def _call_of(work: Workload) -> Call:
    case = work.case
    x, dy = tensor_of(work.x), tensor_of(work.dy)
    if case.layout == "NHWC":
        x, dy = x.permute(0, 3, 1, 2), dy.permute(0, 3, 1, 2)
    builder: Callable[..., Call] = _BUILDERS.get((case.op, case.direction), _formula)
    params = [tensor_of(param) for param in work.params.values()]
    with torch.no_grad():
        return builder(work, dy, x, *params)


def _autograd(work: Workload, prepare: Callable[[Any], Any]) -> Callable[[], Any]:
    """The gradients of the forward function, whose graph is built once."""
    forward = dataclasses.replace(work, case=dataclasses.replace(work.case, direction="forward"))
    function, tensors = _call_of(forward)
    wanted = 1 + len(work.params)  # beside x and the parameters there may be buffers
    leaves = [tensor.detach().requires_grad_() for tensor in tensors[:wanted]]
    y = prepare(function)(*leaves, *tensors[wanted:])
    dy = tensor_of(work.dy)
    if work.case.layout == "NHWC":
        dy = dy.permute(0, 3, 1, 2)
    return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)


def _formula(work: Workload, dy: Any, x: Any, *params: Any) -> Call:
    if work.case.layout == "NHWC":
        raise Unsupported("the formula is for channels second")
    if not formulas.has(work.case, "forward"):
        raise Unsupported(f"no formula of {work.case.op}")
    count, eps = len(params), eps_of(work.case)
    buffers = [tensor_of(buffer) for buffer in work.buffers.values()]

    def formula(x: Any, *tensors: Any) -> Any:
        params = dict(zip(work.params, tensors[:count], strict=True))
        buffers = dict(zip(work.buffers, tensors[count:], strict=True))
        return formulas.forward(torch, work.case, x, params, buffers, eps)

    return formula, (x, *params, *buffers)


def _layer_norm(work: Workload, dy: Any, x: Any, w: Any, b: Any) -> Call:
    eps, size = eps_of(work.case), [w.numel()]
    if work.case.option("axis", -1) == -1:
        return lambda x, w, b: functional.layer_norm(x, size, w, b, eps), (x, w, b)

    # torch normalizes trailing axes only: channels to the end, and y back to x's order.
    def over_channels(x: Any, w: Any, b: Any) -> Any:
        y = functional.layer_norm(x.permute(0, 2, 3, 1), size, w, b, eps)
        return y.permute(0, 3, 1, 2).contiguous()

    return over_channels, (x, w, b)


def _layer_norm_backward(work: Workload, dy: Any, x: Any, w: Any, b: Any) -> Call:
    eps, size = eps_of(work.case), [w.numel()]
    native = aten.native_layer_norm_backward
    if work.case.option("axis", -1) == -1:
        _, mean, rstd = aten.native_layer_norm(x, size, w, b, eps)
        return lambda *args: native(*args[:2], size, *args[2:], ALL), (dy, x, mean, rstd, w, b)

    _, mean, rstd = aten.native_layer_norm(x.permute(0, 2, 3, 1).contiguous(), size, w, b, eps)

    def over_channels(dy: Any, x: Any, mean: Any, rstd: Any, w: Any, b: Any) -> Any:
        dy, x = (t.permute(0, 2, 3, 1).contiguous() for t in (dy, x))
        dx, dw, db = native(dy, x, size, mean, rstd, w, b, ALL)
        return dx.permute(0, 3, 1, 2).contiguous(), dw, db

    return over_channels, (dy, x, mean, rstd, w, b)


def _rms_norm(work: Workload, dy: Any, x: Any, w: Any) -> Call:
    eps, size = eps_of(work.case), [w.numel()]
    return lambda x, w: functional.rms_norm(x, size, w, eps), (x, w)


def _rms_norm_backward(work: Workload, dy: Any, x: Any, w: Any) -> Call:
    rstd = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps_of(work.case))

    def formula(dy: Any, x: Any, rstd: Any, w: Any) -> Any:
        dy, x_hat = dy.float(), x.float() * rstd
        g = dy * w.float()
        dx = rstd * (g - x_hat * (g * x_hat).mean(-1, keepdim=True))
        return dx.to(x.dtype), (dy * x_hat).sum(0).to(w.dtype)

    return formula, (dy, x, rstd, w)


def _batch_norm(work: Workload, dy: Any, x: Any, w: Any, b: Any) -> Call:
    eps, training = eps_of(work.case), work.case.option("training")
    # Copies: torch must not move the buffers that the other contenders read.
    mean, var = (tensor_of(a.copy()) for a in work.buffers.values())
    function = functional.batch_norm
    return lambda x, w, b, m, v: function(x, m, v, w, b, training, 0.1, eps), (x, w, b, mean, var)


def _batch_norm_backward(work: Workload, dy: Any, x: Any, w: Any, b: Any) -> Call:
    eps, training = eps_of(work.case), work.case.option("training")
    mean, var = (tensor_of(a.copy()) for a in work.buffers.values())
    _, save_mean, save_rstd = aten.native_batch_norm(
        x, w, b, mean.clone(), var.clone(), training, 0.1, eps
    )
    native = aten.native_batch_norm_backward
    tensors = (dy, x, w, mean, var, save_mean, save_rstd)
    return lambda *args: native(*args, training, eps, ALL), tensors


def _group_norm(work: Workload, dy: Any, x: Any, w: Any, b: Any) -> Call:
    eps, groups = eps_of(work.case), work.case.option("num_groups")
    return lambda x, w, b: functional.group_norm(x, groups, w, b, eps), (x, w, b)


def _group_norm_backward(work: Workload, dy: Any, x: Any, w: Any, b: Any) -> Call:
    eps, groups = eps_of(work.case), work.case.option("num_groups")
    n, c, space = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    _, mean, rstd = aten.native_group_norm(x, w, b, n, c, space, groups, eps)
    native = aten.native_group_norm_backward
    return lambda *args: native(*args, n, c, space, groups, ALL), (dy, x, mean, rstd, w)


def _instance_norm(work: Workload, dy: Any, x: Any, w: Any, b: Any) -> Call:
    eps = eps_of(work.case)
    return (
        lambda x, w, b: functional.instance_norm(x, None, None, w, b, True, 0.1, eps),
        (x, w, b),
    )


def _instance_norm_backward(work: Workload, dy: Any, x: Any, w: Any, b: Any) -> Call:
    # As torch's autograd: batch norm of one sample with N * C channels.
    eps, n = eps_of(work.case), x.shape[0]
    flat = (1, n * x.shape[1], *x.shape[2:])
    _, mean, rstd = aten.native_batch_norm(
        x.reshape(flat), w.repeat(n), b.repeat(n), None, None, True, 0.1, eps
    )

    def backward(dy: Any, x: Any, w: Any, mean: Any, rstd: Any) -> Any:
        dx, dw, db = aten.native_batch_norm_backward(
            *(dy.reshape(flat), x.reshape(flat), w.repeat(n)),
            *(None, None, mean, rstd, True, eps, ALL),
        )
        return dx.reshape(x.shape), dw.view(n, -1).sum(0), db.view(n, -1).sum(0)

    return backward, (dy, x, w, mean, rstd)


def _weight_norm(work: Workload, dy: Any, v: Any, g: Any) -> Call:
    axis = work.case.option("axis")
    shape = [-1 if i == axis else 1 for i in range(v.ndim)]
    return lambda v, g: torch._weight_norm(v, g.view(shape), axis), (v, g)


def _normalize(work: Workload, dy: Any, x: Any) -> Call:
    axis, eps = work.case.option("axis"), eps_of(work.case)
    return lambda x: functional.normalize(x, 2.0, axis, eps), (x,)


def _spectral_norm(work: Workload, dy: Any, w: Any) -> Call:
    # As torch.nn.utils.spectral_norm, without the writing back of u and v.
    iterations = work.case.option("n_power_iterations")

    def normalize(w: Any, u: Any) -> Any:
        with torch.no_grad():
            for _ in range(iterations):
                v = functional.normalize(torch.mv(w.t(), u), dim=0)
                u = functional.normalize(torch.mv(w, v), dim=0)
        return w / torch.dot(u, torch.mv(w, v))

    return normalize, (w, tensor_of(work.buffers["u"]).to(w.dtype))


def _local_response_norm(work: Workload, dy: Any, x: Any) -> Call:
    size = work.case.option("size")
    return lambda x: functional.local_response_norm(x, size), (x,)


_BUILDERS: dict[tuple[str, str], Callable[..., Call]] = {
    ("layer_norm", "forward"): _layer_norm,
    ("layer_norm", "backward"): _layer_norm_backward,
    ("rms_norm", "forward"): _rms_norm,
    ("rms_norm", "backward"): _rms_norm_backward,
    ("batch_norm", "forward"): _batch_norm,
    ("batch_norm", "backward"): _batch_norm_backward,
    ("group_norm", "forward"): _group_norm,
    ("group_norm", "backward"): _group_norm_backward,
    ("instance_norm", "forward"): _instance_norm,
    ("instance_norm", "backward"): _instance_norm_backward,
    ("weight_norm", "forward"): _weight_norm,
    ("normalize", "forward"): _normalize,
    ("spectral_norm", "forward"): _spectral_norm,
    ("local_response_norm", "forward"): _local_response_norm,
}
# rms_norm's backward above is a formula, for the compiler alone.
_NATIVE_BACKWARD = ("layer_norm", "batch_norm", "group_norm", "instance_norm")
