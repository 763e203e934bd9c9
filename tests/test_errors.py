"""Errors: the right type, a message that names argument, value and rule, and nothing written.

Hunts for calls that should be refused and are computed instead, for messages that leave the user
guessing, and for errors found too late, after `out` or a running buffer has been changed.
"""

import re

import numpy as np
import pytest
from support import DTYPES, PLAIN_VARIANTS, Variant, bits, make_problem

import normcore as nc

nan = float("nan")
plain_variants = pytest.mark.parametrize("variant", PLAIN_VARIANTS, ids=str)
BATCH = Variant("batch_norm", {"training": True}, buffers=True)


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def buffers(n=4, **changed):
    return {"running_mean": np.zeros(n, np.float32), "running_var": ones(n)} | changed


def read_only(array):
    array.flags.writeable = False
    return array


X = read_only(np.arange(24, dtype=np.float32).reshape(2, 4, 3))

# (method, arguments after x, error, what the message must contain)
REFUSED = [
    # shapes of parameters
    ("layer_norm", {"weight": ones(4)}, ValueError, ["weight", "(4,)", "(3,)"]),
    ("layer_norm", {"bias": ones(1)}, ValueError, ["bias", "(1,)", "(3,)"]),
    ("layer_norm", {"weight": ones(3, 4), "axis": (2, 1)}, ValueError, ["weight", "(4, 3)"]),
    ("rms_norm", {"weight": ones(4)}, ValueError, ["weight", "(4,)", "(3,)"]),
    ("rms_norm", {"weight": ones()}, ValueError, ["weight", "()", "(3,)"]),
    ("batch_norm", {"weight": ones(3)}, ValueError, ["weight", "(3,)", "(4,)"]),
    ("batch_norm", {"bias": ones(4, 1)}, ValueError, ["bias", "(4, 1)", "(4,)"]),
    ("batch_norm", {"weight": ones(4), "channel_axis": -1}, ValueError, ["weight", "(4,)", "(3,)"]),
    ("instance_norm", {"bias": ones(5)}, ValueError, ["bias", "(5,)", "(4,)"]),
    ("group_norm", {"num_groups": 2, "weight": ones(2)}, ValueError, ["weight", "(2,)", "(4,)"]),
    # axes
    ("layer_norm", {"axis": 3}, ValueError, ["axis", "3"]),
    ("layer_norm", {"axis": -4}, ValueError, ["axis", "-4"]),
    ("rms_norm", {"axis": (0, 5)}, ValueError, ["axis", "5"]),
    ("layer_norm", {"axis": (1, 1)}, ValueError, ["axis", "twice|duplicate"]),
    ("rms_norm", {"axis": (2, -1)}, ValueError, ["axis", "twice|duplicate"]),
    ("layer_norm", {"axis": 1.0}, TypeError, ["axis"]),
    ("batch_norm", {"channel_axis": 3}, ValueError, ["channel_axis", "3"]),
    ("instance_norm", {"channel_axis": -4}, ValueError, ["channel_axis", "-4"]),
    ("group_norm", {"num_groups": 2, "channel_axis": 7}, ValueError, ["channel_axis", "7"]),
    # eps and ranges
    ("layer_norm", {"eps": -1e-5}, ValueError, ["eps", "-1e-05"]),
    ("rms_norm", {"eps": nan}, ValueError, ["eps", "nan"]),
    ("batch_norm", {"eps": -1.0}, ValueError, ["eps", "-1"]),
    ("batch_norm", {"eps": 0.0, "training": True}, ValueError, ["eps", "0"]),
    ("instance_norm", {"eps": nan}, ValueError, ["eps", "nan"]),
    ("group_norm", {"num_groups": 2, "eps": -2.0}, ValueError, ["eps", "-2"]),
    ("layer_norm", {"eps": "1e-5"}, TypeError, ["eps"]),
    # groups
    ("group_norm", {"num_groups": 3}, ValueError, ["num_groups", "3", "4"]),
    ("group_norm", {"num_groups": 8}, ValueError, ["num_groups", "8", "4"]),
    ("group_norm", {"num_groups": 0}, ValueError, ["num_groups", "0"]),
    ("group_norm", {"num_groups": -2}, ValueError, ["num_groups", "-2"]),
    ("group_norm", {"num_groups": 2.0}, TypeError, ["num_groups"]),
    ("group_norm", {}, TypeError, ["num_groups"]),
    # out
    ("layer_norm", {"out": ones(2, 4, 2)}, ValueError, ["out", "(2, 4, 2)", "(2, 4, 3)"]),
    ("batch_norm", {"out": ones(24)}, ValueError, ["out", "(24,)", "(2, 4, 3)"]),
    ("rms_norm", {"out": ones(2, 4, 3, dtype=float)}, ValueError, ["out", "float64", "float32"]),
    ("instance_norm", {"out": ones(2, 4, 3, dtype=int)}, TypeError, ["out", "int64"]),
    ("layer_norm", {"out": read_only(ones(2, 4, 3))}, ValueError, ["out", "write|read"]),
    ("layer_norm", {"out": [[1.0]]}, TypeError, ["out"]),
    # buffers
    ("batch_norm", {"running_mean": ones(4)}, ValueError, ["running_var", "None"]),
    ("batch_norm", {"running_var": ones(4), "training": True}, ValueError, ["running_mean"]),
    ("instance_norm", {"running_mean": ones(4)}, ValueError, ["running_var", "None"]),
    ("instance_norm", {"use_input_stats": False}, ValueError, ["running_mean", "use_input_stats"]),
    ("batch_norm", buffers(running_var=ones(3)), ValueError, ["running_var", "(3,)", "(4,)"]),
    ("instance_norm", buffers(running_mean=ones(1)), ValueError, ["running_mean", "(1,)", "(4,)"]),
    (
        "batch_norm",
        buffers(running_var=read_only(ones(4)), training=True),
        ValueError,
        ["running_var", "write|read"],
    ),
    ("batch_norm", buffers(running_mean=ones(4, dtype=int)), TypeError, ["running_mean", "int64"]),
    # residual
    ("layer_norm", {"residual": ones(2, 4, 2)}, ValueError, ["residual", "(2, 4, 2)", "(2, 4, 3)"]),
    ("rms_norm", {"residual": ones(2, 4, 3, dtype=int)}, TypeError, ["residual", "int64"]),
    # names
    ("layer_norm", {"epsilon": 1e-5}, TypeError, ["epsilon"]),
    ("rms_norm", {"bias": ones(3)}, TypeError, ["bias"]),
]


