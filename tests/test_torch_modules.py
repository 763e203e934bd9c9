"""Modules of normcore.torch: torch's own with our operators, and the methods that torch lacks."""

import copy
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import normcore as nc  # noqa: E402
import normcore.torch as nt  # noqa: E402

IMAGES = (4, 6, 5, 3)
DROP_INS = [
    ("BatchNorm1d", (6,), {}, (5, 6)),
    ("BatchNorm1d", (6,), {"momentum": None}, (5, 6, 4)),
    ("BatchNorm2d", (6,), {}, IMAGES),
    ("BatchNorm2d", (6,), {"affine": False, "eps": 1e-3}, IMAGES),
    ("BatchNorm2d", (6,), {"track_running_stats": False}, IMAGES),
    ("BatchNorm3d", (6,), {"momentum": 0.3}, (2, 6, 3, 2, 2)),
    ("InstanceNorm1d", (6,), {"affine": True}, (4, 6, 7)),
    ("InstanceNorm1d", (6,), {"affine": True}, (6, 7)),  # no batch
    ("InstanceNorm2d", (6,), {"track_running_stats": True, "affine": True}, IMAGES),
    ("InstanceNorm3d", (6,), {}, (2, 6, 3, 2, 2)),
    ("GroupNorm", (3, 6), {}, IMAGES),
    ("GroupNorm", (2, 6), {"affine": False}, (4, 6)),
    ("LayerNorm", (3,), {}, IMAGES),
    ("LayerNorm", ([5, 3],), {"bias": False}, IMAGES),
    ("LayerNorm", (3,), {"elementwise_affine": False}, IMAGES),
    ("RMSNorm", (3,), {}, IMAGES),
    ("RMSNorm", ([5, 3],), {"eps": 1e-3}, IMAGES),
    ("LocalResponseNorm", (3,), {"alpha": 0.5, "beta": 0.6, "k": 2.0}, IMAGES),
    ("LocalResponseNorm", (4,), {"alpha": 0.5}, (4, 6, 9)),
]  # fmt: skip
drop_ins = pytest.mark.parametrize(("name", "arguments", "options", "shape"), DROP_INS)


def pair(name, arguments, options, rng):
    """A module of torch's and ours, with the same random parameters and statistics."""
    theirs = getattr(nn, name)(*arguments, **options)
    ours = getattr(nt, name)(*arguments, **options)
    for t in (*theirs.parameters(), *theirs.buffers()):
        if t.is_floating_point():
            t.data.copy_(torch.from_numpy(rng.uniform(0.5, 1.5, t.shape)))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def assert_same(ours, theirs, **tolerances):
    torch.testing.assert_close(ours, theirs, **{"rtol": 2e-5, "atol": 2e-5, **tolerances})


@drop_ins
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_drop_ins_are_torchs(rng, name, arguments, options, shape, memory):
    if memory == "channels_last" and len(shape) != 4:
        return
    theirs, ours = (m.double() for m in pair(name, arguments, options, rng))
    assert isinstance(ours, getattr(nn, name))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    for training in (True, True, False):
        theirs.train(training)
        ours.train(training)
        x = torch.from_numpy(rng.normal(1, 2, shape))
        if memory == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        xs = [x.clone().requires_grad_() for _ in range(2)]
        y, expected = ours(xs[0]), theirs(xs[1])
        assert_same(y, expected)
        # Of what is not contiguous torch's RMS norm keeps the strides, as rows seldom want, and its
        # instance norm loses channels-last, which convolutions behind it do.
        if memory == "contiguous" or not name.startswith(("RMSNorm", "InstanceNorm")):
            assert y.stride() == expected.stride()
        dy = torch.from_numpy(rng.standard_normal(y.shape))
        y.backward(dy)
        expected.backward(dy)
        exact = {"rtol": 1e-9, "atol": 1e-9}  # rows of 3 may be nearly constant
        assert_same(xs[0].grad, xs[1].grad, **exact)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert_same(a.grad, b.grad, **exact)
        for (k, a), (_, b) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
            assert_same(a, b, msg=k)
    theirs.load_state_dict(ours.state_dict())


@drop_ins
def test_drop_ins_live_as_torchs(rng, name, arguments, options, shape):
    _, ours = pair(name, arguments, options, rng)
    ours.eval()
    x = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
    y = ours(x)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(x), y)
    state = {k: v.clone() for k, v in ours.state_dict().items()}
    moved = torch.func.functional_call(ours, state, (x,))
    assert torch.equal(moved, y)
    assert_same(ours.double()(x.double()).float(), y)
    half = ours.to(torch.bfloat16)
    assert half(x.to(torch.bfloat16)).dtype == torch.bfloat16


