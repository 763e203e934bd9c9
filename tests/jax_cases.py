"""Calls of every function of normcore.jax, with random arguments."""

from dataclasses import dataclass, field

import numpy as np

import normcore as nc
import normcore.jax as nj


@dataclass
class Case:
    """A call: the function's name, the arrays by their names, and the options.

    A shape stands for random numbers, "C" and "CC" for one of x's channels; with a + they are
    positive. Running buffers are numbers around those given; a mask has x's shape without its
    channels.
    """

    function: str
    arrays: dict
    options: dict = field(default_factory=dict)
    buffers: dict = field(default_factory=dict)
    label: str = ""
    double: bool = True  # has derivatives of gradients

    def __str__(self):
        return self.function + (f"-{self.label}" if self.label else "")

    @property
    def f(self):
        """The function of (arrays, constants): y, and new buffers where it moves them."""
        function = getattr(nj, self.function)
        return lambda arrays, constants: function(**arrays, **constants, **self.options)

    def y(self, arrays, constants):
        results = self.f(arrays, constants)
        return results[0] if isinstance(results, tuple) else results

    def make(self, rng, dtype=np.float32, batch=()):
        """(arrays that have a gradient, buffers and mask), each with the axes of a batch before."""
        x = next(iter(self.arrays.values()))
        channel_axis = self.options.get("channel_axis", 1)

        def array(shape):
            low = str(shape).endswith("+")
            if isinstance(shape, str):
                shape = (x[channel_axis],) * shape.count("C")
            shape = (*batch, *shape)
            values = rng.uniform(0.1, 1.1, shape) if low else rng.standard_normal(shape)
            return values.astype(dtype)

        arrays = {name: array(shape) for name, shape in self.arrays.items()}
        wide = np.float64 if dtype == np.float64 else np.float32
        constants = {
            name: (level + 0.3 * rng.uniform(size=(*batch, x[channel_axis]))).astype(wide)
            for name, level in self.buffers.items()
        }
        if self.label == "mask":
            shape = [n for i, n in enumerate(x) if i != channel_axis % len(x)]
            constants["mask"] = rng.random((*batch, *shape)) < 0.7
        return arrays, constants

    def on_arrays(self, arrays, constants):
        """normcore's own: y, the buffers as they are then, and backward(dy)."""
        moved = {k: a.copy() for k, a in constants.items()}
        call = {**arrays, **self.options}
        y = getattr(nc, self.function)(**call, **moved)
        before = {k: a.copy() for k, a in constants.items()}
        kept = {k: a for k, a in call.items() if k not in ("momentum", "unbiased_running_var")}
        if self.function == "batch_renorm":
            kept["stats"] = nc.batch_renorm(
                **call, **{k: a.copy() for k, a in constants.items()}, return_stats=True
            )[1]
        backward = getattr(nc, self.function + "_backward")

        def gradients(dy):
            results = backward(dy, **kept, **before)
            results = [results] if isinstance(results, np.ndarray) else list(results)
            return [g for g in results if isinstance(g, np.ndarray)]

        return y, moved, gradients


X = (3, 4, 5, 2)
AFFINE = {"x": X, "weight": "C", "bias": "C"}
INSTANCE = {"x": X, "rho": "C+", "weight": "C", "bias": "C"}
SWITCHABLE = {"x": X, "mean_logits": (3,), "var_logits": (3,), "weight": "C", "bias": "C"}
VAR = {"running_mean": 0.0, "running_var": 0.8}
STD = {"running_mean": 0.0, "running_std": 0.8}
SCALE = {"running_mean": 0.0, "running_scale": 0.8}
TRAINING = {"training": True}

