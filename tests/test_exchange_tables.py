"""Arrays by the table of C functions that their library has (DLPack's exchange API).

Hunts for results that are not the library's own, subclasses and special tensors whose memory the
table would hand over without a word, tables of other versions, and what is given back twice or
never.
"""

import numpy as np
import pytest
from exchange_tables import Library
from lying_dlpack import Lying
from support import bits

import normcore as nc


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


X = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
W = np.linspace(1, 2, 5, dtype=np.float32)
Y = nc.layer_norm(X, W)


def test_results_are_the_librarys_own():
    library = Library()
    y = nc.layer_norm(library.Array(X), library.Array(W))
    assert type(y) is library.Array and bits(y.array) == bits(Y)
    assert library.asked == ["view_object", "view_object", "allocate", "to_object"]
    assert library.alive == 1, "that of the result, which the object has"


def test_without_views_tensors_are_taken_and_given_back():
    library = Library(lends=False)
    y = nc.layer_norm(library.Array(X), library.Array(W))
    assert bits(y.array) == bits(Y) and library.alive == 1
    assert library.asked == ["from_object", "from_object", "allocate", "to_object"]


def test_strides_and_order_in_memory():
    library = Library()
    wide = np.full((3, 4, 10), np.nan, np.float32)
    wide[..., ::2] = X
    y = nc.layer_norm(library.Array(wide[..., ::2]), library.Array(W[::-1]))
    assert bits(y.array) == bits(nc.layer_norm(X, W[::-1]))
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(X, 1, -1)), -1, 1)
    y = nc.instance_norm(library.Array(last))
    assert y.array.strides == last.strides and bits(y.array) == bits(nc.instance_norm(last))


def test_out_and_read_only_arrays():
    library = Library()
    out = np.full_like(X, np.nan)
    target = library.Array(out)
    assert nc.layer_norm(library.Array(X), library.Array(W), out=target) is target
    assert bits(out) == bits(Y) and library.alive == 0
    library.flags = 1
    with pytest.raises(ValueError, match=r"^out is read-only"):
        nc.layer_norm(library.Array(X), out=target)
    assert library.alive == 0
    library.flags = 0
    assert bits(nc.layer_norm(library.Array(X), library.Array(W)).array) == bits(Y)


def test_a_table_of_a_later_version_is_asked_for_an_older_one():
    old = Library()
    new = Library(version=(2, 0), older=old)
    y = nc.layer_norm(new.Array(X), new.Array(W))
    assert type(y) is old.Array and bits(y.array) == bits(Y)
    assert new.asked == [] and "allocate" in old.asked


def test_a_table_of_a_later_version_alone_is_left_alone():
    library = Library(version=(2, 0))
    y = nc.layer_norm(library.Array(X), library.Array(W))
    assert isinstance(y, np.ndarray) and bits(y) == bits(Y)
    assert library.asked == [("__dlpack__", None)] * 2 and library.alive == 0


def test_a_table_with_a_missing_function_is_left_alone():
    library = Library()
    library.table.to_object = None
    assert isinstance(nc.layer_norm(library.Array(X)), np.ndarray)
    assert library.asked == [("__dlpack__", None)]


def test_a_capsule_of_another_name_is_no_table():
    liar = Lying(X)
    kind = type("Array", (), {"__dlpack_c_exchange_api__": liar.__dlpack__()})
    with pytest.raises(TypeError, match=r"^out is Array, expected an array"):
        nc.layer_norm(X, out=kind())


def test_a_subclass_is_asked_itself():
    library = Library()

    class Derived(library.Array):
        pass

    y = nc.layer_norm(Derived(X), library.Array(W))
    assert type(y) is library.Array and bits(y.array) == bits(Y)
    assert library.asked[:2] == [("__dlpack__", None), "view_object"]


def test_other_dtypes_and_shortage_are_errors_that_leave_nothing():
    library = Library()
    with pytest.raises(TypeError, match=r"^x has dtype"):
        nc.layer_norm(library.Array(X.astype(np.int32)))
    library.out_of_memory = True
    with pytest.raises(MemoryError, match="all of it is in use"):
        nc.layer_norm(library.Array(X))
    assert library.alive == 0


