"""torch's operators ``normcore::*``: what they are called, what they give, and what torch's
transforms need to know of them.

The operators are defined by the compiled core, through torch's stable C interface. Here are their
results without values (for meta and fake tensors, ``torch.compile`` and ``torch.export``) and their
batching rules (for ``torch.vmap``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from .. import _core
from .._arguments import axis as checked_axis


def _libraries() -> tuple[str, str]:
    """The paths of torch's libraries that hold its C interface."""
    folder = os.path.join(torch.__path__[0], "lib")
    names = ("libtorch_cpu.so", "libtorch_cuda.so" if torch.version.cuda else "")
    return os.path.join(folder, names[0]), os.path.join(folder, names[1]) if names[1] else ""


try:
    _core.define_torch_operators(*_libraries())
except RuntimeError as error:  # of a torch that is too old
    raise ImportError(f"normcore.torch: {error}") from None
OPS = torch.ops.normcore


# ---- results without values


def _placed(fake: Callable[..., Any]) -> Callable[..., Any]:
    """A fake for tensors of one device. (Those of several come here where one has no values.)"""

    def placed(*arguments: Any) -> Any:
        devices = {a.device for a in arguments if isinstance(a, Tensor)}
        if len(devices) > 1:
            there = ", ".join(sorted(map(str, devices)))
            raise ValueError(f"the tensors of a call are on {there}, expected one device")
        return fake(*arguments)

    return placed


def like(x: Tensor, channels: bool) -> Tensor:
    """A result like x, in torch's order: channels-last where x is and the method has channels."""
    order = suggest_memory_format(x) if channels else torch.contiguous_format
    return torch.empty_like(x, memory_format=order)


def gradient_like(parameter: Tensor | None, wanted: bool, x: Tensor) -> Tensor:
    """The gradient of a parameter; of no elements where it is not wanted."""
    if parameter is None or not wanted:
        return x.new_empty((0,))
    return torch.empty_like(parameter, memory_format=torch.contiguous_format)


def direct(operator: Any) -> Any:
    """An operator without torch's frame of Python around it: a tenth of a small call."""
    return getattr(operator, "_op", operator)


