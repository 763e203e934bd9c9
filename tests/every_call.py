"""Every function of the library, forward and backward, as a table: what it takes and what it gives.

For tests of what holds for all of them, whatever they compute. A Case names the arrays of a call,
which `make` draws and `call` hands over by these names; the first ones have the shape of x.
"""

from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
from support import channel_methods, stat_dtype

import normcore as nc

TENSORS = ("x", "dy", "residual", "dh", "v", "dw", "a")  # laid out in memory as a test likes


@dataclass(frozen=True)
class Case:
    function: str
    names: str
    options: dict = field(default_factory=dict)
    stats: bool = False  # backward from what the forward call returned
    least: int = 2  # axes of x

    def __str__(self):
        extra = [f"{k}={v}" for k, v in self.options.items()] + ["stats"] * self.stats
        extra += [n for n in ("mask", "dh", "running_mean") if n in self.arrays]
        return "-".join([self.function, *extra]).replace(" ", "")

    @property
    def arrays(self):
        return self.names.split()

    @property
    def tensors(self):
        """The arrays of x's shape."""
        own = ("weight",) if self.function == "spectral_norm" else ()
        return [n for n in self.arrays if n in TENSORS + own]

    @property
    def has_out(self):
        return self.function not in ("norm", "moments", "power_method")

    @property
    def over(self):
        """What `out` may be."""
        return [n for n in self.tensors if n != "residual"] if self.has_out else []

    def make(self, rng, shape, dtype):
        """Draw the arrays of a call; running buffers and given statistics among them."""
        return self.complete(self.draw(rng, shape, dtype), shape)

    def draw(self, rng, shape, dtype):
        """Draw the arrays from which `complete` makes those of the call."""
        return {name: self._draw(rng, name, shape, dtype) for name in self.arrays}

    def complete(self, values, shape):
        """Add what a backward call takes of a forward one, which runs on arrays of any library."""
        values = dict(values)
        if self.function == "spectral_norm_backward":
            values["result"] = nc.spectral_norm(values.pop("weight"), values.pop("u"))
        if self.stats:
            forward = getattr(nc, self.function.removesuffix("_backward"))
            given = {k: v for k, v in values.items() if k not in ("dy", "dh")}
            given |= {k: deepcopy(v) for k, v in given.items() if k.startswith("running")}
            stats = forward(**given, **self.settings(shape), return_stats=True)[-1]
            values["stats"] = stats
        return values

    def settings(self, shape):
        if "group_norm" not in self.function:
            return self.options
        return {"num_groups": next(n for n in (3, 2, 1) if shape[1] % n == 0)}

    def call(self, values, shape, out=None):
        """All results, as a flat list of NumPy arrays, and the running buffers that have moved."""
        return [np.asarray(result) for result in self.results(values, shape, out)]

    def results(self, values, shape, out=None):
        """The same as the library gives them."""
        extra = {} if out is None else {"out": out}
        result = getattr(nc, self.function)(**values, **self.settings(shape), **extra)
        moved = [v for k, v in values.items() if k.startswith("running")]
        return list(_flat(result)) + moved

    def _draw(self, rng, name, shape, dtype):
        channels = shape[1]
        if self.function.startswith("spectral_norm") and name == "weight":
            return rng.normal(0, 1, shape).astype(dtype)
        if name == "a":
            return rng.normal(0, 1, (channels, shape[0] * shape[-1])).astype(dtype)
        if name in TENSORS:
            return rng.normal(0.25, 1, shape).astype(dtype)
        if name == "g":
            return rng.normal(0, 1, shape[0]).astype(dtype)
        if name == "u":
            return rng.normal(0, 1, shape[0]).astype(np.float32)
        if name == "mask":
            wide = stat_dtype(dtype)
            return rng.integers(0, 2, (*shape[:1], *shape[2:])).astype(wide)
        if name in ("weights", "gamma"):
            return rng.uniform(0, 1, (channels, channels)).astype(dtype)
        if name.endswith("logits"):
            return rng.normal(0, 1, 3).astype(dtype)
        if self.function.startswith(("layer_norm", "rms_norm")):
            axes = np.atleast_1d(self.options["axis"])
            return rng.normal(0, 1, [shape[a] for a in axes]).astype(dtype)
        if name.startswith("running"):
            dtype = stat_dtype(dtype)
        positive = name in ("rho", "sigma", "beta", "running_var", "running_std", "running_scale")
        return rng.uniform(0.25 if positive else -1, 1, channels).astype(dtype)