CASES = [
    Case("layer_norm", {"x": (3, 4, 5), "weight": (5,), "bias": (5,)}),
    Case("layer_norm", {"x": (3, 4, 5), "weight": (3, 5)}, {"axis": (0, -1)}, label="axes"),
    Case("layer_norm", {"x": (3, 4)}, {"axis": None}, label="all"),
    Case("rms_norm", {"x": (3, 4, 5), "weight": (5,)}, {"weight_offset": 1.0}),
    Case("rms_norm", {"x": (3, 4, 5)}, {"axis": (1, 2)}, label="axes"),
    Case("normalize", {"x": (3, 4, 5)}),
    Case("normalize", {"x": (3, 4, 5)}, {"ord": 1, "axis": (0, 2)}, label="1"),
    Case("normalize", {"x": (3, 4, 5)}, {"ord": np.inf}, label="inf"),
    Case("batch_norm", AFFINE, TRAINING, VAR, label="training"),
    Case("batch_norm", AFFINE, {}, VAR, label="evaluation"),
    Case("batch_norm", AFFINE, TRAINING, label="mask"),
    Case("batch_norm", {"x": (3, 5, 2, 4), "weight": (4,)}, {"channel_axis": -1}, label="last"),
    Case("instance_norm", AFFINE),
    Case("instance_norm", AFFINE, {}, VAR, label="moving"),
    Case("instance_norm", AFFINE, {"use_input_stats": False}, VAR, label="evaluation"),
    Case("group_norm", AFFINE, {"num_groups": 2}),
    Case("group_norm", {"x": (3, 5, 4), "bias": (4,)}, {"num_groups": 2, "channel_axis": -1},
         label="last"),
    Case("batch_renorm", AFFINE, TRAINING, STD, label="training", double=False),
    Case("batch_renorm", AFFINE, {}, STD, label="evaluation", double=False),
    Case("batch_instance_norm", INSTANCE, TRAINING, VAR, label="training"),
    Case("batch_instance_norm", INSTANCE, {}, VAR, label="evaluation"),
    Case("switchable_norm", SWITCHABLE, TRAINING, VAR, label="training"),
    Case("switchable_norm", SWITCHABLE, {}, VAR, label="evaluation"),
    Case("switchable_norm", {"x": (3, 4), "mean_logits": (3,), "var_logits": (3,)}, TRAINING,
         label="no-space"),
    Case("mean_only_batch_norm", {"x": X, "bias": "C"}, TRAINING, {"running_mean": 0.0},
         label="training"),
    Case("mean_only_batch_norm", {"x": X, "bias": "C"}, TRAINING, label="mask"),
    Case("lp_batch_norm", AFFINE, {"p": 3.0, **TRAINING}, SCALE, double=False),
    Case("topk_batch_norm", AFFINE, {"k": 3, **TRAINING}, SCALE, double=False),
    Case("weight_norm", {"v": (4, 3, 2), "g": (4,)}),
    Case("weight_norm", {"v": (4, 3, 2), "g": (3,)}, {"axis": 1, "eps": 0.1}, label="axis"),
    Case("weight_norm", {"v": (4, 3), "g": ()}, {"axis": None}, label="whole"),
    Case("weight_norm", {"v": (4, 3), "g": (1,)}, label="one"),
    Case("divisive_norm", {"x": X, "weights": "CC+", "sigma": "C+"}, {"exponent": 3.0},
         double=False),
    Case("divisive_norm", {"x": X, "weights": "CC+", "sigma": "C+", "gain": "C"}, label="gain",
         double=False),
    Case("gdn", {"x": X, "beta": "C+", "gamma": "CC+"}, double=False),
    Case("gdn", {"x": X, "beta": "C+", "gamma": "CC+"}, {"inverse": True, "alpha": 1.0},
         label="inverse", double=False),
    Case("local_divisive_norm", {"x": X, "sigma": "C+", "weight": "C", "bias": "C"},
         {"summation_window": 3, "suppression_window": (3, 1)}, double=False),
    Case("local_response_norm", {"x": X}, {"size": 3, "alpha": 0.5}, double=False),
    Case("local_response_norm", {"x": X}, {"size": 3, "alpha": 0.5, "across": "space"},
         label="space", double=False),
]  # fmt: skip
