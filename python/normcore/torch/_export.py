"""What ``torch.export`` records of a call: an operator with a gradient, since its graph may be
trained, that changes nothing in place."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def _results(made: Any) -> tuple[Tensor, ...]:
    return made if isinstance(made, tuple) else (made,)


def recorded(
    name: str, schema: str, call: Callable[..., Any], function: type[Function], outputs: int,
    moving: Sequence[int] = (),
) -> Any:  # fmt: skip
    """The operator ``normcore::name``: `call` with the arguments of a schema, with the gradients of
    ``function`` for the first ``outputs`` results. In place of arguments at the places ``moving``
    behind x, which `call` changes, it gives new ones behind its results.
    """
    match = re.search(r"\((.*)\) -> \(?([^()]*)\)?$", re.sub(r"\(\w!\)", "", schema))
    assert match is not None
    results = ", ".join([match[2], *["Tensor"] * len(moving)])

    def run(x: Tensor, *arguments: Any) -> Any:
        given = list(arguments)
        for i in moving:
            given[i] = given[i].clone()
        made = (*_results(call(x, *given)), *(given[i] for i in moving))
        return made if len(made) > 1 else made[0]

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        made, inputs = _results(output), list(inputs)
        first_moved = len(made) - len(moving)
        for i, moved in zip(moving, made[first_moved:], strict=True):
            inputs[1 + i] = moved  # the caller writes it to what was given
        function.setup_context(ctx, inputs, made[:first_moved])
        ctx.mark_non_differentiable(*made[outputs:])

    operator = torch.library.custom_op(
        f"normcore::{name}", run, mutates_args=(), schema=f"({match[1]}) -> ({results})"
    )
    operator.register_fake(run)
    operator.register_autograd(function.backward, setup_context=setup_context)
    return operator