IDS = [f"{method}-{'+'.join(arguments) or 'nothing'}" for method, arguments, *_ in REFUSED]


def assert_says(error, parts):
    """Each part stands in the message; "a|b" asks for one of the two."""
    text = str(error)
    for part in parts:
        options = [re.escape(p) for p in part.split("|")]
        assert re.search("|".join(options), text), f"{text!r} does not mention {part}"
    # Argument first: "weight has shape (3,), expected ...", not an anonymous complaint.
    assert len(text) > 15


@pytest.mark.parametrize(("method", "arguments", "error", "parts"), REFUSED, ids=IDS)
def test_refused(method, arguments, error, parts):
    before = {k: bits(v) for k, v in arguments.items() if isinstance(v, np.ndarray)}
    with pytest.raises(error) as caught:
        getattr(nc, method)(X, **arguments)
    assert_says(caught.value, parts)
    assert {k: bits(arguments[k]) for k in before} == before, "something was written"


@pytest.mark.parametrize(
    ("method", "shape"),
    [
        ("layer_norm", ()),
        ("rms_norm", ()),
        ("batch_norm", (4,)),
        ("instance_norm", (4, 4)),
        ("instance_norm", (4,)),
        ("group_norm", (4,)),
    ],
    ids=str,
)
def test_too_few_axes(method, shape):
    arguments = {"num_groups": 2} if method == "group_norm" else {}
    with pytest.raises(ValueError):
        getattr(nc, method)(ones(*shape), **arguments)


@plain_variants
@pytest.mark.parametrize("kind", ["i4", "u1", "?", "c8", "O", "U1", "M8[s]"])
@pytest.mark.parametrize("name", ["x", "weight", "dy"])
def test_other_dtypes_are_type_errors(rng, variant, kind, name):
    problem = make_problem(rng, variant)
    name = "bias" if name == "weight" and name not in problem.params else name
    wrong = np.zeros(np.shape(problem.params.get(name, problem.x)), kind)
    if name in problem.params:
        problem.params[name] = wrong
    else:
        setattr(problem, name, wrong)
    with pytest.raises(TypeError) as caught:
        problem.backward() if name == "dy" else problem.forward()
    assert_says(caught.value, [name, str(wrong.dtype)])


@plain_variants
@pytest.mark.parametrize("name", ["x", "weight"])
def test_foreign_byte_order_is_refused(rng, variant, name):
    problem = make_problem(rng, variant)
    name = "bias" if name == "weight" and name not in problem.params else name
    if name == "x":
        problem.x = problem.x.astype(problem.x.dtype.newbyteorder())
    else:
        problem.params[name] = problem.params[name].astype(problem.x.dtype.newbyteorder())
    with pytest.raises((TypeError, ValueError)) as caught:
        problem.forward()
    assert_says(caught.value, [name])


@pytest.mark.parametrize("x", [None, "text", object(), {"a": 1.0}, [1, 2], [[1, 2], [3, 4]], 3])
def test_no_array_of_floats(x):
    with pytest.raises(TypeError):
        nc.layer_norm(x)


def test_lists_of_floats_are_accepted():
    y = nc.layer_norm([[1.0, 2.0, 3.0]], [1.0, 1.0, 2.0], [0.0, 0.5, 0.0])
    assert y.dtype == np.float64  # as np.asarray makes of it
    np.testing.assert_allclose(y, [[-1.2247, 0.5, 2.4495]], atol=1e-4)