def _flat(result):
    if result is None:
        return
    if isinstance(result, tuple):
        for part in result:
            yield from _flat(part)
    else:
        yield result


def _pair(function, names, options=None, *, stats=False, least=2, forward_only=""):
    """Forward and backward."""
    options = options or {}
    yield Case(function, f"{names} {forward_only}", options, least=least)
    first = "dw" if names.startswith("v ") else "dy"
    yield Case(f"{function}_backward", f"{first} {names}", options, least=least)
    if stats:
        yield Case(f"{function}_backward", f"{first} {names}", options, stats=True, least=least)


def _over_channels(name, signature):
    """Calls of a method with statistics of x, and with the running ones where it has any."""
    own, buffers = dict(signature["own"]), dict(signature["buffers"])
    without = " ".join(["x", *own, *signature["affine"]])
    names = " ".join([without, *buffers])
    learns = signature["learns"]
    least = 3 if signature["pools"] == ["instance"] else 2
    if learns is None:
        yield from _pair(name, without, stats=True, least=least)
        return
    for learning in (True, False):
        mode = {learns: learning}
        if signature["always_given"]:  # whose backward asks for the statistics in training
            yield Case(name, names, mode, least=least)
            yield Case(f"{name}_backward", f"dy {names}", mode, stats=True, least=least)
        else:
            # Buffers are asked for where they are used, or by default move.
            asked = not learning or not signature["options"][learns]["default"]
            yield from _pair(name, names if asked else without, mode, stats=True, least=least)


def _cases():
    affine = "x weight bias"
    for axis in (-1, (0, 1)):
        yield from _pair("layer_norm", affine, {"axis": axis}, stats=True, forward_only="residual")
        yield from _pair("rms_norm", "x weight", {"axis": axis, "weight_offset": 1.0}, stats=True)
    yield Case("layer_norm_backward", "dy x weight bias dh", {"axis": -1})
    for name, signature in channel_methods().items():
        yield from _over_channels(name, signature)
    yield from _pair("batch_norm", f"{affine} mask", {"training": True}, stats=True)
    yield from _pair("lp_batch_norm", affine, {"training": True, "p": np.inf})
    yield from _pair("topk_batch_norm", affine, {"training": True, "k": 3}, stats=True)
    for order in (1, 2, np.inf):
        yield from _pair("normalize", "x", {"ord": order, "axis": 1})
        yield Case("norm", "x", {"ord": order, "axis": -1})
    yield Case("moments", "x", {"axis": 0})
    yield from _pair("weight_norm", "v g")
    yield Case("spectral_norm", "weight u", {"n_power_iterations": 2})
    yield Case("spectral_norm_backward", "dw weight u")
    yield Case("power_method", "a", {"n_iterations": 3})
    yield from _pair("divisive_norm", "x weights sigma gain", {"exponent": 1.5})
    yield from _pair("gdn", "x beta gamma")
    yield from _pair("gdn", "x beta gamma", {"inverse": True, "alpha": 1.0, "epsilon": 1.0})
    for size in (2, 5, 19):
        yield from _pair("local_response_norm", "x", {"size": size, "alpha": 0.5})
    over_space = {"size": 3, "alpha": 0.5, "beta": 0.6, "across": "space"}
    yield from _pair("local_response_norm", "x", over_space, least=3)
    windows = {"summation_window": 3, "suppression_window": 5}
    yield from _pair("local_divisive_norm", "x sigma weight bias", windows, least=3)


CASES = list(_cases())
