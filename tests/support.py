"""What the test files share: dtypes, memory layouts, test problems and tolerances.

A Problem is one call: a method with its arrays and options, which can be run against the library or
against the oracle (`reference`) and compared. Tolerances are computed, not guessed: the rounding of
the output's dtype, once, plus a few roundings of the compute type on the terms that are added up.
"""

import inspect
from dataclasses import dataclass, field, replace

import ml_dtypes
import numpy as np
import reference

import normcore as nc

bfloat16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": bfloat16,
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
# Significant bits (with the hidden one) and the exponent of the smallest normal number.
PRECISION = {"float16": (11, -14), "bfloat16": (8, -126), "float32": (24, -126)}
PRECISION |= {"float64": (53, -1022)}

LAYOUTS = (
    "contiguous",
    "channels_last",  # NHWC in memory, seen as NCHW: channel_axis stays 1
    "channels_last_sliced",  # the same, cut out of an array with more channels
    "fortran",
    "batch_inside",  # the batch axis is the innermost but one: no plan likes it
    "sliced",  # every axis cut out of a larger one, every second element of the last
    "reversed",  # negative strides on all axes
)


def every_isa():
    """Those that are available, and levels without what this CPU has beyond them."""
    isas, initial = list(nc.available_isas()), nc.get_isa()
    for base in [f"{isa}-base" for isa in isas]:
        try:
            nc.set_isa(base)
        except ValueError:  # there is nothing beyond it
            continue
        isas.append(base)
    nc.set_isa(initial)
    return isas


def stat_dtype(dtype):
    """Statistics, and all computing but tables, happen in float32, for float64 in float64."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def arrange(values, layout):
    """The same values in another memory layout; gaps hold NaN, so that a stray read shows."""
    values = np.asarray(values)
    if layout == "contiguous":
        return np.ascontiguousarray(values)
    if layout == "fortran":
        return np.asfortranarray(values)
    if layout == "channels_last":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1)
    if layout == "batch_inside":
        return np.swapaxes(np.ascontiguousarray(np.swapaxes(values, 0, -2)), 0, -2)
    if layout == "reversed":
        return np.flip(np.ascontiguousarray(np.flip(values)))
    if layout == "channels_last_sliced":
        wide = np.full((*values.shape[:1], *values.shape[2:], values.shape[1] + 3), np.nan)
        view = np.moveaxis(wide.astype(values.dtype)[..., 1:-2], -1, 1)
    elif layout == "sliced":
        wide = np.full([n + 2 for n in values.shape[:-1]] + [2 * values.shape[-1] + 1], np.nan)
        inner = (slice(1, -1),) * (values.ndim - 1) + (slice(1, None, 2),)
        view = wide.astype(values.dtype)[inner]
    else:
        raise ValueError(layout)
    view[...] = values
    return view


class GuardedOut:
    """An `out` array pre-filled with NaN inside a buffer whose other elements must stay."""

    def __init__(self, x):
        # The axes in x's memory order, each one padded, so that `view` has gaps on all sides.
        order = np.argsort([-abs(s) for s in x.strides], kind="stable")
        self.buffer = np.full([x.shape[i] + 4 for i in order], 77.0).astype(x.dtype)
        inner = self.buffer[(slice(1, -3),) * x.ndim]
        inner[...] = np.nan
        self.view = inner.transpose(np.argsort(order))
        self.before = self.buffer.copy()
        self.inner = inner

    def guards_intact(self):
        now = self.buffer.copy()
        now[(slice(1, -3),) * now.ndim] = self.before[(slice(1, -3),) * now.ndim]
        return now.tobytes() == self.before.tobytes()

    def untouched(self):
        return self.buffer.tobytes() == self.before.tobytes()


def ulp(values, dtype):
    """The spacing of `dtype` at |values| (np.spacing knows no bfloat16)."""
    bits, lowest = PRECISION[np.dtype(dtype).name]
    _, exponent = np.frexp(np.abs(np.asarray(values, dtype=np.float64)))
    return np.ldexp(1.0, np.maximum(exponent, lowest + 1) - bits)


def assert_close(got, want, *, slack, what, dtype=None):
    """|got - want| <= half an ulp of the output (the one rounding at the end) + slack."""
    got = np.asarray(got)
    want = np.asarray(want)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    if dtype is not None:
        assert got.dtype == dtype, f"{what}: dtype {got.dtype}, expected {dtype}"
    if got.size == 0:
        return
    error = np.abs(reference.wide(got) - want)
    limit = 0.5 * ulp(want, got.dtype) + slack
    bad = ~(error <= limit)  # a NaN is bad
    if bad.any():
        at = np.unravel_index(np.argmax(np.where(bad, error / limit, -1)), error.shape)
        at = at if np.isfinite(error).all() else np.argwhere(~np.isfinite(error))[0]
        at = tuple(int(i) for i in at)
        raise AssertionError(
            f"{what}: {bad.sum()} of {bad.size} wrong; at {at} got {got[at]}, expected {want[at]},"
            f" error {float(error[at]):.3g} is {float((error / limit)[at]):.3g} of the limit"
        )


def bits(a):
    """The array's bytes, to compare without NaN and signed zero getting in the way."""
    return None if a is None else np.ascontiguousarray(a).tobytes()


