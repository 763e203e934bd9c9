from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict

from ._interop import Array
from ._typing import A, Floats, SupportsDLPack

__version__: str

class Buffer:
    def __dlpack__(self, **kwargs: object) -> object: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    @property
    def stream(self) -> int: ...

class ValuesThere:
    def array_like(self, x: object) -> Any: ...
    def to_numpy(self) -> Array: ...
    def set(self, sum: object) -> None: ...

class Exchange:
    def __init__(
        self, sum: Callable[[memoryview], None], sum_there: Callable[[ValuesThere], None]
    ) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *args: object) -> None: ...

class Option(TypedDict):
    type: Literal["bool", "float", "int"]
    default: float
    least: float
    most: float
    above_in_training: bool
    infinite: bool

class Signature(TypedDict):
    function: str
    struct: str
    family: Literal["channels", "rows", "weights"]
    pools: list[Literal["instance", "batch", "sample", "group", "given"]]
    learns: str | None
    arguments: list[str]
    forward_only: list[str]
    inference: list[str]
    own: list[list[str]]
    affine: list[str]
    buffers: list[list[str]]
    options: dict[str, Option]
    statistics: list[str]
    gradients: list[str]
    has_mask: bool
    has_groups: bool
    has_residual: bool
    over_the_batch: bool
    always_given: bool

def methods() -> list[str]: ...
def signatures() -> dict[str, Signature]: ...
def get_isa() -> str: ...
def set_isa(name: str) -> None: ...
def available_isas() -> list[str]: ...
def get_num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def has_openmp() -> bool: ...
def compiler() -> str: ...
def cuda_is_built() -> bool: ...
def jax_handlers() -> dict[str, dict[str, object]]: ...
def define_torch_operators(cpu_library: str, cuda_library: str) -> None: ...
def cuda_is_available() -> bool: ...
def cuda_empty_cache() -> None: ...
def to_numpy(array: object, name: str, /) -> Array: ...
def copy(dst: SupportsDLPack, src: SupportsDLPack, stream: bool, /) -> None: ...
def convert(src: SupportsDLPack, dst: SupportsDLPack, /) -> None: ...

