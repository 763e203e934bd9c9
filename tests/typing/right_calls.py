"""A user's program: type checkers must accept all of it, and see these types.

Checked by `python3 dev.py typing`, and run by the tests.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type

import normcore as nc
from normcore.methods.batch_norm import BatchNormStats
from normcore.methods.layer_norm import LayerNormStats

Floats = npt.NDArray[np.float32]

rng = np.random.default_rng(0)
x: Floats = rng.normal(size=(4, 3, 5)).astype(np.float32)
weight: Floats = np.ones(3, np.float32)


def functions(ask: bool) -> None:
    assert_type(nc.layer_norm(x), Floats)
    assert_type(nc.layer_norm(x, axis=(1, 2), eps=1e-6, out=np.empty_like(x)), Floats)
    y, stats = nc.layer_norm(x, return_stats=True)
    assert_type(y, Floats)
    assert_type(stats, LayerNormStats[Floats])
    assert_type(nc.layer_norm(x, residual=x), tuple[Floats, Floats])
    assert_type(
        nc.layer_norm(x, residual=x, return_stats=True),
        tuple[Floats, Floats, LayerNormStats[Floats]],
    )
    gradients = nc.layer_norm_backward(y, x, stats=stats)
    assert_type(gradients.dx, Floats)
    assert gradients.dweight is None
    assert_type(nc.batch_norm(x, weight, [0.0, 0.0, 0.0], training=True), Floats)
    either = nc.batch_norm(x, weight, return_stats=ask)
    assert_type(either, Floats | tuple[Floats, BatchNormStats[Floats]])
    assert_type(nc.group_norm(x, 3, weight), Floats)
    assert_type(nc.rms_norm(x, residual=x), tuple[Floats, Floats])
    assert_type(nc.gdn(x, weight, np.eye(3)), Floats)
    assert_type(nc.divisive_norm(x, np.eye(3), 1.0, gain=weight), Floats)
    assert_type(nc.local_response_norm(x, 3, across="space"), Floats)
    result = nc.spectral_norm(x, np.ones(4, np.float32))
    assert_type(result.sigma, float)
    assert_type(nc.spectral_norm_backward(x, result), Floats)
    assert_type(nc.weight_norm(x, np.ones(4, np.float32)).dtype, np.dtype[np.float32])


def layers() -> None:
    layer = nc.BatchNorm(3, ghost_batch_size=2, time_steps=None)
    y = layer(x)
    assert_type(y, Floats)
    assert_type(layer.backward(y), Floats)
    assert_type(layer.weight, npt.NDArray[Any] | None)
    assert layer.weight is not None
    layer.weight *= 2
    layer.bias = np.zeros(3, np.float32)
    for name, parameter in layer.named_parameters():
        assert_type(name, str)
        assert_type(parameter, npt.NDArray[Any])
    assert_type(layer.eval(), nc.BatchNorm)
    rows = nc.LayerNorm(5)
    assert_type(rows(x), Floats)
    assert_type(rows(x, x), tuple[Floats, Floats])
    assert_type(nc.SwitchableNorm(3).mean_logits, npt.NDArray[Any])
    layer.reset_parameters()


if __name__ == "__main__":
    functions(True)
    layers()