def test_buffers_of_half_modules_move(rng):
    theirs, ours = pair("BatchNorm2d", (6,), {}, rng)
    x = torch.from_numpy(rng.normal(3, 2, IMAGES).astype(np.float32)).to(torch.bfloat16)
    ours.to(torch.bfloat16)(x)
    assert ours.running_mean.dtype == torch.bfloat16
    theirs(x.float())
    assert_same(ours.running_mean.float(), theirs.running_mean, rtol=1e-2, atol=1e-2)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3),
            nn.GroupNorm(3, 6),
            nn.LocalResponseNorm(3),
            nn.InstanceNorm2d(6, affine=True),
        )
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.norm(self.features(x).mean((2, 3))))


def test_replace_and_restore():
    torch.manual_seed(0)
    model = Block()
    other = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    x = torch.randn(4, 3, 9, 9)
    counts = nt.replace_modules(model)
    expected = ("BatchNorm2d", "GroupNorm", "LocalResponseNorm", "InstanceNorm2d", "LayerNorm")
    assert counts == dict.fromkeys(expected, 1)
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert all(p is parameters[n] for n, p in model.named_parameters())
    losses = []
    for m in (model, other):
        optimizer = torch.optim.SGD(m.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss = m(x).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss)
    assert_same(*losses)
    for (k, a), (_, b) in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert_same(a, b, msg=k)
    assert_same(model.eval()(x), other.eval()(x))
    assert nt.restore_modules(model) == counts
    assert [type(m) for m in model.modules()][1:] == [type(m) for m in other.modules()][1:]
    assert nt.replace_modules(model, kinds=["LayerNorm", nn.GroupNorm]) == {
        "LayerNorm": 1,
        "GroupNorm": 1,
    }
    assert type(model.features[1]) is nn.BatchNorm2d
    with pytest.raises(ValueError, match=r"^kinds has 'Linear'"):
        nt.replace_modules(model, kinds="Linear")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_replaced_models_compile_and_export():
    torch.manual_seed(0)
    model = Block().eval()
    nt.replace_modules(model)
    x = torch.randn(4, 3, 9, 9)
    y = model(x)
    assert_same(torch.compile(model, fullgraph=True, backend="aot_eager")(x), y)
    program = torch.export.export(model, (x,))
    assert not any("normcore" in str(n.target) for n in program.graph.nodes)
    assert_same(program.module()(x), y)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")  # of the exporters about themselves
