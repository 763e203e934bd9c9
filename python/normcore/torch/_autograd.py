"""Gradients of the operators in torch's autograd.

Each operator has a plain function, for eager calls, and one in the form that transforms and
``torch.compile`` need, which costs a small call more. Both have the same backward. A derivative of
a derivative (double backward, or the forward mode) comes from `_formulas`; and so does y, where one
forward mode is within another.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from .._formulas import Formulas
from ._export import recorded
from ._operators import METHODS, OPS, Method, direct

FORMULAS = Formulas(torch, Tensor.to, torch.softmax)

_transforms_active = torch._C._are_functorch_transforms_active


class _Entered(threading.local):
    processes: Processes | None = None


_entered = _Entered()


class Processes:
    """Whom the calls of a thread share the statistics of batches with: ``together()`` is a context
    for one call of an operator, in all processes at once."""

    def together(self) -> AbstractContextManager[None]:
        raise NotImplementedError

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Calls within share statistics, as their backward does."""
        outer, _entered.processes = _entered.processes, self
        try:
            with self.together():
                yield
        finally:
            _entered.processes = outer


class Integers(tuple[int, ...]):
    """A list among the arguments of a function that is transformed: torch would take any other one
    for several arguments."""


def push_forward(function: Callable[..., Any], inputs: Any, tangents: Any) -> tuple[Tensor, ...]:
    """The derivatives along the tangents of a function that returns a tuple: as the gradients of
    the pullback, which is linear, since no forward mode begins within torch's rule of another."""

    def pullback(*dy: Tensor) -> Any:
        _, pull = torch.func.vjp(function, *inputs)
        return pull(dy)

    with torch.no_grad():
        zeros = [torch.zeros_like(y) for y in function(*inputs)]
    _, push = torch.func.vjp(pullback, *zeros)
    return push(tuple(tangents))