def assert_same_bits(got, want, what):
    """Tuples of arrays (or None), compared bit by bit."""
    assert len(got) == len(want)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert bits(a) == bits(b), f"{what}: result {i} has other bits"


@dataclass(frozen=True)
class Traits:
    """What is not true of every method, and decides which tests or tolerances hold for it."""

    centred: bool = True  # it subtracts a mean
    divides: bool = True  # without eps the result does not depend on the scale of x
    kinks: bool = False  # the spread has no derivative at some x
    corrects: bool = False  # in training by the buffers, in factors that are constants to gradients
    mixes: bool = False  # an element's gradient depends on pools that it is not a part of
    needs_space: bool = False  # statistics of an x of one position in space are an error


SIGNATURES = nc._core.signatures()
# What does not follow from the signature.
TRAITS = {
    "batch_renorm": {"corrects": True},
    "switchable_norm": {"mixes": True},
    "lp_batch_norm": {"kinks": True},
    "topk_batch_norm": {"kinks": True},
}


def traits_of(method):
    signature = SIGNATURES[method]
    statistics = signature["statistics"]
    # Of several pools neither is reported.
    centred = "mean" in statistics or "rstd" not in statistics
    # Only with an eps that can be 0 does the scale of x leave no trace.
    divides = "eps" in signature["options"]
    special = {"needs_space": signature["pools"] == ["instance"], **TRAITS.get(method, {})}
    return Traits(centred, divides, **special)


def channel_methods():
    """The functions of methods over channels, with their signatures."""
    return {s["function"]: s for s in SIGNATURES.values() if s["family"] == "channels"}


def least_arguments(signature, channels):
    """What a call of such a method cannot do without."""
    lengths = {"channels": channels, "three": 3}
    given = {name: np.full(lengths[of], 0.5, np.float32) for name, of in signature["own"]}
    if signature["has_groups"]:
        given["num_groups"] = 2
    if signature["always_given"]:
        given |= {name: np.ones(channels, np.float32) for name, _ in signature["buffers"]}
    return given


def channel_layers(channels, groups=1):
    """The layers of these methods, with the arguments that make one of so many channels."""
    classes = {k.lower(): v for k, v in vars(nc).items() if inspect.isclass(v)}
    return {
        classes[name.replace("_", "")]: (*[groups] * signature["has_groups"], channels)
        for name, signature in channel_methods().items()
    }


@dataclass(frozen=True)
class Variant:
    """A method with options: what the suite is parametrized over."""

    method: str
    options: dict = field(default_factory=dict)
    buffers: bool = False
    plain: bool = False  # it stands for its method where options make no difference

    def __str__(self):
        extra = [f"{k}={v}" for k, v in self.options.items()] + ["buffers"] * self.buffers
        return "-".join([self.method, *extra]).replace(" ", "")

    @property
    def row_family(self):
        return "axis" in self.options

    @property
    def traits(self):
        return traits_of(self.method)

    @property
    def computed(self):
        """Whether statistics come from x."""
        return self.options.get("training", True) and self.options.get("use_input_stats", True)

    def takes(self, shape):
        """Whether x of this shape, with the channels at axis 1, is none of the errors."""
        needs_space = self.traits.needs_space and self.computed
        return not needs_space or any(n > 1 for n in shape[2:])


def variants_of(method):
    """A call with statistics of x and, where there are buffers, one with these; then further ones.

    Buffers that a call does not need by default are left out of it.
    """
    signature = SIGNATURES[method]
    options = {"axis": -1} if signature["family"] == "rows" else {}
    if signature["has_groups"]:
        options["num_groups"] = 3
    learns = signature["learns"]
    if learns is None:
        variants = [Variant(method, options, plain=True)]
    else:
        unasked = signature["options"][learns]["default"]
        asked = options if unasked else {learns: True, **options}
        variants = [
            Variant(method, asked, buffers=not unasked, plain=True),
            Variant(method, {learns: False, **options}, buffers=True),
        ]
    return variants + [v for v in FURTHER_VARIANTS if v.method == method]


