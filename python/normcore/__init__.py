"""normcore: the normalization methods of deep learning, forward and backward, for NumPy arrays."""

# What is public is named once, in the `__all__` of its module, in a form that type checkers read.
from . import config as _config
from . import convert, cuda
from . import reductions as _reductions
from ._core import __version__
from ._layer import StateDictError
from .config import *
from .methods import batch_instance_norm as _batch_instance_norm
from .methods import batch_norm as _batch_norm
from .methods import batch_renorm as _batch_renorm
from .methods import divisive_norm as _divisive_norm
from .methods import gdn as _gdn
from .methods import group_norm as _group_norm
from .methods import instance_norm as _instance_norm
from .methods import layer_norm as _layer_norm
from .methods import local_divisive_norm as _local_divisive_norm
from .methods import local_response_norm as _local_response_norm
from .methods import lp_batch_norm as _lp_batch_norm
from .methods import mean_only_batch_norm as _mean_only_batch_norm
from .methods import normalize as _normalize
from .methods import rms_norm as _rms_norm
from .methods import spectral_norm as _spectral_norm
from .methods import switchable_norm as _switchable_norm
from .methods import topk_batch_norm as _topk_batch_norm
from .methods import weight_norm as _weight_norm
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

__all__ = ["StateDictError", "__version__", "convert", "cuda"]
__all__ += _config.__all__
__all__ += _batch_instance_norm.__all__
__all__ += _batch_norm.__all__
__all__ += _batch_renorm.__all__
__all__ += _divisive_norm.__all__
__all__ += _gdn.__all__
__all__ += _group_norm.__all__
__all__ += _instance_norm.__all__
__all__ += _layer_norm.__all__
__all__ += _local_divisive_norm.__all__
__all__ += _local_response_norm.__all__
__all__ += _lp_batch_norm.__all__
__all__ += _mean_only_batch_norm.__all__
__all__ += _normalize.__all__
__all__ += _rms_norm.__all__
__all__ += _spectral_norm.__all__
__all__ += _switchable_norm.__all__
__all__ += _topk_batch_norm.__all__
__all__ += _weight_norm.__all__
__all__ += _reductions.__all__
