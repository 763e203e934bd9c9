"""What all layers share: parameters, gradients, buffers and their life between two calls.

A layer owns arrays and remembers, from one forward call, what its backward call needs; all
arithmetic is in the functions. A subclass of `_Layer` names its two functions and says which shapes
it accepts (`_check_shape`). What its function takes and returns is read from the signature of the
method, once for each class; layers of other functions say it themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from . import _core
from ._arguments import flag, shape_of, shown
from ._dtypes import FLOATS, float_dtype, new_array, stored
from ._interop import Array, library_of
from ._owned import cast, check_owned, in_numpy, mover, numpy_dtype, write, zeros_like
from ._typing import A

if TYPE_CHECKING:
    from ._core import Signature

Layer = TypeVar("Layer", bound="_Layer")

# What the functions of registered methods take and return, by their names.
SIGNATURES = {s["function"]: s for s in _core.signatures().values()}


class StateDictError(RuntimeError, ValueError):
    """`load_state_dict` was given arrays that do not fit the layer.

    A RuntimeError, which torch raises here, and a ValueError as other misfitting shapes are.
    """


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` found missing or unexpected, as torch returns it."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        keys = f"missing_keys={self.missing_keys}, unexpected_keys={self.unexpected_keys}"
        return f"{type(self).__name__}({keys})"


def check_writable(values: Iterable[tuple[str, Any]], error: type[Exception] = ValueError) -> None:
    """Make sure that all of some arrays can be written, before the first one is."""
    for name, value in values:
        check_owned(name, value, error)


def affine_parameters(
    shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    argument: str = "num_features",
    *,
    weight: bool,
    bias: bool,
) -> dict[str, Array]:
    """Return new parameters, each only where wanted; the layer sets them to their start."""
    kind, wanted = float_dtype(dtype), {"weight": weight, "bias": bias}
    return {name: new_array(shape, kind, argument) for name, want in wanted.items() if want}


def real_array(name: str, value: Any) -> Array:
    """Return an array of any library, of real numbers, as one of NumPy."""
    try:
        array = stored(value, name)
    except ImportError:
        raise  # says what to install
    except Exception as error:  # whatever another library throws
        raise TypeError(f"{name} is {shown(value)}, expected an array: {error}") from error
    if array.dtype.kind not in "biuf" and array.dtype.name not in FLOATS:
        raise TypeError(f"{name} has dtype {array.dtype}, expected real numbers")
    return array


def float_array(name: str, value: Any) -> Array:
    array = real_array(name, value)
    if array.dtype.name not in FLOATS:
        raise TypeError(f"{name} has dtype {array.dtype}, expected one of {', '.join(FLOATS)}")
    return array


def loadable(name: str, value: Any, target: Any) -> Array:
    """Return a copy of a value of a state, of the shape and dtype of ``target``, in NumPy."""
    array, shape, dtype = real_array(name, value), tuple(target.shape), numpy_dtype(target)
    if array.shape != shape and {array.shape, shape} != {(), (1,)}:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
    array = array.reshape(shape)
    if dtype.kind == "i" and not np.all(
        (array >= 0) & (array < 2.0**63) & (array == np.trunc(array))
    ):
        raise ValueError(f"{name} is {shown(value)}, expected whole numbers >= 0")
    return np.array(array, dtype)


class _Layer:
    """State and protocol that all layers share.

    Attributes
    ----------
    parameters, grads, buffers : dict of str to array
        Trained arrays, their accumulated gradients (same keys, shapes and dtypes) and running
        statistics: of NumPy, or what `to` has made them. Parameters and buffers are attributes
        too: ``layer.weight -= step`` works in place, and ``layer.weight = values`` copies into the
        array that is there.
    training : bool
        Set by `train` and `eval`.
    """

    _function: ClassVar[Callable[..., Any]]
    _function_backward: ClassVar[Callable[..., Any]]
    # repr shows `_leading` by value, `_named` as name=value, `_unusual` only off its default.
    _leading: ClassVar[tuple[str, ...]]
    _named: ClassVar[tuple[str, ...]]
    _unusual: ClassVar[dict[str, object]] = {}
    # By the signature, where there is one.
    _has_stats: ClassVar[bool] = False  # of forward, for backward
    _shared: ClassVar[tuple[str, ...]] = ()  # options of both functions that are attributes too
    # Keys of the layer around this one, which are left alone in a state that has them.
    _foreign: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        function = vars(cls).get("_function")
        if function is not None and function.__name__ in SIGNATURES:
            cls._take(SIGNATURES[function.__name__])

    @classmethod
    def _take(cls, signature: Signature) -> None:
        """Note what the layer needs to know of its function."""
        cls._has_stats = bool(signature["statistics"])
        left_out = {*signature["forward_only"], signature["learns"]}
        wanted = {*signature["options"], "num_groups"} - left_out
        cls._shared = tuple(name for name in signature["arguments"] if name in wanted)

    def __init__(
        self, parameters: dict[str, Array], buffers: dict[str, Array] | None = None
    ) -> None:
        self.training = True
        self.parameters = parameters
        self.buffers: dict[str, Array] = buffers or {}
        self.grads: dict[str, Array] = {}
        # The backward function, all but dy bound.
        self._gradient: Callable[..., Any] | None = None
        self.reset_parameters()
        self.zero_grad()

    def _options(self) -> dict[str, Any]:
        """Return what both functions take beside `_values` and `_shared`, or in place of these."""
        return {}

    def _values(self) -> dict[str, Array]:
        """Return what the functions take for the parameters."""
        return self.parameters

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        raise NotImplementedError

    def __call__(self, x: A) -> A:
        """Normalize x and remember what `backward` needs (x itself, not a copy)."""
        y: A = self._run(x)
        return y

    def _run(self, x: Any, **forward_only: Any) -> Any:
        """Run forward and remember it."""
        self._gradient = None  # so that no gradient of an earlier call outlives a failed one
        y, self._gradient = self._forward(x, **forward_only)
        return y

    def _forward(
        self, x: Any, per_call: Mapping[str, Any] | None = None, **forward_only: Any
    ) -> tuple[Any, Callable[..., Any]]:
        """Return the output and the backward function, all but dy bound; remember nothing.

        ``per_call`` are options of this call, also of its gradient. What a call needs is in its
        arguments alone, so that threads may share a layer.
        """
        self._check_shape(shape_of(x))
        common: dict[str, Any] = {**self._values()}
        for name in self._shared:
            common[name] = getattr(self, name)
        common = {**common, **self._options(), **(per_call or {})}
        if not self._has_stats:
            y = self._function(x, **common, **forward_only)
            return y, partial(self._function_backward, x=x, **common)
        result = self._function(x, **common, **forward_only, return_stats=True)
        # With a residual it is (y, h, stats), and h is what was normalized.
        y, normalized = (result[0], x) if len(result) == 2 else (result[:2], result[1])
        return y, partial(self._function_backward, x=normalized, stats=result[-1], **common)

    def backward(self, dy: A) -> A:
        """Return dx for the last forward call; add the parameters' gradients to `grads`.

        The last call of any thread: threads that share a layer go forward alone.

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

    def _run_backward(self, dy: A, **options: Any) -> A:
        gradient = self._gradient
        if gradient is None:
            raise RuntimeError(f"{type(self).__name__}.backward called before a forward call")
        gradients = gradient(dy, **options)
        self._add_to_grads([self._parameter_gradients(gradients)])
        dx: A = gradients.dx
        return dx

    def _parameter_gradients(self, gradients: Any) -> dict[str, Array]:
        """Return the gradients of the parameters, by their names, of what a function returned."""
        return {name: getattr(gradients, f"d{name}") for name in self.parameters}

    def _add_to_grads(self, parts: Iterable[Mapping[str, Array]]) -> None:
        """Add the gradients of one or more calls, of all parameters or, on an error, of none."""
        sums = {name: self.grads.get(name) for name in self.parameters}
        check_writable((f'grads["{name}"]', value) for name, value in sums.items())
        for part in parts:
            for name, gradient in part.items():
                grad: Any = sums[name]
                if library_of(grad) != library_of(gradient):
                    raise TypeError(
                        f'grads["{name}"] is an array of {library_of(grad)}, expected one of '
                        f"{library_of(gradient)}: the parameter's"
                    )
                if tuple(grad.shape) != np.shape(gradient):
                    raise ValueError(
                        f'grads["{name}"] has shape {tuple(grad.shape)}, expected '
                        f"{tuple(np.shape(gradient))}: the parameter's"
                    )
                if not np.can_cast(numpy_dtype(gradient), numpy_dtype(grad), "same_kind"):
                    raise TypeError(f'grads["{name}"] has dtype {grad.dtype}, expected a float')
                sums[name] = cast(grad + gradient, grad.dtype)
        for name, value in sums.items():
            self.grads[name][...] = value

    def _start(self, name: str) -> Any:
        """Return what a parameter or buffer starts at: an array, or one number for all of it."""
        return 0.0 if name in ("bias", "running_mean", "num_batches_tracked") else 1.0

    def reset_parameters(self) -> None:
        """Set parameters, and buffers as `reset_running_stats` does, to what a new layer has.

        In place: the arrays stay the same objects. Gradients and modes stay as they are.
        """
        self.reset_running_stats()
        for name, parameter in self.parameters.items():
            write(parameter, self._start(name))

    def reset_running_stats(self) -> None:
        """Set all buffers, in place, to what a new layer has."""
        for name, buffer in self.buffers.items():
            write(buffer, self._start(name))

    def named_parameters(self) -> Iterator[tuple[str, Array]]:
        """Return an iterator over names and parameters."""
        return iter(self.parameters.items())

    def zero_grad(self) -> None:
        """Set all gradients to new arrays of zeros."""
        self.grads.update({k: zeros_like(v) for k, v in self.parameters.items()})

    def train(self: Layer, mode: bool = True) -> Layer:
        """Switch to training mode (or, with ``mode=False``, to evaluation); return self."""
        self.training = flag("mode", mode)
        return self

    def eval(self: Layer) -> Layer:
        """Switch to evaluation mode; return self."""
        return self.train(False)

    def to(self: Layer, device: Any) -> Layer:
        """Move parameters, gradients and buffers to another device or library; return self.

        From then on the layer takes inputs that lie there. The arrays are new ones, so an optimizer
        is made afterwards. Running statistics are updated where they lie, and no call waits for a
        device. ``num_batches_tracked`` counts calls, and stays an array of NumPy.

        Parameters
        ----------
        device : torch.device, str or array
            A device of PyTorch, or its name, as ``"cuda"``: tensors on it. An array of PyTorch,
            CuPy or NumPy: arrays of its library on its device. ``"cpu"``: arrays of NumPy, as a new
            layer has them.

        Raises
        ------
        TypeError
            For anything else; JAX's arrays cannot be written.
        ValueError
            For a name that PyTorch does not know.

        Examples
        --------
        >>> import normcore as nc
        >>> layer = nc.LayerNorm(1024).to("cuda")  # doctest: +SKIP
        """
        move = mover(device)
        here: list[dict[str, Any]] = [self.parameters, self.grads, self.buffers]
        moved = [
            {k: move(v) for k, v in arrays.items() if k != "num_batches_tracked" and v is not None}
            for arrays in here
        ]
        for arrays, new in zip(here, moved, strict=True):
            arrays.update(new)
        vars(self).update(self.__getstate__())  # no call of before goes backward
        return self

    def _stored(self) -> dict[str, Array]:
        """Return the layer's own arrays by the names that they have in a state."""
        return {**self.parameters, **self.buffers}

    def state_dict(self) -> dict[str, Array]:
        """Return parameters and buffers under torch's names, as arrays of NumPy.

        The arrays are the layer's own, not copies, as in torch: ``copy.deepcopy`` the result to
        keep a snapshot. Of arrays that `to` has moved they are copies. What a torch module loads
        is ``{k: torch.from_numpy(v) for k, v in layer.state_dict().items()}`` (bfloat16
        arrays: ``torch.from_numpy(v.astype("float32"))``).
        """
        return {name: in_numpy(array) for name, array in self._stored().items()}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True
    ) -> IncompatibleKeys:
        """Copy values into the layer's own arrays, converting them to its dtypes.

        Parameters
        ----------
        state_dict : mapping of str to array
            The keys of `state_dict`, ``num_batches_tracked`` being optional. NumPy arrays
            (also bfloat16 ones as ``numpy.load`` returns them), torch tensors (of any device and
            dtype), JAX arrays, lists. What has no axes may come with one of size 1, as in old
            checkpoints.
        strict : bool, default True
            Whether missing and unexpected keys are errors. Without it they are passed over.

        Returns
        -------
        IncompatibleKeys
            A named tuple of ``missing_keys`` and ``unexpected_keys``, lists of str.

        Raises
        ------
        StateDictError
            Names every missing or unexpected key and every misfit; nothing has been changed.
        """
        flag("strict", strict)
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict is {shown(state_dict)}, expected a mapping")
        own = self._stored()
        missing = [k for k in own if k not in state_dict and k != "num_batches_tracked"]
        unexpected = [str(k) for k in state_dict if k not in own and k not in self._foreign]
        problems = []
        if strict and missing:
            problems.append(f"missing {', '.join(missing)}")
        if strict and unexpected:
            problems.append(f"unexpected {', '.join(unexpected)}")
        values = {}  # copies, as state_dict may hold our own arrays under other names
        for name, target in own.items():
            if name not in state_dict:
                continue
            try:
                check_writable([(name, target)])
                values[name] = loadable(name, state_dict[name], target)
            except (TypeError, ValueError) as error:
                problems.append(str(error))
        if problems:
            raise StateDictError(f"load_state_dict of {self!r}: {'; '.join(problems)}")
        for name, value in values.items():
            write(own[name], value)
        return IncompatibleKeys(missing, unexpected)

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles carry no activations: they can go backward after their own forward.
        return {**self.__dict__, "_gradient": None}

    def __repr__(self) -> str:
        values = {**vars(self), "bias": "bias" in self.parameters}
        unusual = (name for name, default in self._unusual.items() if values[name] != default)
        arguments = [repr(values[name]) for name in self._leading]
        arguments += [f"{name}={values[name]!r}" for name in (*self._named, *unusual)]
        return f"{type(self).__name__}({', '.join(arguments)})"


class _ChannelLayer(_Layer):
    """A layer of a fixed number of channels."""

    _unusual: ClassVar[dict[str, object]] = {"channel_axis": 1}
    _channels: ClassVar[str] = "num_features"  # the attribute that holds the channels' number

    channel_axis: int

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        axis, expected = self.channel_axis, getattr(self, self._channels)
        if not -len(shape) <= axis < len(shape) or shape[axis] != expected:
            raise ValueError(
                f"x has shape {shape}, expected {expected} at channel_axis={axis}: "
                f"{self._channels}={expected}"
            )