class Method:
    """A method with a signature: its operators, and where in their arguments things stand.

    ``arguments`` are those of the operators behind x, without a residual, which is the last one of
    the operators that add it.
    """

    def __init__(self, name: str, signature: _core.Signature) -> None:
        self.name = name
        self.family: str = signature["family"]
        self.has_residual: bool = signature["has_residual"]
        self.arguments = [a for a in signature["arguments"] if a != "residual"]
        at = {a: i for i, a in enumerate(self.arguments)}
        self.own = [at[a] for a, _ in signature["own"]]
        arrays = [a for a, _ in signature["own"]] + signature["affine"]
        self.gradients = sorted(at[a] for a in arrays)  # of the arguments that have one
        self.own_shapes: dict[str, str] = dict(signature["own"])
        self.affine: list[str] = signature["affine"]
        self.buffer_names = [a for a, _ in signature["buffers"]]
        self.buffers = [at[a] for a in self.buffer_names]
        self.learns = at[signature["learns"]] if signature["learns"] else None
        self.always_given: bool = signature["always_given"]
        mask = [at["mask"]] if signature["has_mask"] else []
        self.arrays = sorted(self.gradients + self.buffers + mask)
        self.backward_arguments = [
            i for i, a in enumerate(self.arguments) if a not in signature["forward_only"]
        ]
        self.pools = list(signature["pools"])
        self.leaves_stats = "pooled" in signature["statistics"]
        self.may_save_given = "given" in signature["statistics"]
        self.saved = int(self.leaves_stats) + int(self.may_save_given)
        self.axis = at["channel_axis"] if "channel_axis" in at else at["axis"]
        self.groups = at.get("num_groups", -1)
        packet = getattr(OPS, name)
        self.operators = {overload: getattr(packet, overload) for overload in packet.overloads()}
        self._by_kind = {
            (saves, moves, sums): direct(self.operators.get(overload))
            for overload, saves, moves, sums in (
                ("default", False, False, False),
                ("saved", True, False, False),
                ("moves", False, True, False),
                ("moves_saved", True, True, False),
                ("sum", False, False, True),
                ("sum_saved", True, False, True),
            )
        }
        self.backward = getattr(OPS, name + "_backward").default

    def moves(self, arguments: Sequence[Any]) -> bool:
        """Whether a call moves its running buffers."""
        learns = self.learns is not None and arguments[self.learns]
        return bool(learns and self.buffers and arguments[self.buffers[0]] is not None)

    def saves_given(self, arguments: Sequence[Any]) -> bool:
        """Whether a call uses running statistics beside those of x, which backward needs too."""
        if not self.may_save_given or self.learns is None:
            return False
        learns = bool(arguments[self.learns])
        return (
            learns if self.always_given else not learns and arguments[self.buffers[0]] is not None
        )

    def forward(self, saves: bool, moves: bool, sums: bool) -> Any:
        """The operator of such calls."""
        return self._by_kind[saves and self.leaves_stats, moves, sums]

    def fake_saved(self, x: Tensor, arguments: Sequence[Any]) -> list[Tensor]:
        """What forward leaves for backward, without values."""
        if self.family == "rows":
            axes = {checked_axis("axis", a, x.dim()) for a in arguments[self.axis]}
            shape = [1 if i in axes else n for i, n in enumerate(x.shape)]
        else:
            channels = x.shape[checked_axis("channel_axis", arguments[self.axis], x.dim())]
            last = self.pools[-1]
            shape = [channels] if last == "batch" else [x.shape[0], channels]
            if last == "group":
                shape[1] = arguments[self.groups]
        saved = [x.new_empty([*shape, 2], dtype=torch.float64)]
        if self.may_save_given:
            given = (x.shape[arguments[self.axis]], 2) if self.saves_given(arguments) else (0,)
            saved.append(x.new_empty(given, dtype=torch.float64))
        return saved

    def fake_forward(self, saves: bool, sums: bool) -> Callable[..., Any]:
        def fake(x: Tensor, *arguments: Any) -> Any:
            made = [like(x, self.family == "channels")]
            if sums:
                made.append(torch.empty_like(made[0]))
            if saves:
                made += self.fake_saved(x, arguments)
            return tuple(made) if len(made) > 1 else made[0]

        return fake

    def fake_backward(self, dy: Tensor, x: Tensor, *rest: Any) -> Any:
        wanted = rest[-1] if self.gradients else 0
        own = sum(1 << k for k, i in enumerate(self.gradients) if i in self.own)
        if wanted & own:
            wanted |= own
        made = [like(x, self.family == "channels")]
        for k, i in enumerate(self.gradients):
            parameter = rest[self.backward_arguments.index(i)]
            made.append(gradient_like(parameter, bool(wanted >> k & 1), x))
        return tuple(made) if len(made) > 1 else made[0]


METHODS = {
    name: Method(name, signature)
    for name, signature in _core.signatures().items()
    if name == signature["function"]
}


def _fake_with_gradients(dy: Tensor, x: Tensor, *rest: Any) -> Any:
    """Of a backward that takes three parameters behind x, and last what is wanted."""
    wanted = rest[-1]
    parameters = enumerate(rest[:3])
    return like(x, True), *(gradient_like(p, bool(wanted >> i & 1), x) for i, p in parameters)


def _fake_gdn(dy: Tensor, x: Tensor, beta: Tensor, gamma: Tensor, *rest: Any) -> Any:
    wanted = rest[-1]
    first = [gradient_like(p, bool(wanted >> i & 1), x) for i, p in enumerate((beta, gamma))]
    return like(x, True), *first, x.new_empty((2 if wanted & 4 else 0,), dtype=torch.float64)