# ---- torch's own table


def test_torch_allocates_results(torch):
    x, w = torch.from_numpy(X), torch.from_numpy(W)
    y, stats = nc.layer_norm(x, w, return_stats=True)
    grads = nc.layer_norm_backward(x, x, w, stats=stats)
    for made in (y, stats.mean, stats.rstd, *grads[:2]):
        # Memory that came in by a capsule cannot be resized.
        assert type(made) is torch.Tensor and made.untyped_storage().resizable()
    assert bits(y.numpy()) == bits(Y)


def test_torch_memory_format_and_views(torch):
    plain = torch.randn(2, 6, 5, 7)
    for x in (
        plain.contiguous(memory_format=torch.channels_last),
        plain.permute(3, 1, 0, 2),
        torch.randn(6, 2, 5, 7).transpose(0, 1),
        plain[:, :, ::2],
        plain.expand(2, 6, 5, 7)[..., :1],
        torch.randn(7).expand(2, 6, 5, 7),
        plain[:, :, :0],
    ):
        y = nc.group_norm(x, 1)
        assert y.shape == x.shape
        want = nc.group_norm(x.numpy(), 1)
        assert bits(y.numpy()) == bits(want)
        np.testing.assert_array_equal(
            [s for s, n in zip(y.stride(), y.shape, strict=True) if n > 1 and y.numel()],
            [s // 4 for s, n in zip(want.strides, y.shape, strict=True) if n > 1 and y.numel()],
        )


def test_torch_subclasses_and_parameters(torch):
    class Derived(torch.Tensor):
        pass

    w = torch.from_numpy(W)
    for kind in (
        lambda t: t.as_subclass(Derived),
        lambda t: torch.nn.Parameter(t, requires_grad=False),
    ):
        y = nc.layer_norm(kind(torch.from_numpy(X)), kind(w))
        assert type(y) is torch.Tensor and bits(y.numpy()) == bits(Y)
        out = kind(torch.full(X.shape, float("nan")))
        assert nc.layer_norm(torch.from_numpy(X), kind(w), out=out) is out
        assert bits(out.as_subclass(torch.Tensor).detach().numpy()) == bits(Y)


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_torch_modes(torch, mode):
    with getattr(torch, mode)():
        y = nc.layer_norm(torch.from_numpy(X), torch.from_numpy(W))
        assert bits(y.numpy()) == bits(Y)
        y = nc.layer_norm(torch.from_numpy(X), torch.nn.Parameter(torch.from_numpy(W)))
        assert bits(y.numpy()) == bits(Y)


def test_torch_negative_bit(torch):
    memory = torch.complex(torch.zeros(X.shape), torch.from_numpy(X))
    x = memory.conj().imag
    assert x.is_neg()
    assert bits(nc.layer_norm(x).numpy()) == bits(nc.layer_norm(-X))
    with pytest.raises(ValueError, match=r"^out has torch's negative bit set"):
        nc.layer_norm(torch.from_numpy(X), out=x)


def test_torch_tensors_without_plain_memory_are_refused(torch):
    x = torch.from_numpy(X)
    for strange, error in (
        (x[0].to_sparse(), TypeError),
        (x.to("meta"), TypeError),
        (x.to_mkldnn(), TypeError),
        (torch._efficientzerotensor(4), ValueError),
    ):
        for call in (lambda s: nc.rms_norm(s), lambda s: nc.rms_norm(x, out=s)):
            with pytest.raises(error, match=r"^(x|out)\b"):
                call(strange)

    def within(t):
        with pytest.raises(TypeError, match=r"^x "):
            nc.layer_norm(t)
        return t.sum()

    torch.func.vmap(within)(x)
    torch.func.grad(within)(x)


def test_torch_modes_that_make_other_tensors(torch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    x = torch.from_numpy(X)
    with FakeTensorMode(allow_non_fake_inputs=True):
        y = nc.layer_norm(x)
    assert bits(y.numpy()) == bits(nc.layer_norm(X))
