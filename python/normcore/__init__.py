"""normcore: the normalization methods of deep learning, forward and backward, for NumPy arrays."""

from . import convert, cuda
from ._core import __version__
from .adaptive import (
    batch_instance_norm,
    batch_instance_norm_backward,
    batch_renorm,
    batch_renorm_backward,
    mean_only_batch_norm,
    mean_only_batch_norm_backward,
    switchable_norm,
    switchable_norm_backward,
)
from .adaptive_layers import (
    BatchInstanceNorm,
    BatchRenorm,
    LpBatchNorm,
    MeanOnlyBatchNorm,
    SwitchableNorm,
    TopKBatchNorm,
)
from .config import (
    available_isas,
    get_isa,
    get_num_threads,
    set_isa,
    set_num_threads,
    show_config,
)
from .divisive import divisive_norm, divisive_norm_backward, gdn, gdn_backward
from .divisive_layers import GDN, DivisiveNorm
from .functional import (
    batch_norm,
    batch_norm_backward,
    group_norm,
    group_norm_backward,
    instance_norm,
    instance_norm_backward,
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
)
from .layers import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from .local import (
    local_divisive_norm,
    local_divisive_norm_backward,
    local_response_norm,
    local_response_norm_backward,
)
from .local_layers import LocalDivisiveNorm, LocalResponseNorm
from .reductions import Moments, moments, norm
from .scaled import (
    lp_batch_norm,
    lp_batch_norm_backward,
    topk_batch_norm,
    topk_batch_norm_backward,
)
from .spectral import (
    PowerMethodResult,
    SpectralNormResult,
    power_method,
    spectral_norm,
    spectral_norm_backward,
)
from .spectral_layers import SpectralNorm
from .weight_layers import WeightNorm
from .weights import normalize, normalize_backward, weight_norm, weight_norm_backward

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
