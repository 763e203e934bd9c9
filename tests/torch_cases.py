"""Calls of every function of normcore.torch, with random arguments."""

from dataclasses import dataclass, field

import numpy as np
import torch

import normcore as nc
import normcore.torch as nt


@dataclass
class Case:
    """A call: the function's name, x and the parameters by position, and the keywords."""

    function: str
    x: tuple[int, ...]
    parameters: tuple = ()  # shapes, numbers, or functions of a generator
    options: dict = field(default_factory=dict)
    buffers: dict = field(default_factory=dict)  # of C values around these
    label: str = ""
    double: bool = True  # has derivatives of derivatives

    def __str__(self):
        return self.function + (f"-{self.label}" if self.label else "")

    @property
    def f(self):
        return getattr(nt, self.function)

    def make(self, rng, dtype=torch.float64, requires_grad=False):
        """(tensors, options): x and the parameters, and the keywords with new buffers."""

        def tensor(shape, low=None):
            values = rng.standard_normal(shape) if low is None else rng.uniform(low, low + 1, shape)
            t = torch.from_numpy(values).to(dtype)
            return t.requires_grad_() if requires_grad else t

        tensors = [tensor(self.x)]
        for p in self.parameters:
            if isinstance(p, str):  # "C+": positive numbers
                shape = {"C": (self.x[1],), "CC": (self.x[1],) * 2}[p.rstrip("+")]
                tensors.append(tensor(shape, 0.1 if p.endswith("+") else None))
            else:
                tensors.append(tensor(p) if isinstance(p, tuple) else p)
        options = dict(self.options)
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        for name, level in self.buffers.items():
            values = level + 0.3 * rng.uniform(size=self.x[1])
            options[name] = torch.from_numpy(values).to(exact)
        if "mask" in options:
            shape = [n for i, n in enumerate(self.x) if i != options.get("channel_axis", 1)]
            options["mask"] = torch.from_numpy(rng.random(shape) < 0.7)
        return tensors, options


NCHW = (3, 4, 5, 2)
VAR = {"running_mean": 0.0, "running_var": 0.8}
STD = {"running_mean": 0.0, "running_std": 0.8}
SCALE = {"running_mean": 0.0, "running_scale": 0.8}
TRAINING = {"training": True}

CASES = [
    Case("layer_norm", (3, 4, 5), ((5,), (5,))),
    Case("layer_norm", (3, 4, 5), ((3, 5), None), {"axis": (0, -1)}, label="axes"),
    Case("layer_norm", (3, 4), (None, None), {"axis": None}, label="all"),
    Case("rms_norm", (3, 4, 5), ((5,),), {"weight_offset": 1.0}),
    Case("rms_norm", (3, 4, 5), (None,), {"axis": (1, 2)}, label="axes"),
    Case("normalize", (3, 4, 5)),
    Case("normalize", (3, 4, 5), (), {"ord": 1, "axis": (0, 2)}, label="1"),
    Case("normalize", (3, 4, 5), (), {"ord": np.inf}, label="inf"),
    Case("batch_norm", NCHW, ("C", "C"), TRAINING, VAR, label="training"),
    Case("batch_norm", NCHW, ("C", "C"), {}, VAR, label="evaluation"),
    Case("batch_norm", NCHW, ("C", "C"), {"mask": True, **TRAINING}, label="mask"),
    Case("batch_norm", (3, 5, 2, 4), ((4,), None), {"channel_axis": -1}, label="last"),
    Case("instance_norm", NCHW, ("C", "C")),
    Case("instance_norm", NCHW, ("C", "C"), {"use_input_stats": False}, VAR, label="evaluation"),
    Case("group_norm", NCHW, (2, "C", "C")),
    Case("group_norm", (3, 5, 4), (2, None, (4,)), {"channel_axis": -1}, label="last"),
    Case("batch_renorm", NCHW, ("C", "C"), TRAINING, STD, label="training", double=False),
    Case("batch_renorm", NCHW, ("C", "C"), {}, STD, label="evaluation", double=False),
    Case("batch_instance_norm", NCHW, ("C+", "C", "C"), TRAINING, VAR, label="training"),
    Case("batch_instance_norm", NCHW, ("C+", "C", "C"), {}, VAR, label="evaluation"),
    Case("switchable_norm", NCHW, ((3,), (3,), "C", "C"), TRAINING, VAR, label="training"),
    Case("switchable_norm", NCHW, ((3,), (3,), "C", "C"), {}, VAR, label="evaluation"),
    Case("switchable_norm", (3, 4), ((3,), (3,)), TRAINING, label="no-space"),
    Case("mean_only_batch_norm", NCHW, ("C",), TRAINING, {"running_mean": 0.0}, label="training"),
    Case("mean_only_batch_norm", NCHW, ("C",), {"mask": True, **TRAINING}, label="mask"),
    Case("lp_batch_norm", NCHW, ("C", "C"), {"p": 3.0, **TRAINING}, SCALE, double=False),
    Case("topk_batch_norm", NCHW, ("C", "C"), {"k": 3, **TRAINING}, SCALE, double=False),
    Case("weight_norm", (4, 3, 2), ((4,),)),
    Case("weight_norm", (4, 3, 2), ((3,),), {"axis": 1, "eps": 0.1}, label="axis"),
    Case("weight_norm", (4, 3), ((),), {"axis": None}, label="whole"),
    Case("divisive_norm", NCHW, ("CC+", "C+"), {"exponent": 3.0}, double=False),
    Case("gdn", NCHW, ("C+", "CC+"), double=False),
    Case("gdn", NCHW, ("C+", "CC+"), {"inverse": True, "alpha": 1.0}, label="inverse",
         double=False),
    Case("local_divisive_norm", NCHW, ("C+", "C", "C"),
         {"summation_window": 3, "suppression_window": (3, 1)}, double=False),
    Case("local_response_norm", NCHW, (3,), {"alpha": 0.5}, double=False),
    Case("local_response_norm", NCHW, (3,), {"alpha": 0.5, "across": "space"}, label="space",
         double=False),
]  # fmt: skip


def on_arrays(case, tensors, options):
    """normcore's function and its gradient on arrays: y, and backward(dy) with the gradients."""

    def array(a):
        return a.detach().numpy() if isinstance(a, torch.Tensor) else a

    arguments = [array(a) for a in tensors]
    options = {k: array(v).copy() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    function = getattr(nc, case.function)
    backward = getattr(nc, case.function + "_backward")
    forward_only = ("momentum", "unbiased_running_var")
    kept = {k: v for k, v in options.items() if k not in forward_only}
    if case.function == "batch_renorm":
        y, stats = function(*arguments, **options, return_stats=True)
        kept["stats"] = stats
    else:
        kept = {k: np.copy(v) if isinstance(v, np.ndarray) else v for k, v in kept.items()}
        y = function(*arguments, **options)

    def gradients(dy):
        results = backward(array(dy), *arguments, **kept)
        return [results] if isinstance(results, np.ndarray) else list(results)

    return y, gradients, options