@pytest.mark.parametrize("dynamo", [True, False], ids=["export", "trace"])
def test_replaced_models_export_to_onnx(dynamo, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    norms = [
        nn.BatchNorm2d(8),
        nn.GroupNorm(2, 8),
        nn.InstanceNorm2d(8, affine=True),
        nn.LocalResponseNorm(3),
        nn.Flatten(),
        nn.LayerNorm(288),
    ]
    if dynamo:  # the older exporter does not know torch's own
        norms.append(nn.RMSNorm(288))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *norms)
    model(torch.randn(4, 3, 8, 8))  # the running statistics move
    model.eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        want = model(x)
    assert nt.replace_modules(model)
    file = tmp_path / "model.onnx"
    torch.onnx.export(model, (x,), file, dynamo=dynamo)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    # Float32 through three norms in a row, values of a few units.
    np.testing.assert_allclose(got, want.numpy(), atol=2e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_left_to_torch():
    parts = [torch.randn(2, 4), torch.randn(3, 4)]
    module = nt.LayerNorm(4)
    for layout in (torch.jagged, torch.strided):
        y = module(torch.nested.nested_tensor(parts, layout=layout))
        for got, part in zip(y.unbind(), parts, strict=True):
            assert_same(got, module(part))


def test_copies_of_parametrized_modules():
    module = nt.BatchNorm2d(3)
    torch.nn.utils.parametrize.register_parametrization(module, "weight", nn.Identity())
    averaged = torch.optim.swa_utils.AveragedModel(module)
    averaged.update_parameters(module)
    x = torch.randn(4, 3, 2, 2)
    assert torch.equal(copy.deepcopy(module)(x), averaged.module(x))


@pytest.mark.parametrize("strict", [False, True])
def test_the_bounds_of_gdn_hold_in_exported_graphs(strict):
    """Below a bound the gradient passes where descent leads back: not as that of a maximum."""
    module, x = nt.GDN(3, beta_min=0.5), torch.randn(2, 3, 4)
    with torch.no_grad():
        module.beta.fill_(0.1)
    graph = torch.export.export(module, (x,), strict=strict).module()
    for sign in (1, -1):
        grads = []
        for m in (module, graph):
            m.zero_grad()
            (sign * m(x).abs().sum()).backward()
            grads.append(m.beta.grad.clone())
        assert torch.equal(*grads) and bool(grads[0].any()) == (sign > 0)


def test_gdn_under_transforms():
    module = nt.GDN(3)
    parameters = {k: p.detach() for k, p in module.named_parameters()}
    x = torch.randn(5, 3, 4)

    def loss(parameters, x):
        return torch.func.functional_call(module, parameters, (x[None],)).square().sum()

    each = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i, sample in enumerate(x):
        module.zero_grad()
        module(sample[None]).square().sum().backward()
        for k, p in module.named_parameters():
            assert_same(each[k][i], p.grad)


# ---- the life of batch statistics


@pytest.mark.parametrize("ghosts", [None, 2])
@pytest.mark.parametrize("name", ["BatchNorm", "BatchRenorm", "MeanOnlyBatchNorm"])
def test_what_does_not_count_is_no_batch(rng, name, ghosts):
    """As in the layers: nothing weighs in the cumulative average of a masked batch, or part."""
    theirs = getattr(nc, name)(3, momentum=None, ghost_batch_size=ghosts)
    module = getattr(nt, "BatchNorm1d" if name == "BatchNorm" else name)
    ours = module(3, momentum=None, ghost_batch_size=ghosts)
    for kept in ([0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 1, 1]):
        x = rng.normal(2, 3, (4, 3, 5)).astype(np.float32)
        mask = np.array(kept, bool)[:, None]
        y = ours(torch.from_numpy(x), mask)  # of any kind
        np.testing.assert_array_equal(y.detach(), theirs(x, mask=mask))
    if name != "BatchNorm":  # torch's counts batches of no samples
        ours(torch.zeros(0, 3, 5))
        theirs(np.zeros((0, 3, 5), np.float32))
    for key, buffer in ours.named_buffers():
        np.testing.assert_array_equal(buffer, theirs.buffers[key], err_msg=key)


def test_ghost_batches_move_together_or_not_at_all(rng):
    x, mask = torch.randn(4, 3, 5), torch.ones(4, 5)
    mask[3] = -1
    module = nt.BatchNorm1d(3, ghost_batch_size=2)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=r"^mask holds -1\.000000, expected"):
        module(x, mask)
    assert all(torch.equal(a, before[k]) for k, a in module.state_dict().items())


def test_arguments_are_checked_when_modules_are_made():
    with pytest.raises(ValueError, match=r"^momentum is 2\.0, expected None or a number"):
        nt.SwitchableNorm(3, momentum=2.0)
    with pytest.raises(ValueError, match=r"^k is 0, expected at least 1"):
        nt.TopKBatchNorm(3, k=0)
    with pytest.raises(ValueError, match=r"^freeze needs running statistics"):
        nt.BatchNorm2d(3, track_running_stats=False).freeze()
    with pytest.raises(ValueError, match=r"^channel_axis is 7, expected -2 to 1 for x with 2 axes"):
        nt.SwitchableNorm(3, channel_axis=7)(torch.ones(2, 3))
    with pytest.raises(TypeError, match=r"^mask has dtype torch\.complex64, expected bools"):
        nt.BatchNorm1d(3)(torch.randn(4, 3), torch.ones(4, dtype=torch.complex64))


def test_masks_leave_padding_out(rng):
    x = torch.from_numpy(rng.normal(2, 3, (3, 4, 6)).astype(np.float32))
    lengths = [6, 2, 4]
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    ours, theirs = nt.BatchNorm1d(4), nn.BatchNorm1d(4)
    y = ours(x, mask)
    rows = torch.cat([x[i, :, :n].T for i, n in enumerate(lengths)])
    expected = theirs(rows)
    assert_same(torch.cat([y[i, :, :n].T for i, n in enumerate(lengths)]), expected)
    assert_same(ours.running_mean, theirs.running_mean)
    assert_same(ours.running_var, theirs.running_var)