FURTHER_VARIANTS = [
    Variant("layer_norm", {"axis": 1}),
    Variant("rms_norm", {"axis": 1, "weight_offset": 1.0}),
    Variant("lp_batch_norm", {"training": True, "p": 3.0}, buffers=True),
    Variant("lp_batch_norm", {"training": True, "p": np.inf}, buffers=True),
    Variant("topk_batch_norm", {"training": True, "k": 3}, buffers=True),
]
# Methods of weights and plain rows have no statistics to return: test_weights.py.
VARIANTS = [v for m, s in SIGNATURES.items() if s["statistics"] for v in variants_of(m)]
# Parameters of a method's own, before weight and bias, with their shape; what it has of those two.
OWN_PARAMETERS = {m: dict(s["own"]) for m, s in SIGNATURES.items()}
AFFINE = {m: s["affine"] for m, s in SIGNATURES.items()}
BUFFERS = {m: tuple(dict(s["buffers"])) for m, s in SIGNATURES.items()}
PLAIN_VARIANTS = [v for v in VARIANTS if v.plain]
# Arguments of the forward call that its backward does not have.
FORWARD_ONLY = {"residual"}.union(*(s["forward_only"] for s in SIGNATURES.values()))


# Statistics from x alone, and no buffers, which could overflow.
COMPUTED = [replace(v, buffers=False) for v in VARIANTS if v.computed and not v.traits.corrects]
CENTRED = [v for v in COMPUTED if v.traits.centred]
DIVIDING = [v for v in COMPUTED if v.traits.divides]


@dataclass
class Problem:
    """Arrays and options of one call; `forward` and `backward` leave all of them unchanged."""

    method: str
    x: np.ndarray
    dy: np.ndarray
    params: dict
    options: dict

    def arguments(self):
        fresh = {k: v.copy() if k.startswith("running") else v for k, v in self.options.items()}
        return self.params | fresh

    def forward(self, module=nc, **extra):
        return getattr(module, self.method)(self.x, **(self.arguments() | extra))

    def backward(self, module=nc, **extra):
        arguments = {k: v for k, v in self.arguments().items() if k not in FORWARD_ONLY}
        if self.method == "batch_renorm" and self.options.get("training") and "stats" not in extra:
            extra["stats"] = self.forward(module, return_stats=True)[1]  # it is not computed again
        return getattr(module, self.method + "_backward")(self.dy, self.x, **(arguments | extra))

    def slacks(self, want=None):
        """Allowed errors, by name of the result, beyond the output's own rounding.

        A few roundings of the compute type on the terms that are added: w*xhat and b for y;
        rstd*w*dy, dh for dx. A parameter's gradient adds `count` rounded terms, whose error grows
        as sqrt(count); where the terms have one sign, the roundings of a short run of float32
        additions have too, hence 20 of the sum's own. `1 + |xhat|`: an error in the mean, relative
        to the standard deviation. All elements of a pool share it, so that in the gradient of the
        weight it is multiplied by the sum of dy, which is the gradient of the bias.
        """
        eps = float(np.finfo(stat_dtype(self.x.dtype)).eps)
        bare = {k: v for k, v in self.arguments().items() if k not in ("weight", "bias")}
        bare.pop("weight_offset", None)
        xhat, stats = getattr(reference, self.method)(self.x, **bare, return_stats=True)
        xhat = float(np.abs(xhat).max(initial=0))
        rstd = float(np.abs(getattr(stats, "rstd", 1)).max(initial=0))
        weight = self.params.get("weight")
        w = 1.0 if weight is None else _peak(weight) + abs(self.options.get("weight_offset", 0.0))
        dy = _peak(self.dy)
        slack = {
            "y": eps * (4 * w * (1 + xhat) + 2 * _peak(self.params.get("bias"))),
            "dx": eps * 4 * (1 + xhat) * rstd * w * dy,
        }
        few = self.largest()
        if few:  # elements that take the gradient of the scale, a sum over all
            pool = self.x.size / self.x.shape[self.options.get("channel_axis", 1)]
            slack["dx"] *= 1 + 2 * np.sqrt(pool) / few
        factor = {"weight": 1 + xhat, "bias": 1}
        for name, value in self.params.items():
            terms = 8 * factor.get(name, w * (1 + xhat) ** 2) * dy
            total = _peak(getattr(want, "d" + name)) if want else 0.0
            count = self.x.size / max(1, np.size(value))
            shared = 4 * _peak(getattr(want, "dbias", None)) if want and name == "weight" else 0.0
            slack["d" + name] = eps * (terms * np.sqrt(count) + 20 * total + shared)
        return slack

    def largest(self):
        """The number of largest elements that the scale is made of, 0: of all."""
        if self.options.get("p") == np.inf:
            return 1
        defaults = inspect.signature(getattr(nc, self.method)).parameters
        return self.options.get("k", defaults["k"].default if "k" in defaults else 0)

    def check_forward(self, y):
        want = self.forward(reference)
        slack = self.slacks()["y"]
        assert_close(y, want, slack=slack, what=f"{self.method} y", dtype=self.x.dtype)

    def check_backward(self, grads):
        want = self.backward(reference)
        slack = self.slacks(want)
        assert grads._fields == want._fields
        for name, got, exact in zip(grads._fields, grads, want, strict=True):
            what = f"{self.method} {name}"
            of = self.x if name == "dx" else self.params.get(name[1:])
            if of is None:
                assert got is None, f"{what}: {got}, expected None"
            else:
                assert_close(got, exact, slack=slack[name], what=what, dtype=of.dtype)

    def check(self):
        self.check_forward(self.forward())
        self.check_backward(self.backward())


