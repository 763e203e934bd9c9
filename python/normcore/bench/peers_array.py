"""NumPy and jax.jit as peers: the formulas of `formulas.py` on their arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import formulas
from .peers import Prepared
from .workload import Unsupported, Workload


class NumPy:
    """The formula in NumPy, for scale."""

    name = "numpy"
    version = np.__version__

    def __init__(self, threads: int) -> None:
        pass  # its element-wise loops have one thread

    def prepare(self, work: Workload, kernel: bool) -> Prepared:
        """The formula; NumPy allocates its temporaries in either mode."""
        case, x, dy, arrays = work.case, work.x, work.dy, (work.params, work.buffers)
        if not formulas.has(case, case.direction):
            raise Unsupported(f"no formula of {case.op} {case.direction}")
        if case.direction == "forward":
            return Prepared(lambda: formulas.forward(np, case, x, *arrays), lambda y: [y])
        return Prepared(
            lambda: formulas.backward(np, case, dy, x, *arrays), lambda gradients: list(gradients)
        )

    def forget(self) -> None:
        """Nothing is kept."""


class Jax:
    """The formula under jax.jit; backward is the jitted vjp, given the residuals of forward."""

    name = "jax"

    def __init__(self, threads: int) -> None:
        import jax

        self._jax: Any = jax
        self._jax.config.update("jax_platforms", "cpu")  # threads follow the process's affinity
        self.version = jax.__version__

    def prepare(self, work: Workload, kernel: bool) -> Prepared:
        """A jitted call that waits for its result."""
        jax, case = self._jax, work.case
        if not formulas.has(case, "forward"):
            raise Unsupported(f"no formula of {case.op}")
        x, dy = (jax.numpy.asarray(a) for a in (work.x, work.dy))
        params = [jax.numpy.asarray(a) for a in work.params.values()]
        buffers = {name: jax.numpy.asarray(a) for name, a in work.buffers.items()}

        def formula(x: Any, *params: Any) -> Any:
            named = dict(zip(work.params, params, strict=True))
            return formulas.forward(jax.numpy, case, x, named, buffers)

        try:
            if case.direction == "forward":
                jitted = jax.jit(formula)
                return Prepared(
                    lambda: jitted(x, *params).block_until_ready(), lambda y: [np.asarray(y)]
                )
            # The vjp is a pytree of its residuals, so forward and backward can be two programs.
            pullback = jax.jit(lambda *args: jax.vjp(formula, *args)[1])(x, *params)
            jitted = jax.jit(lambda pullback, dy: pullback(dy))
            return Prepared(
                lambda: jax.block_until_ready(jitted(pullback, dy)),
                lambda gradients: [np.asarray(g) for g in gradients],
            )
        except (TypeError, NotImplementedError) as error:
            raise Unsupported(str(error).splitlines()[0]) from error

    def forget(self) -> None:
        """Drop the compiled programs."""
        self._jax.clear_caches()
