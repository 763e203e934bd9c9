"""Arguments that fit together, for every public function and layer: what the fuzzer spoils."""

import contextlib
import inspect
import math
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

import normcore as nc

DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
NOT_CALLED = (
    *("Moments", "PowerMethodResult", "SpectralNormResult"),  # named tuples of results
    *("StateDictError", "__version__", "convert", "cuda"),
    *nc.config.__all__,  # without tensors among their arguments
)

sizes = st.sampled_from((3, 4, 2, 5, 8, 1, 7, 16, 9, 17, 33))
layouts = st.sampled_from(("contiguous", "contiguous", "fortran", "sliced", "reversed", "swapped"))


def arrange(a, layout):
    """The same values elsewhere in memory."""
    if a.ndim == 0 or layout == "contiguous":
        return np.array(a)
    if layout == "fortran":
        return np.asfortranarray(a)
    if layout == "reversed":
        return np.array(a[::-1])[::-1]
    if layout == "swapped":
        return np.swapaxes(np.array(np.swapaxes(a, 0, -1)), 0, -1)
    view = np.zeros([n + 1 for n in a.shape], a.dtype)[tuple(slice(0, n) for n in a.shape)]
    view[...] = a
    return view


@dataclass
class Geometry:
    """Of one call: x's shape and dtype, the channels, what rows are normalized over."""

    draw: object
    shape: tuple
    dtype: type
    channel_axis: int = 1
    axis: tuple = (-1,)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @property
    def channels(self):
        return self.shape[self.channel_axis]

    @property
    def parameter_shape(self):
        return tuple(self.shape[a] for a in sorted(a % len(self.shape) for a in self.axis))

    def array(self, shape, dtype=None, positive=False):
        values = self.rng.uniform(0.25, 1, shape) if positive else self.rng.normal(size=shape)
        if dtype is None:
            dtype = self.draw(st.sampled_from(DTYPES))
        return arrange(np.asarray(values).astype(dtype), self.draw(layouts))

    def like_x(self):
        return self.array(self.shape, self.dtype)


def geometry(draw, least_axes=2, normalized=False):
    n = draw(st.integers(least_axes, 4))
    shape = tuple(draw(sizes) for _ in range(n))
    g = Geometry(draw, shape, draw(st.sampled_from(DTYPES)))
    g.rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    if normalized:
        g.axis = draw(st.sampled_from([(-1,), *([(0,), (-2, -1), (0, n - 1)] if n > 1 else [])]))
    elif n > 1:
        g.channel_axis = draw(st.integers(1, n - 1))
    return g


def vector(g):
    return g.array((g.channels,))


def positive_vector(g):
    return g.array((g.channels,), positive=True)


def buffer(g):
    dtype = np.float64 if g.dtype == np.float64 else np.float32
    return g.array((g.channels,), dtype, positive=True)


# A value for each name of an argument; None where it is left out. Names that stand here without a
# function keep their defaults.
COMMON = {
    "x": Geometry.like_x,
    "dy": Geometry.like_x,
    "weight": vector,
    "bias": vector,
    "running_mean": buffer,
    "running_var": buffer,
    "running_std": buffer,
    "running_scale": buffer,
    "training": lambda g: g.draw(st.booleans()),
    "momentum": lambda g: g.draw(st.sampled_from((0.1, 0.0, 1.0))),
    "eps": lambda g: g.draw(st.sampled_from((1e-5, 1e-3))),
    "channel_axis": lambda g: g.channel_axis,
    "mask": lambda g: g.rng.random([n for a, n in enumerate(g.shape) if a != g.channel_axis]) < 0.9,
    "num_groups": lambda g: g.draw(st.sampled_from((1, g.channels))),
    "out": Geometry.like_x,
    "return_stats": lambda g: g.draw(st.booleans()),
    "weights": lambda g: g.array((g.channels, g.channels), positive=True),
    "sigma": positive_vector,
    "gain": vector,
    "beta": positive_vector,
    "gamma": lambda g: g.array((g.channels, g.channels), positive=True),
    "size": lambda g: g.draw(st.sampled_from((3, 2, 5, 1, 40))),
    "summation_window": lambda g: g.draw(st.sampled_from((3, 1, 5))),
    "suppression_window": lambda g: g.draw(st.sampled_from((3, 1, 5))),
    "p": lambda g: g.draw(st.sampled_from((1.0, 2.0, float("inf")))),
    "k": lambda g: g.draw(st.sampled_from((1, 3))),
    "inverse": lambda g: g.draw(st.booleans()),
    "across": lambda g: g.draw(st.sampled_from(("channels", "space"))),
    "even_window": lambda g: g.draw(st.sampled_from(("torch", "onnx"))),
}
ROWS = {
    "weight": lambda g: g.array(g.parameter_shape),
    "bias": lambda g: g.array(g.parameter_shape),
    "axis": lambda g: g.axis if len(g.axis) > 1 else g.axis[0],
    "residual": Geometry.like_x,
    "dh": Geometry.like_x,
    "ord": lambda g: g.draw(st.sampled_from((2, 1, float("inf")))),
    "weight_offset": lambda g: g.draw(st.sampled_from((0.0, 1.0))),
}
REDUCTIONS = {
    "axis": ROWS["axis"],
    "ord": ROWS["ord"],
    "mask": lambda g: g.rng.random(g.shape) < 0.9,
    "keepdims": lambda g: g.draw(st.booleans()),
}
WEIGHTS = {
    "v": Geometry.like_x,
    "dw": Geometry.like_x,
    "g": lambda g: g.array((g.shape[0],)),
    "axis": lambda g: 0,
    "weight": Geometry.like_x,
    "u": lambda g: g.array((g.shape[0],), np.float32),
    "a": Geometry.like_x,
    "n_power_iterations": lambda g: g.draw(st.sampled_from((1, 2, 3))),
    "n_iterations": lambda g: g.draw(st.sampled_from((1, 5))),
    "max_iterations": lambda g: 20,
    "bound": lambda g: 1.5,
}
# Arrays of a method's own, as its signature has them.
OWN = {"channels": positive_vector, "three": lambda g: g.array((3,))}
FAMILIES = {
    signature["function"]: {name: OWN[of] for name, of in signature["own"]}
    for signature in nc._core.signatures().values()
    if signature["family"] == "channels"
}
FAMILIES |= {
    **dict.fromkeys(("layer_norm", "rms_norm", "normalize"), ROWS),
    **dict.fromkeys(("moments", "norm"), REDUCTIONS),
    **dict.fromkeys(("weight_norm", "power_method"), WEIGHTS),
    "spectral_norm": {**WEIGHTS, "v": lambda g: g.array((math.prod(g.shape[1:]),), np.float32)},
    "local_response_norm": {"beta": lambda g: 0.75, "k": lambda g: 1.0},
}
# Arguments that come together, or not at all.
PAIRS = ("running_mean", "running_var", "running_std", "running_scale")