def test_parameters_are_positional_and_options_are_not():
    w, b = ones(3), np.zeros(3, np.float32)
    np.testing.assert_array_equal(nc.layer_norm(X, w, b), nc.layer_norm(X, weight=w, bias=b))
    for call in (
        lambda: nc.layer_norm(X, w, b, -1),
        lambda: nc.rms_norm(X, w, -1),
        lambda: nc.batch_norm(X, ones(4), ones(4), ones(4)),
        lambda: nc.group_norm(X, 2, ones(4), ones(4), 1e-5),
    ):
        with pytest.raises(TypeError):
            call()


@plain_variants
@pytest.mark.parametrize("offset", [1, -1, 7, 40])
def test_out_that_overlaps_x_in_part_is_refused(rng, variant, offset):
    problem = make_problem(rng, variant)
    size = problem.x.size
    store = np.zeros(size + 80, np.float32)
    store[40 : 40 + size] = problem.x.ravel()
    problem.x = store[40 : 40 + size].reshape(problem.x.shape)
    out = store[40 + offset : 40 + offset + size].reshape(problem.x.shape)
    before = bits(store)
    with pytest.raises(ValueError, match=r"out.*overlap"):
        problem.forward(out=out)
    assert bits(store) == before


def test_out_of_the_same_memory_but_other_strides_is_refused():
    x = np.arange(2.0 * 5 * 5, dtype=np.float32).reshape(2, 5, 5)
    before = bits(x)
    for out in (x.transpose(0, 2, 1), x[:, ::-1], x[::-1]):
        with pytest.raises(ValueError, match=r"out.*overlap"):
            nc.layer_norm(x, out=out)
    assert bits(x) == before


def test_out_interleaved_with_x_is_accepted():
    # Bounds overlap, elements do not: halves of one array, side by side.
    store = np.arange(48, dtype=np.float32).reshape(2, 4, 6)
    x, out = store[..., :3], store[..., 3:]
    want = nc.layer_norm(x.copy())
    try:
        nc.layer_norm(x, out=out)
    except ValueError as error:
        assert "overlap" in str(error)  # a cautious answer is allowed, a wrong result is not
    else:
        assert bits(out) == bits(want)


@pytest.mark.parametrize(
    "wrong",
    [{"out": ones(1)}, {"weight": ones(1)}, {"eps": -1.0}, {"out": read_only(ones(2, 4, 3))}],
    ids=lambda w: next(iter(w)),
)
def test_an_error_leaves_buffers_and_out(wrong):
    state = buffers()
    out = np.full((2, 4, 3), 7, np.float32)
    for function, options in ((nc.batch_norm, {"training": True}), (nc.instance_norm, {})):
        with pytest.raises(ValueError):
            function(X, **state, **({"out": out} | options | wrong))
    assert (out == 7).all()
    assert (state["running_mean"] == 0).all() and (state["running_var"] == 1).all()


def test_one_value_per_channel():
    with pytest.raises(ValueError, match=r"more than 1 value per channel.*\(1, 4\)"):
        nc.batch_norm(ones(1, 4), training=True)
    with pytest.raises(ValueError, match=r"more than 1 spatial element.*\(2, 4, 1, 1\)"):
        nc.instance_norm(ones(2, 4, 1, 1))


@plain_variants
@pytest.mark.parametrize("shape", [(3, 6, 5, 6), (3, 6, 35), (6, 5, 7)], ids=str)
def test_dy_of_another_shape(rng, variant, shape):
    problem = make_problem(rng, variant)
    problem.dy = ones(*shape)
    with pytest.raises(ValueError) as caught:
        problem.backward()
    assert_says(caught.value, ["dy", str(shape), str(problem.x.shape)])


@plain_variants
def test_stats_of_another_call_are_refused(rng, variant):
    problem = make_problem(rng, variant)
    other = make_problem(rng, variant, shape=(4, 9, 5, 8))
    _, stats = other.forward(return_stats=True)
    with pytest.raises(ValueError, match="stats"):
        problem.backward(stats=stats)
    with pytest.raises((TypeError, ValueError), match="stats"):
        problem.backward(stats=3)


@pytest.mark.parametrize("method", ["layer_norm", "rms_norm"])
def test_dh_of_another_shape(rng, method):
    problem = make_problem(rng, Variant(method, {"axis": -1}))
    with pytest.raises(ValueError, match=r"dh.*\(7,\)"):
        problem.backward(dh=ones(7))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_unaligned_memory_is_right_or_refused(rng, dtype):
    problem = make_problem(rng, BATCH, dtype)
    want = bits(problem.forward())
    store = np.zeros(problem.x.nbytes + 1, np.uint8)
    unaligned = store[1:].view(dtype).reshape(problem.x.shape)
    unaligned[...] = problem.x
    problem.x = unaligned
    try:
        y = problem.forward()
    except ValueError as error:
        assert "align" in str(error)
    else:
        assert bits(y) == want