def _nested_forward() -> bool:
    """Whether several forward modes are active, the outer of which torch hides from the rules of
    functions such as ours: then formulas are followed instead."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    modes = sum(i.key() == torch._C._functorch.TransformType.Jvp for i in stack)
    return modes > 1


def is_recorded() -> bool:
    """Whether ``torch.export`` records the call, into a graph that may be trained."""
    return torch.compiler.is_exporting()


def refuse(name: str, what: str) -> Any:
    raise NotImplementedError(f"{name} has no {what}, only first gradients in reverse mode")


class Operator:
    """What calls a method with or without gradients.

    ``count`` is how many arguments stand behind x, ``arrays`` the places of the tensors among them,
    ``gradients`` of those that have a gradient. ``taken`` are the places of what backward takes,
    and ``saved`` is how many tensors forward leaves for it. ``formula(x, *arguments)`` is y, or
    None. With ``sums`` the last argument is a residual, and the results are y and its sum with x.
    """

    name: str
    count: int
    arrays: Sequence[int]
    gradients: Sequence[int]
    taken: Sequence[int]
    saved = 0
    sums = takes_sum = False
    formula: Callable[..., Tensor] | None = None
    moving: Sequence[int] = ()  # places of running buffers
    inference: Any = None  # the operator of calls without gradients, where one does for all
    backward: Any

    def forward(self, arguments: Sequence[Any], saves: bool) -> Any:
        """The operator for these arguments; its results are y and what it leaves."""
        raise NotImplementedError

    def moves(self, arguments: Sequence[Any]) -> bool:
        """Whether a call moves running buffers."""
        return False

    def __init__(self) -> None:
        self._eager, traced, self._transformed = _functions(self)
        self._recorded = {
            moves: recorded(
                f"{self.name}{'_sum' * self.sums}{'_moved' * moves}_recorded", schema, call, traced,
                1 + self.sums, self.moving if moves else (),
            )
            for moves, (schema, call) in self.recorded_calls().items()
        }  # fmt: skip
        # torch.compile does not look into it: what AOTAutograd traces are the operators.
        self._traced = torch.compiler.allow_in_graph(lambda *call: traced.apply(*call))

    def __call__(self, x: Tensor, *arguments: Any) -> Any:
        if is_recorded():
            results = self._record(x, arguments)
        elif torch.compiler.is_compiling():
            results = self._traced(x, *arguments)
        elif _transforms_active() or forward_ad._current_level >= 0:
            if _nested_forward():
                return self._by_formula(x, arguments)
            leaves = (Integers(a) if isinstance(a, list | tuple) else a for a in arguments)
            results = self._transformed.apply(x, *leaves)
        else:
            try:
                if torch.is_grad_enabled():
                    return self._eager.apply(x, *arguments)
                return (self.inference or self.forward(arguments, False))(x, *arguments)
            except RuntimeError as error:
                _explain(error)
                raise
        return results[:2] if self.sums else results[0]

    def recorded_calls(self) -> dict[bool, tuple[str, Callable[..., Any]]]:
        """Schemas and operators that leave what backward takes, by whether running buffers move."""
        raise NotImplementedError

    def _record(self, x: Tensor, arguments: Sequence[Any]) -> Any:
        moves = self.moves(arguments)
        made = self._recorded[moves](x, *arguments)
        results = made if isinstance(made, tuple) else (made,)
        if moves:
            for i, new in zip(self.moving, results[-len(self.moving) :], strict=True):
                arguments[i].copy_(new)
        return results

    def _by_formula(self, x: Tensor, arguments: Sequence[Any]) -> Any:
        formula = self.formula or refuse(self.name, "derivatives in nested forward modes")
        if _entered.processes is not None or self.moves(arguments):  # of which no formula knows
            refuse(self.name, "derivatives in nested forward modes where statistics move")
        if not self.sums:
            return formula(x, *arguments)
        *arguments, residual = arguments
        h = x + residual
        return formula(h, *arguments), h


def _explain(error: RuntimeError) -> None:
    """Raise what torch says of an argument of another kind than an operator takes as a TypeError
    that names it."""
    found = re.search(
        r"Expected a value of type '([^']*)' for argument '([^']*)' "
        r"but instead found type '([^']*)'",
        str(error),
    )
    if found:
        expected, name, kind = found.groups()
        raise TypeError(f"{name} is of type {kind}, expected {expected}") from None


def _picker(places: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """A function that takes the values at these places."""
    if len(places) > 1:
        return itemgetter(*places)
    return lambda values: tuple(values[i] for i in places)


def _functions(op: Operator) -> tuple[type[Function], type[Function], type[Function]]:
    """For eager calls, for torch.compile, which takes no forward mode, and for transforms."""
    arrays, gradients, sums, count = tuple(op.arrays), tuple(op.gradients), op.sums, op.count
    others = tuple(i for i in range(count - sums) if i not in arrays)
    tensors_of, rest_of = _picker(arrays), _picker(others)
    # What backward takes behind dy, as places in (x, *arrays, *saved, *others, dh).
    first_saved = 1 + len(arrays)
    at = {i: 1 + k for k, i in enumerate(arrays)}
    at |= {i: first_saved + op.saved + k for k, i in enumerate(others)}
    taken = [0, *(at[i] for i in op.taken)]
    taken += [first_saved + op.saved + len(others)] if op.takes_sum else []
    taken_of = _picker([*taken, *range(first_saved, first_saved + op.saved)])
    wanted_of: dict[tuple[bool, ...], int] = {}

    def keep(ctx: Any, x: Tensor, arguments: Sequence[Any], saved: Sequence[Tensor]) -> None:
        ctx.save_for_backward(x, *tensors_of(arguments), *saved)
        ctx.rest = rest_of(arguments)

    def restore(ctx: Any) -> tuple[Tensor, list[Any], Sequence[Tensor]]:
        """x, the arguments but for a residual, and what else was saved."""
        x, *tensors = ctx.saved_tensors
        arguments: list[Any] = [None] * (count - sums)
        for i, a in zip(arrays, tensors, strict=False):
            arguments[i] = a
        for i, a in zip(others, ctx.rest, strict=True):
            arguments[i] = a
        return x, arguments, tensors[len(arrays) :]

    def first_gradients(dy: Tensor, values: tuple[Any, ...], wanted: int) -> Sequence[Tensor]:
        call = taken_of(values)
        results = op.backward(dy, *call, wanted) if gradients else op.backward(dy, *call)
        return results if isinstance(results, tuple) else (results,)

    def wanted_in(needs: tuple[bool, ...]) -> int:
        wanted = wanted_of.get(needs)
        if wanted is None:
            wanted = sum(needs[1 + i] << k for k, i in enumerate(gradients))
            wanted_of[needs] = wanted
        return wanted

    def backward(ctx: Any, dy: Any, *gradients_of_others: Any) -> Any:
        results: list[Any] = [None] * (1 + count)
        dh = gradients_of_others[0] if sums else None
        if dy is None:
            results[0] = results[-1] = dh
            return tuple(results)
        wanted = wanted_in(ctx.needs_input_grad)
        values = (*ctx.saved_tensors, *ctx.rest, dh)

        def run() -> Sequence[Tensor]:
            if not torch.is_grad_enabled():
                return first_gradients(dy, values, wanted)
            if ctx.processes is not None:  # of which no formula knows
                refuse(op.name, "double backward with statistics over processes")
            dx, *down = Backward.apply(dy, wanted, *values[:-1])
            return dx if dh is None else dx + dh, *down

        if ctx.processes is None:
            results[0], *down = run()
        else:
            with ctx.processes.together():
                results[0], *down = run()
        for k, i in enumerate(gradients):
            if wanted >> k & 1:
                results[1 + i] = down[k]
        if sums:
            results[-1] = results[0]
        return tuple(results)

    class Eager(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, *arguments: Any) -> Any:
            ctx.processes = _entered.processes
            results = op.forward(arguments, True)(x, *arguments)
            if isinstance(results, Tensor):
                keep(ctx, x, arguments, ())
                return results
            if sums:
                ctx.set_materialize_grads(False)
                keep(ctx, results[1], arguments, results[2:])
                return results[:2]
            keep(ctx, x, arguments, results[1:])
            return results[0]

    class Traced(Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
            results = op.forward(arguments, True)(x, *arguments)
            return results if isinstance(results, tuple) else (results,)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            x, *arguments = inputs
            x = output[1] if sums else x
            saved = output[1 + sums :]
            ctx.processes = _entered.processes
            ctx.mark_non_differentiable(*saved)
            ctx.set_materialize_grads(False)
            keep(ctx, x, arguments, saved)
            ctx.save_for_forward(x, *[arguments[i] for i in arrays], *saved)

    class Transformed(Traced):
        @staticmethod
        def jvp(ctx: Any, x_tangent: Any, *tangents: Any) -> Any:
            formula = op.formula or refuse(op.name, "derivative in forward mode")
            if ctx.processes is not None:
                refuse(op.name, "derivative in forward mode with statistics over processes")
            x, arguments, saved = restore(ctx)
            if sums:
                parts = [t for t in (x_tangent, tangents[-1]) if t is not None]
                x_tangent = sum(parts) if parts else torch.zeros_like(x)
            inputs = [(0, x, x_tangent)]
            inputs += [(1 + i, arguments[i], tangents[i]) for i in gradients]
            moving = [(i, a, t.to(a.dtype)) for i, a, t in inputs if t is not None]
            moving = moving or [(0, x, torch.zeros_like(x))]

            def of(*values: Tensor) -> tuple[Tensor]:
                call = [x, *arguments]
                for (i, _, _), value in zip(moving, values, strict=True):
                    call[i] = value
                return (formula(*call),)

            (y_tangent,) = push_forward(of, [a for _, a, _ in moving], [t for _, _, t in moving])
            return (y_tangent, *([x_tangent] if sums else []), *[None] * len(saved))

    class Backward(Function):
        """The first gradients as a function of (dy, wanted, x, *arrays, *saved, *others)."""

        generate_vmap_rule = True

        @staticmethod
        def forward(dy: Tensor, wanted: int, *values: Any) -> Any:
            return tuple(first_gradients(dy, (*values, None), wanted))

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            dy, ctx.wanted, *values = inputs
            ctx.set_materialize_grads(False)
            ctx.rest = values[first_saved + op.saved :]
            ctx.save_for_backward(*values[:first_saved], dy)
            ctx.save_for_forward(*values[:first_saved], dy)

        @staticmethod
        def first(ctx: Any, what: str) -> tuple[Callable[..., Any], list[Tensor], list[int]]:
            """The first gradients by the formula as a function of (dy, x, *parameters); what it is
            called with; and which gradients there are."""
            formula = op.formula or refuse(op.name, what)
            x, call, (dy,) = restore(ctx)
            there = [k for k, i in enumerate(gradients) if call[i] is not None]

            def of(x: Tensor, *values: Tensor) -> Tensor:
                inner = list(call)
                for k, value in zip(there, values, strict=True):
                    inner[gradients[k]] = value
                return formula(x, *inner)

            def first(dy: Tensor, *inputs: Tensor) -> Any:
                _, pull = torch.func.vjp(of, *inputs)
                return pull(dy)

            return first, [dy, x, *[call[gradients[k]] for k in there]], there

        @staticmethod
        def backward(ctx: Any, dx: Any, *down: Any) -> Any:
            first, inputs, there = Backward.first(ctx, "double backward")
            outer = [dx, *[down[k] if ctx.wanted >> k & 1 else None for k in there]]
            outer = [
                torch.zeros_like(a) if d is None else d
                for a, d in zip(inputs[1:], outer, strict=True)
            ]
            _, pull = torch.func.vjp(first, *inputs)
            ddy, ddx, *dparameters = pull(tuple(outer))
            results = [None] * (2 + first_saved + op.saved + len(others))
            results[0], results[2] = ddy, ddx
            for k, d in zip(there, dparameters, strict=True):
                results[2 + at[gradients[k]]] = d
            return tuple(results)

        @staticmethod
        def jvp(ctx: Any, dy_tangent: Any, _: Any, *tangents: Any) -> Any:
            first, inputs, there = Backward.first(ctx, "derivative in forward mode")
            moves = [dy_tangent, tangents[0], *(tangents[at[gradients[k]]] for k in there)]
            moves = [
                torch.zeros_like(a) if t is None else t.to(a.dtype)
                for a, t in zip(inputs, moves, strict=True)
            ]
            dx, *down = push_forward(first, inputs, moves)
            results = [dx] + [dx.new_zeros((0,)) for _ in gradients]
            for k, d in zip(there, down, strict=True):
                if ctx.wanted >> k & 1:
                    results[1 + k] = d
            return tuple(results)

    Eager.backward = Traced.backward = staticmethod(backward)
    for function in (Eager, Traced, Transformed, Backward):
        kind = "" if function is Eager else function.__name__
        function.__name__ = function.__qualname__ = op.name.title().replace("_", "") + kind
        function._backward_cls.__name__ = f"{function.__name__}Backward"  # the node of a graph
    return Eager, Traced, Transformed


class MethodOperator(Operator):
    """An operator of a method with a signature."""

    def __init__(self, method: Method, sums: bool = False) -> None:
        self.method, self.sums, self.takes_sum = method, sums, method.has_residual
        self.name, self.count = method.name, len(method.arguments) + sums
        self.arrays, self.gradients = method.arrays, method.gradients
        self.taken, self.saved = method.backward_arguments, method.saved
        self.formula, self.backward = self._formula(), direct(method.backward)
        self.moving = method.buffers
        if not method.buffers:
            self.inference = method.forward(False, False, sums)
        super().__init__()

    def _formula(self) -> Callable[..., Tensor] | None:
        """The formula, of arguments by position."""
        formula, names = FORMULAS.get(self.name), self.method.arguments
        if formula is None:
            return None
        return lambda x, *arguments: formula(x, **dict(zip(names, arguments, strict=True)))

    def moves(self, arguments: Sequence[Any]) -> bool:
        return bool(self.method.buffers) and self.method.moves(arguments)

    def forward(self, arguments: Sequence[Any], saves: bool) -> Any:
        return self.method.forward(saves, self.moves(arguments), self.sums)

    def recorded_calls(self) -> dict[bool, tuple[str, Callable[..., Any]]]:
        calls = {}
        for moves in (False, True):
            kinds = {"sum": self.sums, "moves": moves, "saved": self.saved > 0}
            overload = "_".join(kind for kind, there in kinds.items() if there) or "default"
            if overload in self.method.operators:
                call = self.method.forward(True, moves, self.sums)
                calls[moves] = str(self.method.operators[overload]._schema), call
        return calls


class SpecialOperator(Operator):
    """An operator without a signature, whose backward takes what forward does."""

    def __init__(
        self, name: str, count: int, gradients: Sequence[int], taken: Sequence[int] | None = None
    ) -> None:
        self.name, self.count = name, count
        self.taken = range(count) if taken is None else taken
        self.arrays = self.gradients = gradients
        self._forward = direct(getattr(OPS, name).default)
        self.backward = direct(getattr(OPS, name + "_backward").default)
        super().__init__()

    def forward(self, arguments: Sequence[Any], saves: bool) -> Any:
        return self._forward

    def recorded_calls(self) -> dict[bool, tuple[str, Callable[..., Any]]]:
        return {False: (str(getattr(OPS, self.name).default._schema), self.forward((), True))}


class GdnOperator(SpecialOperator):
    """GDN, whose exponents may learn: behind gamma stands a tensor of both, or None, which the
    operators do not take."""

    def __init__(self) -> None:
        super().__init__("gdn", 7, (0, 1, 2), taken=(0, 1, 3, 4, 5, 6))

    def forward(self, arguments: Sequence[Any], saves: bool) -> Any:
        return lambda x, beta, gamma, exponents, *rest: self._forward(x, beta, gamma, *rest)

    def recorded_calls(self) -> dict[bool, tuple[str, Callable[..., Any]]]:
        schema, call = super().recorded_calls()[False]
        return {False: (schema.replace("gamma,", "gamma, Tensor? exponents,"), call)}


def _spectral_formula(ctx: Any, u: Tensor, v: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda weight: FORMULAS.spectral_norm(weight, u, v, axis=ctx.axis, bound=ctx.bound)


class SpectralNormTraced(Function):
    """(w, sigma, u, v) of a weight; u and v are constants, and w alone has a gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, *arguments: Any) -> Any:
        return OPS.spectral_norm.default(weight, *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        weight, _, _, _, ctx.axis, _, ctx.bound, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, *output)
        ctx.save_for_forward(weight, *output)

    @staticmethod
    def backward(ctx: Any, dw: Any, *_: Any) -> Any:
        if dw is None:
            return (None,) * 8
        weight, w, sigma, u, v = ctx.saved_tensors
        if torch.is_grad_enabled():
            _, pull = torch.func.vjp(_spectral_formula(ctx, u, v), weight)
            return (*pull(dw), *(None,) * 7)
        backward = OPS.spectral_norm_backward.default
        return (backward(dw, w, sigma, u, v, ctx.axis, ctx.bound), *(None,) * 7)