def functions():
    """The names of all public functions over arrays; fails where one is neither here nor known."""
    names = [n for n in nc.__all__ if n not in NOT_CALLED]
    return [n for n in names if not inspect.isclass(getattr(nc, n))]


def layers():
    return [n for n in nc.__all__ if n not in NOT_CALLED and inspect.isclass(getattr(nc, n))]


def arguments(name, draw):
    """Return (arguments by name, geometry) of a valid call of the function."""
    base = name.removesuffix("_backward")
    family = FAMILIES.get(base, {})
    least = 3 if base.startswith("local_") else 2
    g = geometry(draw, least, normalized=family in (ROWS, REDUCTIONS))
    if base == "power_method":
        g.shape = g.shape[:2]
    makers = COMMON | family
    given = {}
    with_buffers = draw(st.booleans()) or base == "batch_renorm"
    if base == "instance_norm" and not with_buffers:
        makers = makers | {"use_input_stats": lambda g: True}
    elif base == "instance_norm":
        makers = makers | {"use_input_stats": lambda g: draw(st.booleans())}
    for parameter in inspect.signature(getattr(nc, name)).parameters.values():
        key = parameter.name
        if key == "result":
            u = g.array((g.shape[0],), np.float32)
            given[key] = nc.spectral_norm(g.like_x(), u)
        if key == "stats":
            continue  # from the forward call, below
        maker = makers.get(key)
        optional = parameter.default is not inspect.Parameter.empty
        if maker is None or (key in PAIRS and not with_buffers):
            continue
        if optional and key not in PAIRS and key not in ("channel_axis", "axis", "use_input_stats"):
            if not draw(st.booleans()):
                continue
        given[key] = maker(g)
    if "result" in given and "dw" in given:
        given["dw"] = g.array(g.shape, g.dtype)
    if "stats" in inspect.signature(getattr(nc, name)).parameters and draw(st.booleans()):
        known = inspect.signature(getattr(nc, base)).parameters
        forward = {k: v for k, v in given.items() if k in known and k != "out"}
        buffers = {k: forward[k].copy() for k in PAIRS if k in forward}
        with contextlib.suppress(ValueError):  # a single value per channel
            *_, given["stats"] = getattr(nc, base)(**(forward | buffers | {"return_stats": True}))
    return given, g


# ---- layers

# Arguments of the constructors that need none of the defaults; x must have 3 axes or more.
LAYER_ARGUMENTS = {
    "normalized_shape": lambda g: (g.shape[-1],),
    "num_features": lambda g: g.channels,
    "num_channels": lambda g: g.channels,
    "num_groups": lambda g: g.draw(st.sampled_from((1, g.channels))),
    "shape": lambda g: g.shape,
    "size": lambda g: g.draw(st.sampled_from((3, 5))),
    "channel_axis": lambda g: g.channel_axis,
    "eps": COMMON["eps"],
    "momentum": lambda g: g.draw(st.sampled_from((0.1, None))),
    "affine": lambda g: g.draw(st.booleans()),
    "track_running_stats": lambda g: g.draw(st.booleans()),
    "bias": lambda g: g.draw(st.booleans()),
    "dtype": lambda g: g.draw(st.sampled_from(("float32", np.float64))),
    "ghost_batch_size": lambda g: g.draw(st.sampled_from((2, 100))),
    "time_steps": lambda g: 3,
    "rng": lambda g: 0,
}


def constructor_arguments(name, draw):
    g = geometry(draw, 3)
    parameters = list(inspect.signature(getattr(nc, name)).parameters.values())
    known = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    if len(known) < len(parameters):  # **life
        known += ["ghost_batch_size", "time_steps"]
    required = {p.name for p in parameters if p.default is inspect.Parameter.empty}
    given = {}
    for key in known:
        if key not in LAYER_ARGUMENTS:
            continue
        if key in required or key == "channel_axis" or draw(st.integers(0, 3)) == 3:
            given[key] = LAYER_ARGUMENTS[key](g)
    if "time_steps" in given and "track_running_stats" in known:
        given["track_running_stats"] = True
    return given, g