# Positional, in the order of the C++ functions. With return_stats the last of the results is the
# tuple (mean, rstd, pooled, given), None where the method has no such statistic.
# Written from here on by `python3 dev.py signatures`.
def batch_norm(
    x: A,
    weight: Floats | None,
    bias: Floats | None,
    running_mean: SupportsDLPack | None,
    running_var: SupportsDLPack | None,
    training: bool,
    momentum: float,
    eps: float,
    unbiased_running_var: bool,
    channel_axis: int,
    mask: Floats | None,
    out: A | None,
    return_stats: bool,
    /,
) -> A | tuple[A, tuple[A, A, Array, None]]: ...
def batch_norm_backward(
    dy: A,
    x: A,
    weight: Floats | None,
    bias: Floats | None,
    running_mean: SupportsDLPack | None,
    running_var: SupportsDLPack | None,
    training: bool,
    eps: float,
    channel_axis: int,
    mask: Floats | None,
    pooled: SupportsDLPack | None,
    out: A | None,
    /,
) -> tuple[A, A | None, A | None]: ...
def layer_norm(
    x: A,
    weight: Floats | None,
    bias: Floats | None,
    axis: int | Sequence[int] | None,
    eps: float,
    residual: A | None,
    out: A | None,
    return_stats: bool,
    /,
) -> (
    A | tuple[A, A] | tuple[A, tuple[A, A, Array, None]] | tuple[A, A, tuple[A, A, Array, None]]
): ...
def layer_norm_backward(
    dy: A,
    x: A,
    weight: Floats | None,
    bias: Floats | None,
    axis: int | Sequence[int] | None,
    eps: float,
    dh: A | None,
    pooled: SupportsDLPack | None,
    out: A | None,
    /,
) -> tuple[A, A | None, A | None]: ...
def rms_norm(
    x: A,
    weight: Floats | None,
    axis: int | Sequence[int] | None,
    eps: float,
    weight_offset: float,
    residual: A | None,
    out: A | None,
    return_stats: bool,
    /,
) -> (
    A
    | tuple[A, A]
    | tuple[A, tuple[None, A, Array, None]]
    | tuple[A, A, tuple[None, A, Array, None]]
): ...
def rms_norm_backward(
    dy: A,
    x: A,
    weight: Floats | None,
    axis: int | Sequence[int] | None,
    eps: float,
    weight_offset: float,
    dh: A | None,
    pooled: SupportsDLPack | None,
    out: A | None,
    /,
) -> tuple[A, A | None]: ...
def instance_norm(
    x: A,
    weight: Floats | None,
    bias: Floats | None,
    running_mean: SupportsDLPack | None,
    running_var: SupportsDLPack | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    unbiased_running_var: bool,
    channel_axis: int,
    out: A | None,
    return_stats: bool,
    /,
) -> A | tuple[A, tuple[A, A, Array, None]]: ...
def instance_norm_backward(
    dy: A,
    x: A,
    weight: Floats | None,
    bias: Floats | None,
    running_mean: SupportsDLPack | None,
    running_var: SupportsDLPack | None,
    use_input_stats: bool,
    eps: float,
    channel_axis: int,
    pooled: SupportsDLPack | None,
    out: A | None,
    /,
) -> tuple[A, A | None, A | None]: ...
def group_norm(
    x: A,
    num_groups: int,
    weight: Floats | None,
    bias: Floats | None,
    eps: float,
    channel_axis: int,
    out: A | None,
    return_stats: bool,
    /,
) -> A | tuple[A, tuple[A, A, Array, None]]: ...
def group_norm_backward(
    dy: A,
    x: A,
    num_groups: int,
    weight: Floats | None,
    bias: Floats | None,
    eps: float,
    channel_axis: int,
    pooled: SupportsDLPack | None,
    out: A | None,
    /,
) -> tuple[A, A | None, A | None]: ...
def batch_renorm(
    x: A,
    weight: Floats | None,
    bias: Floats | None,
    running_mean: SupportsDLPack | None,
    running_std: SupportsDLPack | None,
    training: bool,
    momentum: float,
    r_max: float,
    d_max: float,
    eps: float,
    channel_axis: int,
    mask: Floats | None,
    out: A | None,
    return_stats: bool,
    /,
) -> A | tuple[A, tuple[A, A, Array, Array | None]]: ...
def batch_renorm_backward(
    dy: A,
    x: A,
    weight: Floats | None,
    bias: Floats | None,
    running_mean: SupportsDLPack | None,
    running_std: SupportsDLPack | None,
    training: bool,
    r_max: float,
    d_max: float,
    eps: float,
    channel_axis: int,
    mask: Floats | None,
    pooled: SupportsDLPack | None,
    given: SupportsDLPack | None,
    out: A | None,
    /,
) -> tuple[A, A | None, A | None]: ...
def batch_instance_norm(
    x: A,
    rho: Floats,
    weight: Floats | None,
    bias: Floats | None,
    running_mean: SupportsDLPack | None,
    running_var: SupportsDLPack | None,
    training: bool,
    momentum: float,
    eps: float,
    unbiased_running_var: bool,
    channel_axis: int,
    out: A | None,
    return_stats: bool,
    /,
) -> A | tuple[A, tuple[None, None, Array, Array | None]]: ...
def batch_instance_norm_backward(
    dy: A,
    x: A,
    rho: Floats,
    weight: Floats | None,
    bias: Floats | None,
    running_mean: SupportsDLPack | None,
    running_var: SupportsDLPack | None,
    training: bool,
    eps: float,
    channel_axis: int,
    pooled: SupportsDLPack | None,
    given: SupportsDLPack | None,
    out: A | None,
    /,
) -> tuple[A, A, A | None, A | None]: ...
def switchable_norm(
    x: A,
    mean_logits: Floats,
    var_logits: Floats,
    weight: Floats | None,
    bias: Floats | None,
    running_mean: SupportsDLPack | None,
    running_var: SupportsDLPack | None,
    training: bool,
    momentum: float,
    eps: float,
    channel_axis: int,
    out: A | None,
    return_stats: bool,
    /,
) -> A | tuple[A, tuple[None, None, Array, Array | None]]: ...
def switchable_norm_backward(
    dy: A,
    x: A,
    mean_logits: Floats,
    var_logits: Floats,
    weight: Floats | None,
    bias: Floats | None,
    running_mean: SupportsDLPack | None,
    running_var: SupportsDLPack | None,
    training: bool,
    eps: float,
    channel_axis: int,
    pooled: SupportsDLPack | None,
    given: SupportsDLPack | None,
    out: A | None,
    /,
) -> tuple[A, A, A, A | None, A | None]: ...
def mean_only_batch_norm(
    x: A,
    bias: Floats | None,
    running_mean: SupportsDLPack | None,
    training: bool,
    momentum: float,
    channel_axis: int,
    mask: Floats | None,
    out: A | None,
    return_stats: bool,
    /,
) -> A | tuple[A, tuple[A, None, Array, None]]: ...
def mean_only_batch_norm_backward(
    dy: A,
    x: A,
    bias: Floats | None,
    running_mean: SupportsDLPack | None,
    training: bool,
    channel_axis: int,
    mask: Floats | None,
    pooled: SupportsDLPack | None,
    out: A | None,
    /,
) -> tuple[A, A | None]: ...
def weight_norm(
    v: A,
    g: Floats | float,
    axis: int | None,
    eps: float,
    out: A | None,
    /,
) -> A: ...
def weight_norm_backward(
    dw: A,
    v: A,
    g: Floats | float,
    axis: int | None,
    eps: float,
    out: A | None,
    /,
) -> tuple[A, A]: ...
def normalize(
    x: A,
    ord: float,
    axis: int | Sequence[int] | None,
    eps: float,
    out: A | None,
    /,
) -> A: ...
def normalize_backward(
    dy: A,
    x: A,
    ord: float,
    axis: int | Sequence[int] | None,
    eps: float,
    out: A | None,
    /,
) -> A: ...
def lp_batch_norm(
    x: A,
    weight: Floats | None,
    bias: Floats | None,
    p: float,
    running_mean: SupportsDLPack | None,
    running_scale: SupportsDLPack | None,
    training: bool,
    momentum: float,
    eps: float,
    channel_axis: int,
    out: A | None,
    return_stats: bool,
    /,
) -> A | tuple[A, tuple[A, A, Array, None]]: ...
def lp_batch_norm_backward(
    dy: A,
    x: A,
    weight: Floats | None,
    bias: Floats | None,
    p: float,
    running_mean: SupportsDLPack | None,
    running_scale: SupportsDLPack | None,
    training: bool,
    eps: float,
    channel_axis: int,
    pooled: SupportsDLPack | None,
    out: A | None,
    /,
) -> tuple[A, A | None, A | None]: ...
def topk_batch_norm(
    x: A,
    weight: Floats | None,
    bias: Floats | None,
    k: int,
    running_mean: SupportsDLPack | None,
    running_scale: SupportsDLPack | None,
    training: bool,
    momentum: float,
    eps: float,
    channel_axis: int,
    out: A | None,
    return_stats: bool,
    /,
) -> A | tuple[A, tuple[A, A, Array, None]]: ...
def topk_batch_norm_backward(
    dy: A,
    x: A,
    weight: Floats | None,
    bias: Floats | None,
    k: int,
    running_mean: SupportsDLPack | None,
    running_scale: SupportsDLPack | None,
    training: bool,
    eps: float,
    channel_axis: int,
    pooled: SupportsDLPack | None,
    out: A | None,
    /,
) -> tuple[A, A | None, A | None]: ...

