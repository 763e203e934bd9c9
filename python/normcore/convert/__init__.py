"""State of other libraries' layers to ours and back.

A state is a dict of arrays by name, as ``layer.state_dict()`` gives and ``layer.load_state_dict``
takes. The functions return new dicts and copy no array that need not change. Arrays may come from
any library, and from ``numpy.load``, also bfloat16 ones.
"""

from ._files import load_safetensors, save_safetensors
from ._flax import from_flax, to_flax
from ._keras import from_keras, to_keras
from ._names import opposite_momentum
from ._repositories import (
    from_batch_instance_norm,
    from_compressai,
    from_switchable_norm,
    from_tfc,
    to_batch_instance_norm,
    to_compressai,
    to_switchable_norm,
    to_tfc,
)
from ._torch import from_torch, to_torch

__all__ = [
    "from_batch_instance_norm",
    "from_compressai",
    "from_flax",
    "from_keras",
    "from_switchable_norm",
    "from_tfc",
    "from_torch",
    "load_safetensors",
    "opposite_momentum",
    "save_safetensors",
    "to_batch_instance_norm",
    "to_compressai",
    "to_flax",
    "to_keras",
    "to_switchable_norm",
    "to_tfc",
    "to_torch",
]
