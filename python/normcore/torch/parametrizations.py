"""Weight norm and spectral norm as parametrizations of a module's weight.

They are those of ``torch.nn.utils.parametrizations``, with the same keys in ``state_dict``, and
computed by normcore: zero rows and a zero matrix give zeros, and no norm overflows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from . import _autograd
from . import _functions as f

__all__ = ["spectral_norm", "weight_norm"]


class _WeightNorm(parametrizations._WeightNorm):
    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        whole = self.dim is None or self.dim == -1  # as torch has it
        return f.weight_norm(weight_v, weight_g, axis=None if whole else self.dim)


class _SpectralNorm(parametrizations._SpectralNorm):
    def forward(self, weight: Tensor) -> Tensor:
        if weight.dim() == 1:
            return f.normalize(weight, eps=self.eps)
        n = self.n_power_iterations if self.training else 0
        # Its iterations begin with u, from v, and the vectors are float32 for 16 bits.
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        w, _, u, v = _autograd.spectral_norm(
            weight, self._u.to(wide), self._v.to(wide), n, self.dim, self.eps, None, True
        )
        if n > 0:
            with torch.no_grad():
                self._u.copy_(u)
                self._v.copy_(v)
        return w


def weight_norm(module: nn.Module, name: str = "weight", dim: int | None = 0) -> nn.Module:
    """``torch.nn.utils.parametrizations.weight_norm`` by :func:`normcore.torch.weight_norm`."""
    parametrizations.weight_norm(module, name, -1 if dim is None else dim)
    return _taken_over(module, name, _WeightNorm)


def spectral_norm(
    module: nn.Module,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
) -> nn.Module:
    """``torch.nn.utils.parametrizations.spectral_norm`` by
    :func:`normcore.torch.spectral_norm`."""
    parametrizations.spectral_norm(module, name, n_power_iterations, eps, dim)
    return _taken_over(module, name, _SpectralNorm)


def _taken_over(module: Any, name: str, kind: type[nn.Module]) -> nn.Module:
    module.parametrizations[name][-1].__class__ = kind
    return module