# Up to here.
def divisive_norm(
    x: A,
    weights: Floats,
    sigma: Floats | float,
    gain: Floats | float | None,
    exponent: float,
    power: float,
    channel_axis: int,
    out: A | None,
    /,
) -> A: ...
def divisive_norm_backward(
    dy: A,
    x: A,
    weights: Floats,
    sigma: Floats | float,
    gain: Floats | float | None,
    exponent: float,
    power: float,
    channel_axis: int,
    out: A | None,
    /,
) -> tuple[A, A, A | float, A | float | None]: ...
def gdn(
    x: A,
    beta: Floats,
    gamma: Floats,
    inverse: bool,
    alpha: float,
    epsilon: float,
    channel_axis: int,
    out: A | None,
    /,
) -> A: ...
def gdn_backward(
    dy: A,
    x: A,
    beta: Floats,
    gamma: Floats,
    inverse: bool,
    alpha: float,
    epsilon: float,
    channel_axis: int,
    out: A | None,
    /,
) -> tuple[A, A, A, float, float]: ...
def local_response_norm(
    x: A,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    across: str,
    even_window: str,
    channel_axis: int,
    out: A | None,
    /,
) -> A: ...
def local_response_norm_backward(
    dy: A,
    x: A,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    across: str,
    even_window: str,
    channel_axis: int,
    out: A | None,
    /,
) -> A: ...
def local_divisive_norm(
    x: A,
    sigma: Floats | float,
    weight: Floats | None,
    bias: Floats | None,
    summation_window: int | Sequence[int],
    suppression_window: int | Sequence[int],
    channel_axis: int,
    out: A | None,
    /,
) -> A: ...
def local_divisive_norm_backward(
    dy: A,
    x: A,
    sigma: Floats | float,
    weight: Floats | None,
    bias: Floats | None,
    summation_window: int | Sequence[int],
    suppression_window: int | Sequence[int],
    channel_axis: int,
    out: A | None,
    /,
) -> tuple[A, A, A | None, A | None]: ...
def norm(
    x: A,
    ord: float,
    axis: int | Sequence[int] | None,
    keepdims: bool,
    /,
) -> A: ...
def moments(
    x: A,
    axis: int | Sequence[int] | None,
    mask: Floats | None,
    keepdims: bool,
    /,
) -> tuple[Array, Array, Array]: ...
def spectral_norm(
    weight: A,
    u: Floats,
    v: Floats | None,
    n_power_iterations: int,
    axis: int,
    eps: float,
    bound: float | None,
    u_first: bool,
    out: A | None,
    /,
) -> tuple[A, float, A, A]: ...
def spectral_norm_backward(
    dw: A,
    weight: A,
    sigma: float,
    u: Floats,
    v: Floats,
    axis: int,
    bound: float | None,
    out: A | None,
    /,
) -> A: ...
def power_method(
    a: A,
    u: Floats | None,
    n_iterations: int | None,
    tol: float,
    max_iterations: int,
    /,
) -> tuple[float, A, A, int, bool]: ...
