"""What the gallery shows of each method: its calls, an arrangement of four numbers, a scene.

A call takes x of shape (N, C, H, W), or a weight matrix, and makes parameters to fit. `draw.py`
takes pictures of all of them in the same way. A test asks for an entry for each method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scenes

import normcore as nc

Array = np.ndarray


@dataclass(frozen=True)
class Method:
    """A method of the gallery.

    `forward(x)` gives y, `backward(dy, x)` the gradient of x. `arrangement` is the shape that four
    numbers take to be one pool, or what comes nearest. `cell` is the op and the shape of the
    benchmark, `scene` draws what the method does.
    """

    forward: Callable[[Array], Array]
    backward: Callable[[Array, Array], Array]
    arrangement: tuple[int, ...]
    cell: tuple[str, str]
    scene: Callable[[Method, object], None]
    matrix: bool = False  # of weights, not of activations


def dx_of(result: object) -> Array:
    """The gradient of x, which is the whole result of a method without parameters."""
    return getattr(result, "dx", result)


def of(name: str, *options: object, scene: Callable, cell: str, shape: tuple, **keywords) -> Method:
    """A method without arrays of its own."""
    function, backward = getattr(nc, name), getattr(nc, f"{name}_backward")
    return Method(
        lambda x: function(x, *options, **keywords),
        lambda dy, x: dx_of(backward(dy, x, *options, **keywords)),
        shape,
        (name, cell),
        scene,
    )


def with_buffers(name: str, *own: float, shape: tuple, **keywords) -> Method:
    """A method with running buffers, in training; `own` are the values of arrays before weight."""
    function, backward = getattr(nc, name), getattr(nc, f"{name}_backward")

    def options(x: Array) -> tuple[tuple[Array, ...], dict]:
        channels = x.shape[1]
        sizes = 3 if name == "switchable_norm" else channels
        arrays = tuple(np.full(sizes, value, x.dtype) for value in own)
        buffers = {}
        if name == "batch_renorm":
            zeros = np.zeros(channels, np.float64 if x.dtype == np.float64 else np.float32)
            buffers = {"running_mean": zeros, "running_std": zeros + 1}
        return arrays, {"training": True, **buffers, **keywords}

    def forward(x: Array) -> Array:
        arrays, chosen = options(x)
        return function(x, *arrays, **chosen)

    def gradient(dy: Array, x: Array) -> Array:
        arrays, chosen = options(x)
        _, stats = function(x, *arrays, **chosen, return_stats=True)
        return backward(dy, x, *arrays, stats=stats, **chosen).dx

    cell = (f"{name}/train", "32x64x56x56 NCHW")
    return Method(forward, gradient, shape, cell, scenes.batch_of_photographs)


def of_channels(name: str, cell: str, scene: Callable, arrays: Callable, **keywords) -> Method:
    """A method with a matrix over the channels: `arrays(C)` are its parameters."""
    function, backward = getattr(nc, name), getattr(nc, f"{name}_backward")
    return Method(
        lambda x: function(x, *arrays(x.shape[1]), **keywords),
        lambda dy, x: backward(dy, x, *arrays(x.shape[1]), **keywords).dx,
        (1, 4, 1, 1),
        (name, cell),
        scene,
    )


def spectral(weight: Array) -> nc.SpectralNormResult:
    start = np.linspace(1, 2, len(weight)).astype(weight.dtype)
    return nc.spectral_norm(weight, start, n_power_iterations=50)


ROWS = {"axis": 1, "scene": scenes.photograph, "shape": (1, 4, 1, 1)}
IMAGE, WEIGHT = "32x64x56x56 NCHW", "4096x4096 axis=0"

METHODS: dict[str, Method] = {
    "layer_norm": of("layer_norm", cell="8192x4096", **ROWS),
    "rms_norm": of("rms_norm", cell="8192x4096", **ROWS),
    "normalize": of("normalize", cell="4096x4096", **ROWS),
    "batch_norm": with_buffers("batch_norm", shape=(4, 1, 1, 1)),
    "instance_norm": of(
        "instance_norm",
        cell="4x64x256x256 NCHW",
        scene=scenes.batch_of_photographs,
        shape=(1, 1, 1, 4),
    ),
    "group_norm": Method(
        lambda x: nc.group_norm(x, max(x.shape[1] // 3, 1)),
        lambda dy, x: nc.group_norm_backward(dy, x, max(x.shape[1] // 3, 1)).dx,
        (1, 2, 1, 2),
        ("group_norm", "4x320x64x64 NCHW"),
        scenes.batch_of_photographs,
    ),
    "batch_renorm": with_buffers("batch_renorm", shape=(4, 1, 1, 1), r_max=1.5, d_max=0.5),
    "batch_instance_norm": with_buffers("batch_instance_norm", 0.5, shape=(2, 1, 1, 2)),
    "switchable_norm": with_buffers("switchable_norm", 0.0, 0.0, shape=(2, 1, 1, 2)),
    "mean_only_batch_norm": with_buffers("mean_only_batch_norm", shape=(4, 1, 1, 1)),
    "lp_batch_norm": with_buffers("lp_batch_norm", shape=(4, 1, 1, 1), p=1.0),
    "topk_batch_norm": with_buffers("topk_batch_norm", shape=(4, 1, 1, 1), k=2),
    "weight_norm": Method(
        lambda v: nc.weight_norm(v, np.ones((len(v), 1), v.dtype)),
        lambda dw, v: nc.weight_norm_backward(dw, v, np.ones((len(v), 1), v.dtype)).dv,
        (1, 4),
        ("weight_norm", WEIGHT),
        scenes.rows_of_a_matrix,
        matrix=True,
    ),
    "spectral_norm": Method(
        lambda weight: spectral(weight).weight,
        lambda dw, weight: nc.spectral_norm_backward(dw, spectral(weight)),
        (2, 2),
        ("spectral_norm/1", WEIGHT),
        scenes.image_of_the_circle,
        matrix=True,
    ),
    "local_response_norm": of(
        "local_response_norm",
        3,
        alpha=5.0,
        cell=IMAGE,
        scene=scenes.local_response,
        shape=(1, 4, 1, 1),
    ),
    "local_divisive_norm": of(
        "local_divisive_norm",
        0.3,
        summation_window=1,
        suppression_window=3,
        cell="8x64x56x56 NCHW",
        scene=scenes.local_divisive,
        shape=(1, 4, 1, 1),
    ),
    "divisive_norm": of_channels(
        "divisive_norm",
        "8x128x32x32 NCHW",
        scenes.responses_to_contrast,
        lambda channels: (np.full((channels, channels), 0.5), 1.0),
    ),
    "gdn": of_channels(
        "gdn",
        "8x192x64x64 NCHW",
        scenes.neighbouring_differences,
        lambda channels: (np.ones(channels), np.full((channels, channels), 0.3)),
    ),
}