def without_eps(problem):
    """Sets eps to 0; batch norm in training wants it positive (as torch), so to next to nothing."""
    problem.options["eps"] = 5e-324 if problem.options.get("training") else 0.0


def _peak(a):
    return 0.0 if a is None else float(np.abs(reference.wide(a)).max(initial=0))


def _off_the_kinks(x, channel_axis):
    """Moves an element of those channels, in place, where the spread has no derivative.

    |x - mean| has none at a mean that is an element, and the largest of them change sides at a mean
    halfway between two. There the last bit of the mean decides on a subgradient.
    """
    for channel in np.moveaxis(x, channel_axis, 0):
        if channel.size > 1 and _has_kink(reference.wide(channel).ravel()):
            first = (0,) * channel.ndim
            channel[first] += np.abs(channel).max() / channel.dtype.type(8)


def _has_kink(channel):
    """Whether the mean is an element or halfway between two, as far as float32 can tell."""
    offsets = np.unique(channel) - channel.mean()
    offsets = offsets[np.argsort(np.abs(offsets))]
    near = 3e-7 * np.abs(offsets[-1])
    at_mean = len(offsets) > 1 and np.abs(offsets[0]) <= near
    # Neighbours by size on both sides of the mean; no more than the 32 largest are ever counted.
    largest = offsets[-32:]
    return at_mean or np.any(np.abs(largest[1:] + largest[:-1]) <= near)


def make_problem(
    rng,
    variant,
    dtype=np.float32,
    shape=(3, 6, 5, 7),
    layout="contiguous",
    params=("weight", "bias"),
    param_dtype=None,
    mean=0.3,
):
    """Random arrays for `variant`; layout "channel_axis=-1" is true channels-last."""
    options = dict(variant.options)
    x = rng.normal(mean, 1.5, shape) + rng.normal(0, 1, (shape[1],) + (1,) * (len(shape) - 2))
    dy = rng.normal(0, 1, shape)
    if layout == "channel_axis=-1":
        x, dy = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dy))
        if not variant.row_family:
            options["channel_axis"] = -1
        layout = "contiguous"
    if variant.row_family:
        param_shape = [x.shape[a] for a in reference.sorted_axes(x.ndim, options["axis"])]
    else:
        param_shape = [shape[1]]
    params = tuple(p for p in params if p in AFFINE[variant.method])
    values = {}
    for name, of in OWN_PARAMETERS[variant.method].items():
        own = rng.uniform(0, 1, param_shape) if of == "channels" else rng.normal(0, 1, 3)
        values[name] = own.astype(param_dtype or dtype)
    values |= {p: rng.normal(0, 1, param_shape).astype(param_dtype or dtype) for p in params}
    if variant.buffers:
        for name in BUFFERS[variant.method]:
            values_of = (
                rng.normal(0, 1, shape[1]) if "mean" in name else rng.uniform(0.5, 2, shape[1])
            )
            options[name] = values_of.astype(stat_dtype(dtype))
    x = x.astype(dtype)
    if variant.traits.kinks:
        _off_the_kinks(x, options.get("channel_axis", 1))
    x, dy = (arrange(a, layout) for a in (x, dy.astype(dtype)))
    return Problem(variant.method, x, dy, values, options)
