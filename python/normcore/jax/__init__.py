"""normcore in JAX: functions for jit, vmap and grad.

>>> import jax, jax.numpy as jnp
>>> import normcore.jax as nj
>>> x = jnp.array([[3.0, 4.0]])
>>> print(jax.grad(lambda x: nj.rms_norm(x, eps=0.0).sum())(x).round(4))
[[ 0.0453 -0.0339]]
"""

import importlib.util as _util

if _util.find_spec("jax") is None:
    raise ImportError(
        "normcore.jax needs jax 0.6.1 or later, which is not installed: pip install normcore[jax]"
    )

from . import _functions
from ._functions import *

__all__ = [*_functions.__all__]