def _fake_spectral(
    weight: Tensor, u: Any, v: Any, n: int, axis: int, eps: float, bound: Any, u_first: Any
) -> Any:
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    out = weight.shape[axis]
    made = [
        weight.new_empty(shape, dtype=dtype) for shape in ((), (out,), (weight.numel() // out,))
    ]
    return like(weight, False), *made


def _register_fakes() -> None:

    def fake(name: str, function: Callable[..., Any]) -> None:
        torch.library.register_fake(name)(_placed(function))

    for method in METHODS.values():
        for overload, operator in method.operators.items():
            made = method.fake_forward("saved" in overload, overload.startswith("sum"))
            fake(operator.name(), made)
        fake(method.backward.name(), method.fake_backward)
    for name in ("divisive_norm", "gdn", "local_response_norm", "local_divisive_norm"):
        fake(f"normcore::{name}", lambda x, *rest: like(x, True))
    fake("normcore::local_response_norm_backward", lambda dy, x, *rest: like(x, True))
    fake("normcore::divisive_norm_backward", _fake_with_gradients)
    fake("normcore::gdn_backward", _fake_gdn)
    fake("normcore::local_divisive_norm_backward", _fake_with_gradients)
    fake("normcore::spectral_norm", _fake_spectral)
    fake("normcore::spectral_norm_backward", lambda dw, w, *rest: like(w, False))


_register_fakes()


# ---- batching rules
#
# A batch of calls becomes one call where an axis takes the batch along: in front of the rows, among
# the samples, or among the channels, each of which has statistics of its own. Else it is a loop.


def _loop(operator: Any) -> Callable[..., Any]:
    """One call after the other."""

    def rule(info: Any, in_dims: Any, *arguments: Any) -> Any:
        results = []
        for i in range(info.batch_size):
            one = (
                a.select(d, i) if isinstance(a, Tensor) and d is not None else a
                for a, d in zip(arguments, in_dims, strict=True)
            )
            results.append(operator(*one))
        if isinstance(results[0], tuple):
            stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
            return stacked, (0,) * len(stacked)
        return torch.stack(results), 0

    return rule


def _in_front(a: Any, dim: Any, n: int) -> Any:
    """With the batch as its first axis."""
    if a is None:
        return None
    return a.expand(n, *a.shape) if dim is None else a.movedim(dim, 0)


def _rows_rule(method: Method, operator: Any, backward: bool) -> Callable[..., Any]:
    """Rows: the batch is one more axis in front, of which the parameters know nothing. Their
    gradients are sums over the rows of one call."""
    first = 2 if backward else 1
    parameters = [
        first + (method.backward_arguments.index(i) if backward else i) for i in method.gradients
    ]
    axis = first + method.axis
    loop = _loop(operator)

    def sums(name: str, call: Sequence[Any], parameter: Tensor) -> Tensor:
        """The gradients of a parameter: sums of dy, and of dy times what the weight multiplies."""
        wide = torch.float64 if call[1].dtype == torch.float64 else torch.float32
        terms, x = call[0].to(wide), call[1].to(wide)
        if name == "weight":
            options = [
                None if i in method.arrays else call[2 + i] for i in range(len(method.arguments))
            ]
            if "weight_offset" in method.arguments:
                options[method.arguments.index("weight_offset")] = 0.0  # added to a weight
            terms = terms * method.operators["default"](x, *options)
        rows = [i for i in range(1, x.dim()) if i - x.dim() not in call[axis]]
        terms = terms.sum(rows) if rows else terms
        return terms.reshape(x.shape[0], *parameter.shape).to(parameter.dtype)

    def rule(info: Any, in_dims: Any, *arguments: Any) -> Any:
        if any(in_dims[i] is not None for i in parameters):
            return loop(info, in_dims, *arguments)
        wanted = arguments[-1] if backward and parameters else 0
        n = info.batch_size
        call = [
            _in_front(a, d, n) if isinstance(a, Tensor) and i not in parameters else a
            for i, (a, d) in enumerate(zip(arguments, in_dims, strict=True))
        ]
        ndim = call[0].dim() - 1
        call[axis] = [checked_axis("axis", a, ndim) - ndim for a in arguments[axis]]
        if wanted:
            call[-1] = 0
        results = operator(*call)
        if not isinstance(results, tuple):
            return results, 0
        if not backward:
            return results, (0,) * len(results)
        # Gradients that nobody wants have no elements and no batch.
        made, dims = [*results], [0, *[None] * len(parameters)]
        for k, i in enumerate(parameters):
            if wanted >> k & 1 and arguments[i] is not None:
                made[1 + k] = sums(method.arguments[method.gradients[k]], call, arguments[i])
                dims[1 + k] = 0
        return tuple(made), tuple(dims)

    return rule


def _channels_rule(
    method: Method, operator: Any, backward: bool, moves: bool = False
) -> Callable[..., Any]:
    """Channels: calls on n batches of C channels are one on n * C channels."""
    moving = [1 + i for i in method.buffers] if moves else []
    names = [method.arguments[i] for i in method.backward_arguments] if backward else []
    saved = ["pooled", "given"][: method.saved]
    names = ["dy", "x", *names, *saved, "wanted"] if backward else ["x", *method.arguments]
    learned = {method.arguments[i] for i in method.gradients + method.buffers}
    gradients = len(method.gradients) if backward else 0
    axis = names.index("channel_axis")
    loop = _loop(operator)

    def check_moving(in_dims: Any) -> None:
        if any(in_dims[i] is None for i in moving):
            raise RuntimeError(
                f"{method.name}: running statistics are moved in place, which torch.vmap cannot "
                "do where a batch of calls shares them; give each call its own, or freeze them"
            )

    def rule(info: Any, in_dims: Any, *arguments: Any) -> Any:
        n = info.batch_size
        check_moving(in_dims)
        given = dict(zip(names, zip(arguments, in_dims, strict=False), strict=False))
        # Pools of all channels of a sample do not part, nor do masks of their own: all channels
        # share one.
        if given.get("mask", (None, None))[1] is not None or "sample" in method.pools:
            return loop(info, in_dims, *arguments)
        x, x_dim = given["x"]
        ndim = x.dim() - (x_dim is not None)
        channel_axis = checked_axis("channel_axis", arguments[axis], ndim)

        def merged(a: Tensor, dim: Any) -> Tensor:
            a = _in_front(a, dim, n).movedim(0, channel_axis)
            return a.flatten(channel_axis, channel_axis + 1)

        def apart(a: Tensor) -> Tensor:
            return a.unflatten(channel_axis, (n, a.shape[channel_axis] // n))

        call = list(arguments)
        for i, name in enumerate(names[: len(arguments)]):
            a, dim = arguments[i], in_dims[i]
            if name in ("x", "dy"):
                call[i] = merged(a, dim)
            elif name in learned and a is not None:
                call[i] = _in_front(a, dim, n).reshape(-1)
            elif name == "num_groups":
                call[i] = a * n
            elif name in ("pooled", "given") and a is not None and a.dim() > 1 + (dim is not None):
                a = _in_front(a, dim, n)  # (n, C, 2) or (n, N, C, 2)
                call[i] = a.movedim(0, -3).flatten(-3, -2).contiguous()
            elif name in ("pooled", "given") and a is not None and dim is not None:
                call[i] = a.reshape(-1)[:0]  # what was not saved
            elif name == "channel_axis":
                call[i] = channel_axis
        results = operator(*call)
        for i in moving:
            arguments[i].movedim(in_dims[i], 0).copy_(call[i].view(n, -1))
        if not isinstance(results, tuple):
            return apart(results), channel_axis
        made: list[Tensor] = [apart(results[0])]
        dims: list[int | None] = [channel_axis]
        for i, r in enumerate(results[1:]):
            absent = r.numel() == 0 if i < gradients else r.dim() == 1
            if absent:
                made.append(r)
                dims.append(None)
            elif i < gradients:
                made.append(r.view(n, -1))
                dims.append(0)
            else:
                made.append(r.unflatten(-2, (n, r.shape[-2] // n)))
                dims.append(made[-1].dim() - 3)
        return tuple(made), tuple(dims)

    return rule


def _weights_rule(method: Method, operator: Any, backward: bool) -> Callable[..., Any]:
    """Weight norm: weights of n calls have n times as many positions of the kept axis."""
    first = 2 if backward else 1  # g, axis, eps
    loop = _loop(operator)

    def rule(info: Any, in_dims: Any, *arguments: Any) -> Any:
        n = info.batch_size
        g, axis = arguments[first], arguments[first + 1]
        v = arguments[first - 1]
        ndim = v.dim() - (in_dims[first - 1] is not None)
        kept = None if axis is None else checked_axis("axis", axis, ndim)
        size = 1 if kept is None else v.movedim(in_dims[first - 1] or 0, 0).shape[-ndim:][kept]
        g_size = g.numel() // (n if in_dims[first] is not None else 1)
        if g_size != size:
            return loop(info, in_dims, *arguments)

        def merged(a: Tensor, dim: Any) -> Tensor:
            a = _in_front(a, dim, n)
            return a if kept is None else a.movedim(kept + 1, 1).flatten(0, 1)

        def apart(a: Tensor) -> Tensor:
            return a if kept is None else a.unflatten(0, (n, size)).movedim(1, kept + 1)

        call = list(arguments)
        for i in range(first):
            call[i] = merged(arguments[i], in_dims[i])
        shape = g.shape if in_dims[first] is None else g.movedim(in_dims[first], 0).shape[1:]
        call[first] = _in_front(g, in_dims[first], n).reshape(-1)
        call[first + 1] = 0
        results = operator(*call)
        if not isinstance(results, tuple):
            return apart(results), 0
        dg = results[1]
        unwanted = dg.numel() == 0
        dg = dg if unwanted else dg.view(n, *shape)
        return (apart(results[0]), dg), (0, None if unwanted else 0)

    return rule


def _samples_rule(operator: Any, arrays: Sequence[int], wanted: bool) -> Callable[..., Any]:
    """Samples: what a method divides by lies within one; the batch is more of them."""
    loop = _loop(operator)

    def rule(info: Any, in_dims: Any, *arguments: Any) -> Any:
        n, many = info.batch_size, range(len(arguments))
        others = [i for i in many if i not in arrays and in_dims[i] is not None]
        ndim = arguments[0].dim() - (in_dims[0] is not None)
        channel_axis = checked_axis("channel_axis", arguments[-2 if wanted else -1], ndim)
        if others or (wanted and arguments[-1] != 0) or channel_axis == 0:
            return loop(info, in_dims, *arguments)
        call = list(arguments)
        for i in arrays:
            call[i] = _in_front(arguments[i], in_dims[i], n).flatten(0, 1)
        call[-2 if wanted else -1] = channel_axis
        results = operator(*call)
        if not isinstance(results, tuple):
            return results.unflatten(0, (n, -1)), 0
        dims = (0,) + (None,) * (len(results) - 1)
        return (results[0].unflatten(0, (n, -1)), *results[1:]), dims

    return rule


def _register_rules() -> None:
    makers = {"rows": _rows_rule, "channels": _channels_rule, "weights": _weights_rule}
    register = torch.library.register_vmap
    for method in METHODS.values():
        make = makers[method.family]
        for overload, operator in method.operators.items():
            moves = (True,) if "moves" in overload else ()
            register(operator.name(), make(method, operator, False, *moves))
        register(method.backward.name(), make(method, method.backward, True))
    for name in ("divisive_norm", "gdn", "local_divisive_norm", "local_response_norm"):
        forward, backward = getattr(OPS, name).default, getattr(OPS, name + "_backward").default
        register(forward.name(), _samples_rule(forward, [0], False))
        wanted = name != "local_response_norm"
        register(backward.name(), _samples_rule(backward, [0, 1], wanted))
    for name in ("spectral_norm", "spectral_norm_backward"):
        operator = getattr(OPS, name).default
        register(operator.name(), _loop(operator))


_register_rules()