class SpectralNorm(SpectralNormTraced):
    """The same outside of torch.compile, which takes no forward mode."""

    @staticmethod
    def jvp(ctx: Any, tangent: Any, *_: Any) -> Any:
        weight, _, _, u, v = ctx.saved_tensors
        if tangent is None:
            return torch.zeros_like(weight), None, None, None
        formula = _spectral_formula(ctx, u, v)
        return *push_forward(lambda m: (formula(m),), (weight,), (tangent,)), None, None, None


_recorded_spectral_norm = recorded(
    "spectral_norm_recorded", str(OPS.spectral_norm.default._schema), OPS.spectral_norm.default,
    SpectralNormTraced, 1,
)  # fmt: skip


def spectral_norm(weight: Tensor, *arguments: Any) -> Any:
    """(w, sigma, u, v) by the operator, whose arguments these are, with w's gradient."""
    if is_recorded():
        return _recorded_spectral_norm(weight, *arguments)
    if torch.compiler.is_compiling():
        return SpectralNormTraced.apply(weight, *arguments)
    if _nested_forward():
        refuse("spectral_norm", "derivatives in nested forward modes")
    return SpectralNorm.apply(weight, *arguments)


OPERATORS: dict[str, Operator] = {name: MethodOperator(method) for name, method in METHODS.items()}
SUMS = {name: MethodOperator(m, sums=True) for name, m in METHODS.items() if m.has_residual}
for _name, _count, _gradients in (
    ("divisive_norm", 6, (0, 1, 2)),
    ("local_divisive_norm", 6, (0, 1, 2)),
    ("local_response_norm", 7, ()),
):
    OPERATORS[_name] = SpecialOperator(_name, _count, _gradients)
OPERATORS["gdn"] = GdnOperator()
