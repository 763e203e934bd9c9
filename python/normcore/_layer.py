"""What all layers share: parameters, gradients, buffers and their life between two calls.

A layer owns arrays and remembers, from one forward call, what its backward call needs; all
arithmetic is in `normcore.functional`. A subclass of `_Layer` names its two functions, says which
options both of them take (`_options`) and which shapes it accepts (`_check_shape`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, SupportsIndex, TypeVar

import numpy as np
import numpy.typing as npt

from ._dtypes import FLOATS, float_dtype, stored
from ._interop import Array

Layer = TypeVar("Layer", bound="_Layer")


class StateDictError(RuntimeError, ValueError):
    """`load_state_dict` was given arrays that do not fit the layer.

    A RuntimeError, which torch raises here, and a ValueError as other misfitting shapes are.
    """


def positive(name: str, value: SupportsIndex) -> int:
    result = operator.index(value)
    if result < 1:
        raise ValueError(f"{name} is {result}, expected at least 1")
    return result


def affine_parameters(
    shape: tuple[int, ...], dtype: npt.DTypeLike, *, weight: bool, bias: bool, start: float = 1.0
) -> dict[str, Array]:
    """Return new parameters: weight at `start`, bias at 0, each only where wanted."""
    kind = float_dtype(dtype)
    wanted = {"weight": (weight, start), "bias": (bias, 0.0)}
    return {name: np.full(shape, value, kind) for name, (want, value) in wanted.items() if want}


class _Layer:
    """State and protocol that all layers share.

    Attributes
    ----------
    parameters, grads, buffers : dict of str to numpy.ndarray
        Trained arrays, their accumulated gradients (same keys, shapes and dtypes) and running
        statistics. Update the arrays in place: ``layer.parameters["weight"] -= step``.
    training : bool
        Set by `train` and `eval`.
    """

    _function: ClassVar[Callable[..., Any]]
    _function_backward: ClassVar[Callable[..., Any]]
    # repr shows `_leading` by value, `_named` as name=value, `_unusual` only off its default.
    _leading: ClassVar[tuple[str, ...]]
    _named: ClassVar[tuple[str, ...]]
    _unusual: ClassVar[dict[str, object]] = {}

    def __init__(
        self, parameters: dict[str, Array], buffers: dict[str, Array] | None = None
    ) -> None:
        self.training = True
        self.parameters = parameters
        self.buffers: dict[str, Array] = buffers or {}
        self.grads: dict[str, Array] = {}
        # The backward function, all but dy bound.
        self._gradient: Callable[..., Any] | None = None
        self.zero_grad()

    def _options(self) -> dict[str, Any]:
        """Return the keyword arguments that forward and backward have in common."""
        raise NotImplementedError

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        raise NotImplementedError

    def __call__(self, x: Any) -> Any:
        """Normalize x and remember what `backward` needs (x itself, not a copy)."""
        return self._run(x)

    def _run(self, x: Any, per_call: Mapping[str, Any] | None = None, **forward_only: Any) -> Any:
        """Run forward; ``per_call`` are options of this call, also of its gradient."""
        self._gradient = None  # so that no gradient of an earlier call outlives a failed one
        self._check_shape(np.shape(x))
        common = {**self.parameters, **self._options(), **(per_call or {})}
        *outputs, stats = self._function(x, **common, **forward_only, return_stats=True)
        # With a residual the outputs are (y, h), and h is what was normalized.
        normalized = outputs[1] if len(outputs) == 2 else x
        self._gradient = partial(self._function_backward, x=normalized, stats=stats, **common)
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    def backward(self, dy: Any) -> Any:
        """Return dx for the last forward call; add the parameters' gradients to `grads`.

        Parameters
        ----------
        dy : array
            Gradient of the loss with respect to the output; the output's shape.

        Returns
        -------
        array
            Gradient with respect to x; x's shape, dtype and library.

        Raises
        ------
        RuntimeError
            When no forward call has succeeded before.
        """
        return self._run_backward(dy)

    def _run_backward(self, dy: Any, **options: Any) -> Any:
        if self._gradient is None:
            raise RuntimeError(f"{type(self).__name__}.backward called before a forward call")
        gradients = self._gradient(dy, **options)
        for name in self.parameters:
            self.grads[name] += getattr(gradients, f"d{name}")
        return gradients.dx

    def zero_grad(self) -> None:
        """Set all gradients to new arrays of zeros."""
        for name, parameter in self.parameters.items():
            self.grads[name] = np.zeros_like(parameter)

    def train(self: Layer, mode: bool = True) -> Layer:
        """Switch to training mode (or, with ``mode=False``, to evaluation); return self."""
        self.training = bool(mode)
        return self

    def eval(self: Layer) -> Layer:
        """Switch to evaluation mode; return self."""
        return self.train(False)

    def state_dict(self) -> dict[str, Array]:
        """Return parameters and buffers under torch's names.

        The arrays are the layer's own, not copies, as in torch: ``copy.deepcopy`` the result to
        keep a snapshot. ``{k: torch.from_numpy(v) for k, v in layer.state_dict().items()}`` is
        what a torch module loads (bfloat16 arrays: ``torch.from_numpy(v.astype("float32"))``).
        """
        return {**self.parameters, **self.buffers}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy values into the layer's own arrays, converting them to its dtypes.

        Parameters
        ----------
        state_dict : mapping of str to array
            Exactly the keys of `state_dict`, ``num_batches_tracked`` being optional. NumPy
            arrays (also bfloat16 ones as ``numpy.load`` returns them), torch tensors (of any
            device and dtype), JAX arrays, lists.

        Raises
        ------
        StateDictError
            Names every missing or unexpected key and every misfit; nothing has been changed.
        """
        own = self.state_dict()
        problems = []
        if missing := [k for k in own if k not in state_dict and k != "num_batches_tracked"]:
            problems.append(f"missing {', '.join(missing)}")
        if unexpected := [str(k) for k in state_dict if k not in own]:
            problems.append(f"unexpected {', '.join(unexpected)}")
        values = {}  # copies, as state_dict may hold our own arrays under other names
        for name, target in own.items():
            if name not in state_dict:
                continue
            value = stored(state_dict[name], name)
            if value.dtype.kind not in "biuf" and value.dtype.name not in FLOATS:
                problems.append(f"{name} has dtype {value.dtype}, expected real numbers")
            elif value.shape != target.shape:
                problems.append(f"{name} has shape {value.shape}, expected {target.shape}")
            else:
                values[name] = np.array(value, target.dtype)
        if problems:
            raise StateDictError(f"load_state_dict of {self!r}: {'; '.join(problems)}")
        for name, value in values.items():
            own[name][...] = value

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles carry no activations: they can go backward after their own forward.
        return {**self.__dict__, "_gradient": None}

    def __repr__(self) -> str:
        values = {**vars(self), "bias": "bias" in self.parameters}
        unusual = (name for name, default in self._unusual.items() if values[name] != default)
        arguments = [repr(values[name]) for name in self._leading]
        arguments += [f"{name}={values[name]!r}" for name in (*self._named, *unusual)]
        return f"{type(self).__name__}({', '.join(arguments)})"
