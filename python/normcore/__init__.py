"""normcore: the normalization methods of deep learning, forward and backward, for NumPy arrays."""

from . import convert, cuda
from ._core import __version__
from .config import available_isas, get_isa, get_num_threads, set_isa, set_num_threads, show_config
from .methods.batch_instance_norm import (
    BatchInstanceNorm,
    batch_instance_norm,
    batch_instance_norm_backward,
)
from .methods.batch_norm import BatchNorm, batch_norm, batch_norm_backward
from .methods.batch_renorm import BatchRenorm, batch_renorm, batch_renorm_backward
from .methods.divisive_norm import DivisiveNorm, divisive_norm, divisive_norm_backward
from .methods.gdn import GDN, gdn, gdn_backward
from .methods.group_norm import GroupNorm, group_norm, group_norm_backward
from .methods.instance_norm import InstanceNorm, instance_norm, instance_norm_backward
from .methods.layer_norm import LayerNorm, layer_norm, layer_norm_backward
from .methods.local_divisive_norm import (
    LocalDivisiveNorm,
    local_divisive_norm,
    local_divisive_norm_backward,
)
from .methods.local_response_norm import (
    LocalResponseNorm,
    local_response_norm,
    local_response_norm_backward,
)
from .methods.lp_batch_norm import LpBatchNorm, lp_batch_norm, lp_batch_norm_backward
from .methods.mean_only_batch_norm import (
    MeanOnlyBatchNorm,
    mean_only_batch_norm,
    mean_only_batch_norm_backward,
)
from .methods.normalize import normalize, normalize_backward
from .methods.rms_norm import RMSNorm, rms_norm, rms_norm_backward
from .methods.spectral_norm import (
    PowerMethodResult,
    SpectralNorm,
    SpectralNormResult,
    power_method,
    spectral_norm,
    spectral_norm_backward,
)
from .methods.switchable_norm import SwitchableNorm, switchable_norm, switchable_norm_backward
from .methods.topk_batch_norm import TopKBatchNorm, topk_batch_norm, topk_batch_norm_backward
from .methods.weight_norm import WeightNorm, weight_norm, weight_norm_backward
from .reductions import Moments, moments, norm

__all__ = [
    "GDN",
    "BatchInstanceNorm",
    "BatchNorm",
    "BatchRenorm",
    "DivisiveNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "LocalDivisiveNorm",
    "LocalResponseNorm",
    "LpBatchNorm",
    "MeanOnlyBatchNorm",
    "Moments",
    "PowerMethodResult",
    "RMSNorm",
    "SpectralNorm",
    "SpectralNormResult",
    "SwitchableNorm",
    "TopKBatchNorm",
    "WeightNorm",
    "__version__",
    "available_isas",
    "batch_instance_norm",
    "batch_instance_norm_backward",
    "batch_norm",
    "batch_norm_backward",
    "batch_renorm",
    "batch_renorm_backward",
    "convert",
    "cuda",
    "divisive_norm",
    "divisive_norm_backward",
    "gdn",
    "gdn_backward",
    "get_isa",
    "get_num_threads",
    "group_norm",
    "group_norm_backward",
    "instance_norm",
    "instance_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "local_divisive_norm",
    "local_divisive_norm_backward",
    "local_response_norm",
    "local_response_norm_backward",
    "lp_batch_norm",
    "lp_batch_norm_backward",
    "mean_only_batch_norm",
    "mean_only_batch_norm_backward",
    "moments",
    "norm",
    "normalize",
    "normalize_backward",
    "power_method",
    "rms_norm",
    "rms_norm_backward",
    "set_isa",
    "set_num_threads",
    "show_config",
    "spectral_norm",
    "spectral_norm_backward",
    "switchable_norm",
    "switchable_norm_backward",
    "topk_batch_norm",
    "topk_batch_norm_backward",
    "weight_norm",
    "weight_norm_backward",
]