def test_ghost_batches(rng):
    x = torch.from_numpy(rng.normal(2, 3, (7, 4, 3, 3)).astype(np.float32))
    x.requires_grad_()
    ours, theirs = nt.BatchNorm2d(4, ghost_batch_size=3), nn.BatchNorm2d(4)
    y = ours(x)
    expected = torch.cat([theirs(part) for part in (x[:3], x[3:6], x[6:])])
    assert_same(y, expected)
    assert int(ours.num_batches_tracked) == 3
    assert_same(ours.running_var, theirs.running_var)
    (g,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    (e,) = torch.autograd.grad(expected.square().sum(), x)
    assert_same(g, e, atol=1e-4)
    with pytest.raises(ValueError, match="expected one of them"):
        nt.BatchNorm2d(4, ghost_batch_size=3, process_group=object())


def test_freeze(rng):
    x = torch.from_numpy(rng.normal(2, 3, IMAGES).astype(np.float32))
    module = nt.BatchNorm2d(6)
    module(x)
    state = copy.deepcopy(module.state_dict())
    module.freeze()
    y = module(x)
    y.sum().backward()
    assert module.bias.grad is not None
    assert all(torch.equal(a, state[k]) for k, a in module.state_dict().items())
    assert torch.equal(y, module.eval()(x))
    module.train().unfreeze()(x)
    assert int(module.num_batches_tracked) == 2


def test_what_is_refused_moves_nothing():
    module = nt.BatchNorm1d(4)
    for x in (torch.ones(1, 4), torch.ones(2, 5)):
        with pytest.raises(ValueError):
            module(x)
        assert int(module.num_batches_tracked) == 0 and not module.running_mean.any()
    with pytest.raises(ValueError, match=r"^input has shape"):
        nt.LayerNorm(4)(torch.ones(2, 5))


# ---- processes


def _rank(rank, world, sizes, path, results):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=world)
    rng = np.random.default_rng(5)
    batches = [rng.normal(2, 3, (n, 4, 3)).astype(np.float32) for n in sizes]
    dys = [rng.standard_normal((n, 4, 3)).astype(np.float32) for n in sizes]
    outcome = {}
    for kind in (nt.BatchNorm1d, nt.SwitchableNorm, nt.MeanOnlyBatchNorm, nt.BatchInstanceNorm):
        module = kind(4, process_group=dist.group.WORLD)
        x = torch.from_numpy(batches[rank]).requires_grad_()
        y = module(x)
        y.backward(torch.from_numpy(dys[rank]))
        buffers = {k: v.numpy() for k, v in module.named_buffers()}
        outcome[kind.__name__] = (y.detach().numpy(), x.grad.numpy(), buffers)
    # A graph of torch.compile breaks where processes meet; what knows only of one is refused.
    module = nt.BatchNorm1d(4, process_group=dist.group.WORLD)
    assert copy.deepcopy(module).process_group is module.process_group
    x = torch.from_numpy(batches[rank]).requires_grad_()
    torch.compile(module, backend="aot_eager")(x).backward(torch.from_numpy(dys[rank]))
    assert np.allclose(x.grad.numpy(), outcome["BatchNorm1d"][1], atol=1e-6)
    y = module(x)
    try:
        torch.autograd.grad(y.sum(), x, create_graph=True)
        outcome["refused"] = False
    except NotImplementedError:
        outcome["refused"] = True
    results.put((rank, outcome))
    results.close()
    results.join_thread()
    dist.barrier()  # gloo may abort where one leaves while another still listens
    dist.destroy_process_group()


@pytest.mark.parametrize("sizes", [(5, 2), (3, 0, 4)], ids=str)
def test_statistics_over_processes(sizes, tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    world = len(sizes)
    processes = [
        context.Process(target=_rank, args=(r, world, sizes, tmp_path / "meet", results))
        for r in range(world)
    ]
    for p in processes:
        p.start()
    outcomes = dict(results.get(timeout=120) for _ in processes)
    for p in processes:
        p.join(60)
        assert p.exitcode == 0
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.normal(2, 3, (n, 4, 3)).astype(np.float32) for n in sizes])
    dy = np.concatenate([rng.standard_normal((n, 4, 3)).astype(np.float32) for n in sizes])
    for kind in (nt.BatchNorm1d, nt.SwitchableNorm, nt.MeanOnlyBatchNorm, nt.BatchInstanceNorm):
        module = kind(4)
        whole = torch.from_numpy(x).requires_grad_()
        y = module(whole)
        y.backward(torch.from_numpy(dy))
        parts = [outcomes[r][kind.__name__] for r in range(world)]
        assert_same(np.concatenate([p[0] for p in parts]), y.detach().numpy())
        assert_same(np.concatenate([p[1] for p in parts]), whole.grad.numpy())
        for r, (_, _, buffers) in enumerate(parts):
            for k, b in module.named_buffers():
                assert_same(buffers[k], b.numpy(), msg=f"{kind.__name__} {k} of {r}")
    assert all(o["refused"] for o in outcomes.values())


