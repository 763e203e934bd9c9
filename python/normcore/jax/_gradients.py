"""The handlers as functions with gradients.

The first gradients are the handlers' own. A derivative of a gradient comes from `_formulas`, where
the method has one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .._formulas import Formulas
from ._batching import KEPT_CALLS, Items, backward, forward
from ._handlers import HANDLERS, Arrays

FORMULAS = Formulas(jnp, jnp.astype, jax.nn.softmax)

# What backward takes beside the arrays of a formula, which computes it again.
_RESULTS = ("pooled", "given", "dh", "y", "sigma")


@lru_cache(KEPT_CALLS)
def operator(name: str, items: Items) -> Callable[[Arrays], Arrays]:
    """A method with these options as a function of its arrays, compiled once for their shapes.

    Its results are y and, as the call has them, the sum with a residual and new running buffers,
    which have no gradient.
    """
    handler, options = HANDLERS[name], dict(items)
    pullback = _pullback(name, tuple(handler.backward_options(options).items()))

    @jax.custom_vjp
    def function(arrays: Arrays) -> Arrays:
        return handler.outputs(forward(name, items, False)(arrays))

    # The same with what backward takes: a function with a gradient as well, since that of a
    # gradient goes through here.
    @jax.custom_vjp
    def saving(arrays: Arrays) -> Arrays:
        return forward(name, items, True)(arrays)

    def keep(arrays: Arrays) -> tuple[Arrays, Any]:
        results = saving(arrays)
        names = dict.fromkeys(arrays)  # None is no leaf
        return results, (names, handler.for_backward(arrays, results))

    def pull(kept: Any, outer: Arrays) -> tuple[dict[str, Array | None]]:
        names, arrays = kept
        arrays = {**arrays, handler.dy: outer["y"]}
        if "h" in outer:
            arrays["dh"] = outer["h"]
        down = pullback(arrays)
        down["residual"] = down[handler.x]
        return ({k: down.get(k) for k in names},)

    def keep_outputs(arrays: Arrays) -> tuple[Arrays, Any]:
        results, kept = keep(arrays)
        return handler.outputs(results), kept

    saving.defvjp(keep, pull)
    function.defvjp(keep_outputs, pull)
    return jax.jit(function)


def _pullback(name: str, items: Items) -> Callable[[Arrays], Arrays]:
    """The gradients of x and of the arrays that have one, as a function that has a derivative."""
    handler, options = HANDLERS[name], dict(items)
    formula = FORMULAS.get(name)

    @jax.custom_vjp
    def function(arrays: Arrays) -> Arrays:
        wanted = tuple(a for a in handler.gradients if a in arrays)
        return backward(name, items, wanted)(arrays)

    def keep(arrays: Arrays) -> tuple[Arrays, Arrays]:
        if formula is None:
            raise NotImplementedError(
                f"{name} has no derivatives of its gradients, only first gradients"
            )
        return function(arrays), arrays

    def pull(arrays: Arrays, outer: Arrays) -> tuple[dict[str, Array | None]]:
        assert formula is not None
        moving = {k: arrays[k] for k in (handler.dy, *outer)}
        fixed = {k: a for k, a in arrays.items() if k not in {*moving, *_RESULTS}}

        def first(moving: Arrays) -> Arrays:
            inputs = {k: a for k, a in moving.items() if k != handler.dy}
            _, pull = jax.vjp(lambda a: formula(**a, **fixed, **options), inputs)
            (down,) = pull(moving[handler.dy])
            return down

        _, pull = jax.vjp(first, moving)
        (down,) = pull(outer)
        down["dh"] = outer[handler.x]
        return ({k: down.get(k) for k in arrays},)

    function.defvjp(keep, pull)
    return function
