"""normcore in torch: functions with gradients and modules.

>>> import torch
>>> import normcore.torch as nt
>>> x = torch.tensor([[3.0, 4.0]], requires_grad=True)
>>> nt.rms_norm(x, eps=0.0).sum().backward()
>>> x.grad
tensor([[ 0.0453, -0.0339]])
"""

import importlib.util as _util

if _util.find_spec("torch") is None:
    raise ImportError(
        "normcore.torch needs torch 2.10 or later, which is not installed: "
        "pip install normcore[torch]"
    )

from . import _functions, _modules
from . import parametrizations as parametrizations
from ._functions import *
from ._modules import *

__all__ = [*_functions.__all__, *_modules.__all__, "parametrizations"]