# ---- methods that torch does not have

LAYERS = [
    ("BatchRenorm", (6,), {"schedule": None}, IMAGES),
    ("BatchRenorm", (6,), {"schedule": (0, 2, 4)}, IMAGES),
    ("BatchInstanceNorm", (6,), {}, IMAGES),
    ("SwitchableNorm", (6,), {"eps": 1e-3}, IMAGES),
    ("SwitchableNorm", (3,), {"channel_axis": -1}, IMAGES),
    ("MeanOnlyBatchNorm", (6,), {"momentum": None}, IMAGES),
    ("LpBatchNorm", (6,), {"p": 2.0}, IMAGES),
    ("TopKBatchNorm", (6,), {"k": 4, "track_running_stats": False}, IMAGES),
    ("DivisiveNorm", (6,), {"exponent": 3.0}, IMAGES),
    ("LocalDivisiveNorm", (6, 3, 3), {}, IMAGES),
    ("GDN", (6,), {"inverse": True}, IMAGES),
    ("GDN", (3,), {"channel_axis": -1, "alpha": 1.0}, IMAGES),
]


@pytest.mark.parametrize(("name", "arguments", "options", "shape"), LAYERS)
def test_modules_are_the_layers(rng, name, arguments, options, shape):
    layer = getattr(nc, name)(*arguments, **options)
    module = getattr(nt, name)(*arguments, **options)
    state = {k: v for k, v in layer.state_dict().items()}
    assert list(state) == list(module.state_dict())
    for k, t in module.state_dict().items():
        np.testing.assert_allclose(t.numpy(), state[k], rtol=1e-6, err_msg=k)
    for training in (True, True, False):
        layer.train() if training else layer.eval()
        module.train(training)
        x = rng.normal(1, 2, shape).astype(np.float32)
        dy = rng.standard_normal(shape).astype(np.float32)
        tx = torch.from_numpy(x).requires_grad_()
        y = module(tx)
        np.testing.assert_array_equal(y.detach().numpy(), layer(x))
        layer.zero_grad()
        module.zero_grad()
        y.backward(torch.from_numpy(dy))
        np.testing.assert_array_equal(tx.grad.numpy(), layer.backward(dy))
        for k, p in module.named_parameters():
            np.testing.assert_allclose(p.grad.numpy(), layer.grads[k], rtol=1e-5, atol=1e-5)
        for k, b in module.named_buffers():
            np.testing.assert_array_equal(b.numpy(), layer.buffers[k])


def test_projections():
    rho = nt.BatchInstanceNorm(3)
    divisive = nt.DivisiveNorm(3)
    with torch.no_grad():
        rho.rho.copy_(torch.tensor([-1.0, 0.5, 2.0]))
        divisive.weights.fill_(-1.0)
        divisive.sigma.fill_(-1.0)
    rho.project()
    divisive.project()
    assert rho.rho.tolist() == [0.0, 0.5, 1.0]
    assert not divisive.weights.any() and not divisive.sigma.any()


# ---- parametrizations


@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_parametrization(rng, dim):
    from torch.nn.utils import parametrizations

    torch.manual_seed(0)
    theirs = nn.Linear(5, 3)
    ours = copy.deepcopy(theirs)
    parametrizations.weight_norm(theirs, dim=-1 if dim is None else dim)
    assert nt.parametrizations.weight_norm(ours, dim=dim) is ours
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 5)
    for m in (ours, theirs):
        m(x).square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_same(a.grad, b.grad)
    ours.weight = torch.full((3, 5), 2.0)
    assert_same(ours.weight, torch.full((3, 5), 2.0))
    ours.parametrizations.weight.original1.data.zero_()
    assert not ours.weight.isnan().any()


@pytest.mark.parametrize(
    "module", [nn.Linear(5, 3), nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(3, 4, 3)]
)
def test_spectral_norm_parametrization(module):
    from torch.nn.utils import parametrizations

    torch.manual_seed(0)
    theirs = copy.deepcopy(module)
    ours = copy.deepcopy(module)
    parametrizations.spectral_norm(theirs)
    nt.parametrizations.spectral_norm(ours)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        for m in (ours, theirs):
            m.zero_grad()
            m.weight.pow(3).sum().backward()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            if a.grad is not None:
                assert_same(a.grad, b.grad)
        assert_same(ours.weight, theirs.weight) if not training else None
        for (k, a), (_, b) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
            assert_same(a, b, msg=k)
