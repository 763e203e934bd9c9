"""normcore: the normalization methods of deep learning, forward and backward, for NumPy arrays."""

import typing as _t
from types import ModuleType as _ModuleType

from . import convert as convert
from . import cuda as cuda
from ._core import __version__ as __version__
from ._layer import StateDictError as StateDictError
from .config import *

# A line for each method. What is public is named once, in the `__all__` of its module.
from .methods.batch_instance_norm import *
from .methods.batch_norm import *
from .methods.batch_renorm import *
from .methods.divisive_norm import *
from .methods.gdn import *
from .methods.group_norm import *
from .methods.instance_norm import *
from .methods.layer_norm import *
from .methods.local_divisive_norm import *
from .methods.local_response_norm import *
from .methods.lp_batch_norm import *
from .methods.mean_only_batch_norm import *
from .methods.normalize import *
from .methods.rms_norm import *
from .methods.spectral_norm import *
from .methods.switchable_norm import *
from .methods.topk_batch_norm import *
from .methods.weight_norm import *
from .reductions import *

if not _t.TYPE_CHECKING:
    # Type checkers take all names here that begin with no "_", and follow no list that is computed.
    __all__ = ["__version__", "convert", "cuda"]
    __all__ += [
        name
        for name, value in globals().items()
        if not name.startswith("_") and not isinstance(value, _ModuleType)
    ]
