"""Spectral norm and the power method on CUDA: emulated on the host, and on a device.

Hunts for rows and columns mixed up in a layout, for products of parts of rows that are lost or
counted twice, for tails and misaligned rows, for what overflows or vanishes, and for iterations
that go on after the end. The checks are those of the CPU; numbers come back as arrays.
"""

import numpy as np
import pytest
import reference
import test_spectral as cpu
from both_devices import device as device  # of each test here
from support import DTYPES, bfloat16, bits

import normcore as nc
from normcore.methods import spectral_norm as spectral_norm_module

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
# Rows of packs and others; one pack for each thread, and several; more columns than a block holds,
# whole packs and not; more entries than one block makes vectors of; single rows and columns. Those
# that a block or a cluster holds, also with a block that has none of the rows, and those that none
# does.
SHAPES = [
    (5,),
    (1, 9),
    (9, 1),
    (16, 64),
    (17, 72),
    (300, 40),
    (67, 1033),
    (40, 1600),
    (3, 17001),
    (5, 16416),
    (1203, 3),
    (600, 144),
    (7, 1800),
    (40, 5, 3, 3),
]


@each_dtype
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "fortran"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_layouts(rng, dtype, layout, axis):
    w, dw, u, _ = cpu.make_weight(rng, dtype, layout=layout, axis=axis)
    cpu.check(w, dw, u, axis=axis, n_power_iterations=2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_shapes(rng, shape, axis, n):
    for dtype in (np.float32, bfloat16) if len(shape) == 2 else (np.float16, np.float64):
        w, dw, u, v = cpu.make_weight(rng, dtype, shape, axis=axis)
        if n == 0:  # near the answer, or sigma could be anything
            w, dw = (a + a.dtype.type(3) for a in (w, dw))
            u, v = abs(u), abs(v)
        cpu.check(w, dw, u, v, axis=axis, n_power_iterations=n)


@pytest.mark.parametrize("offset", [1, 3])
def test_rows_of_any_alignment(rng, offset):
    for columns in (64, 67):
        wide = rng.normal(size=(20, columns + offset)).astype(np.float32)
        w, u = wide[:, offset:], rng.normal(size=20).astype(np.float32)
        cpu.check(w, np.ascontiguousarray(w), u, n_power_iterations=2)


def test_the_order_of_the_parametrization_of_torch(rng):
    for shape in [(20, 32), (32, 20), (7, 5)]:
        w, _, u, v = cpu.make_weight(rng, np.float64, shape)
        for n in (1, 3):
            core = spectral_norm_module._spectral_norm  # of the device
            got = core(w, u, v, n, 0, 1e-12, None, True, None)
            want = reference.spectral_norm(w, u, v, n_power_iterations=n, u_first=True)
            np.testing.assert_allclose(got[1], float(want[1]), rtol=1e-12)
            np.testing.assert_allclose(got[2], want[2].astype(float), atol=1e-12)
            np.testing.assert_allclose(got[3], want[3].astype(float), atol=1e-12)


@pytest.mark.parametrize("exponent", [-100, -60, 60, 100])
def test_magnitudes(rng, exponent):
    for shape, axis in (((20, 64), 0), ((15, 20), 1), ((10, 5, 3, 3), 1)):
        cpu.test_magnitudes(rng, exponent, shape, axis)


def test_extremes(rng):
    cpu.test_subnormal_weights_do_not_become_infinite(rng)
    w, _, u, _ = cpu.make_weight(rng, np.float64, (12, 16))
    want = nc.spectral_norm(w, u, n_power_iterations=3)
    # Products of weights leave the range of double here, and so do those of vectors.
    for factor, length in ((2.0**600, 1), (2.0**-600, 1), (1, 2.0**700), (1, 2.0**-700)):
        got = nc.spectral_norm(w * factor, u * length, n_power_iterations=3, eps=0)
        np.testing.assert_allclose(got.sigma, want.sigma * factor, rtol=1e-14)
        np.testing.assert_allclose(got.weight, want.weight, rtol=1e-14)


@each_dtype
def test_zeros_give_zeros(rng, dtype):
    cpu.test_zeros_give_zeros(rng, dtype, "contiguous")
    cpu.test_power_method_of_zeros(dtype)


@pytest.mark.parametrize("order", ["C", "F"])
def test_starts_that_tell_nothing_are_replaced(rng, order):
    w, u = np.zeros((6, 5), order=order), np.array([0.0, 0, 0, 1, 2, 3])
    w[:3] = cpu.with_values(rng, (3, 5), [2.0, 0.5, 0.2])
    for scale in (1.0, 1e-30, 1e30):
        result = nc.spectral_norm(w * scale, u, n_power_iterations=12)
        assert float(result.sigma) == pytest.approx(2 * scale, rel=1e-9)
        found = nc.power_method(w * scale, u=u, max_iterations=12)
        assert found.converged == 1 and float(found.sigma) == pytest.approx(2 * scale, rel=1e-9)
    cpu.test_eps_says_what_is_orthogonal(rng)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite(rng, value):
    cpu.test_what_is_not_finite(rng, value)


@each_dtype
@pytest.mark.parametrize("layout", ["contiguous", "sliced", "reversed"])
def test_out_and_in_place(rng, dtype, layout):
    cpu.test_out_and_in_place(rng, layout, dtype)


def test_gradients(rng):
    cpu.test_a_broadcast_gradient(rng)
    for axis, bound in ((0, None), (1, 0.5), (0, 1e6)):
        cpu.test_gradients_against_torch(rng, axis, bound)


@each_dtype
@pytest.mark.parametrize("bound", [0.25, 1e4])
def test_bound(rng, dtype, bound):
    cpu.test_bound(rng, dtype, bound)


def test_vectors_of_other_dtypes_and_strides(rng):
    cpu.test_vectors_of_other_dtypes_and_strides(rng)


def test_sigma_stays_an_array(rng):
    for dtype in (bfloat16, np.float64):
        w, dw, u, _ = cpu.make_weight(rng, dtype)
        result = nc.spectral_norm(w, u)
        assert result.sigma.shape == () and result.sigma.dtype == result.u.dtype
        got = nc.spectral_norm_backward(dw, result)
        want = nc.spectral_norm_backward(dw, result._replace(sigma=float(result.sigma)))
        assert bits(got) == bits(want)


@pytest.mark.parametrize("shape", [(50, 32), (30, 50), (6, 4200)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_power_method_finds_the_largest(rng, shape, dtype, order):
    values = np.append(5.0, np.linspace(1.5, 0.1, min(shape) - 1))
    a = np.asarray(cpu.with_values(rng, shape, values), dtype, order=order)
    found = nc.power_method(a, max_iterations=12)
    assert found.converged == 1
    # An error of the vectors enters sigma squared; what is left is rounding.
    assert float(found.sigma) == pytest.approx(np.linalg.norm(a.astype(float), 2), rel=1e-6)
    for vector in (found.u, found.v):
        assert vector.dtype == dtype
        assert np.linalg.norm(vector) == pytest.approx(1, rel=1e-6)
    # Rounding of vectors and sums in float32.
    assert max(cpu.residuals(a, found)) < (2e-6 if dtype == np.float32 else 1.001e-6)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(24, 16), (13, 30)])
def test_converged_is_true(rng, shape, order):
    values = np.append(1, np.linspace(0.5, 0.1, 9))
    a = np.asarray(cpu.with_values(rng, shape, values), order=order)
    for tol in (1e-2, 1e-5):
        found = nc.power_method(a, tol=tol, max_iterations=20)
        count = int(found.n_iterations)
        assert found.converged == 1 and cpu.residuals(a, found)[0] <= tol * (1 + 1e-6)
        # It stopped at the first iteration that was good enough; none after it moved anything.
        earlier = nc.power_method(a, tol=tol, n_iterations=count - 1)
        assert earlier.converged == 0 and earlier.n_iterations == count - 1
        assert cpu.residuals(a, earlier)[0] > tol
        again = nc.power_method(a, tol=tol, n_iterations=count)
        assert [bits(np.asarray(x)) for x in again] == [bits(np.asarray(x)) for x in found]
    stopped = nc.power_method(a, tol=1e-9, max_iterations=3)
    assert stopped.n_iterations == 3 and stopped.converged == 0


def test_power_method(rng):
    single = np.zeros((20, 24), np.float32)
    single[13, 17] = -4
    found = nc.power_method(single, max_iterations=5)
    assert found.sigma == 4 and found.n_iterations == 1
    assert found.u[13] * found.v[17] == -1
    a = cpu.with_values(rng, (30, 20), [3.0, 2.0, 1.0])
    u = rng.normal(size=30)
    want = reference.spectral_norm(a, u, n_power_iterations=3)
    found = nc.power_method(a, u=u, n_iterations=3)
    assert float(found.sigma) == pytest.approx(float(want[1]), rel=1e-12)
    np.testing.assert_allclose(found.u, want[2].astype(float), atol=1e-12)
    np.testing.assert_allclose(found.v, want[3].astype(float), atol=1e-12)


@pytest.mark.parametrize("shape", [(20, 64), (64, 20), (3, 9000)])
def test_results_are_the_same_bits_every_time(rng, shape):
    w, dw, u, _ = cpu.make_weight(rng, np.float32, shape)

    def everything():
        result = nc.spectral_norm(w, u, n_power_iterations=2)
        found = nc.power_method(w, n_iterations=2)
        dweight = nc.spectral_norm_backward(dw, result)
        return [bits(np.asarray(a)) for a in (*result, *found, dweight)]

    assert everything() == everything()


def test_empty():
    for shape in [(0, 3), (3, 0), (2, 0, 4)]:
        w, u = np.empty(shape, np.float32), np.ones(shape[0], np.float32)
        result = nc.spectral_norm(w, u)
        assert result.weight.shape == shape and result.sigma == 0
        assert not result.u.any() and not result.v.any()
        assert nc.spectral_norm_backward(w, result).shape == shape
        if len(shape) == 2:
            found = nc.power_method(w)
            assert found.sigma == 0 and found.u.shape + found.v.shape == shape


def test_errors_come_before_anything_is_written(rng):
    cpu.test_errors()
    w, dw, u, _ = cpu.make_weight(rng, shape=(4, 3))
    out = np.full_like(w, 7)
    with pytest.raises(ValueError, match=r"result.sigma has shape \(2,\)"):
        bad = nc.spectral_norm(w, u)._replace(sigma=np.ones(2, np.float32))
        nc.spectral_norm_backward(dw, bad, out=out)
    assert (out == 7).all()
