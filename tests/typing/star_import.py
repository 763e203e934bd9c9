"""What `import *` brings must be known to type checkers too, whichever module it is from."""

# ruff: noqa: F403, F405

from types import ModuleType

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type

from normcore import *

x: npt.NDArray[np.float32] = np.ones((4, 3, 5), np.float32)
assert_type(batch_norm(x), npt.NDArray[np.float32])
assert_type(TopKBatchNorm(3)(x), npt.NDArray[np.float32])
assert_type(get_num_threads(), int)
assert isinstance(moments(x), Moments)
of_modules: list[ModuleType] = [convert, cuda]
