"""Reductions over any axes: norms, and moments that can be merged.

The rules of :mod:`normcore.methods` hold here too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ._core import moments as _moments
from ._core import norm as _norm
from ._interop import library_of

__all__ = ["Moments", "moments", "norm"]


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations of disjoint parts of some data.

    ``a + b``, ``sum`` and :meth:`merge` give the moments of the parts together::

        n = n_a + n_b,  d = mean_b - mean_a
        mean = mean_a + d * n_b / n,  m2 = m2_a + m2_b + d**2 * n_a * n_b / n

    Nothing cancels, so that large means cost no digits. Counts may differ from part to part and
    from entry to entry; where a count is 0 the other part is returned to the last bit. The order of
    merging changes no more than the last digits, and a fixed order always gives the same bits.

    The fields are float64, whatever the dtype of the data, since narrower ones would not merge
    exactly: of NumPy (arrays, or scalars where all axes were reduced), or, of data on a device, of
    the data's library there, where merging does not wait for the device. Instances can be pickled
    and sent to other processes.

    References
    ----------
    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979; "Algorithms for computing the sample variance: analysis and recommendations",
    1983.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0, 2.0], [3.0, 4.0], [8.0, 0.0]])
    >>> both = nc.moments(x[:2], axis=0) + nc.moments(x[2:], axis=0)
    >>> both.mean, both.var(correction=1)
    (array([4., 2.]), array([13.,  4.]))
    """

    #: Number of elements that each mean is of.
    count: Any  # the method of tuples is not missed
    mean: Any
    #: Sum of the squared deviations from the mean.
    m2: Any

    def var(self, correction: float = 0) -> Any:
        """Return ``m2 / (count - correction)``; NaN where the count is not above ``correction``.

        ``correction=1`` gives the unbiased variance. Of weights, ``count`` is their sum: that is
        right where they say how often a value was seen.
        """
        xp, count = self._namespace(), self._counts()
        left = count - correction
        return self.m2 / xp.where(left > 0, left, np.nan)

    def std(self, correction: float = 0) -> Any:
        """Return the square root of :meth:`var`."""
        return self._namespace().sqrt(self.var(correction))

    def _namespace(self) -> Any:
        """Return the module that has the functions of the fields' library."""
        namespace = getattr(self.mean, "__array_namespace__", None)
        if namespace is not None:
            return namespace()
        library = library_of(self.mean)
        return sys.modules[library] if library in ("torch", "cupy") else np

    def _counts(self) -> Any:
        """Return the count as an array of float64 of the fields' library."""
        xp = self._namespace()
        if xp is np or not hasattr(xp, "zeros_like"):
            return np.asarray(self.count, np.float64)
        return xp.zeros_like(self.mean) + self.count

    def __add__(self, other: Moments) -> Moments:  # type: ignore[override]
        if not isinstance(other, Moments):
            return NotImplemented
        if np.shape(self.mean) != np.shape(other.mean):
            raise ValueError(
                f"moments have means of shape {np.shape(self.mean)} and {np.shape(other.mean)}, "
                "expected the same shape"
            )
        xp, left, right = self._namespace(), self._counts(), other._counts()
        if xp is not other._namespace():
            raise ValueError(
                f"moments are of {library_of(self.mean)} and of {library_of(other.mean)}, expected "
                "arrays of one library"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # infinities are the data's own
            count = left + right
            share = right / xp.where(count > 0, count, 1.0)
            delta = xp.where((left > 0) & (right > 0), other.mean - self.mean, 0.0)
            m2 = self.m2 + other.m2 + delta * (delta * share) * left
            mean = xp.where(left > 0, self.mean + delta * share, other.mean)
        return Moments(plain(count), plain(mean), plain(m2))

    def __radd__(self, other: object) -> Moments:
        # What `sum` starts from.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    @classmethod
    def merge(cls, parts: Iterable[Moments]) -> Moments:
        """Return the moments of all parts together, merged from the first to the last.

        Raises
        ------
        ValueError
            For no parts at all, or means of different shapes.
        TypeError
            For anything but :class:`Moments`.
        """
        result = None
        for part in parts:
            if not isinstance(part, Moments):
                raise TypeError(f"parts has a {type(part).__name__}, expected Moments")
            result = part if result is None else result + part
        if result is None:
            raise ValueError("parts is empty, expected at least one Moments")
        return result


def moments(
    x: Any,
    *,
    axis: int | Sequence[int] | None = None,
    mask: Any = None,
    keepdims: bool = False,
) -> Moments:
    """Count, mean and sum of squared deviations over the given axes.

    ``mean = sum(x) / count`` and ``m2 = sum((x - mean)**2)``, computed as the statistics of
    :func:`layer_norm` are: around a mean of the data, in float32 or better by short runs, which are
    merged in float64. A large mean costs no digits but those that ``x`` itself lost,
    up to float32; float64 is for magnitudes from 1e-150 to 1e150.

    Parameters
    ----------
    x : array of any shape
    axis : int or sequence of int, optional
        Axes that are reduced, in any order; all of them when omitted.
    mask : array, optional
        How much each element counts, bools or weights >= 0, broadcastable to ``x``: ``count =
        sum(mask)``, ``mean = sum(mask * x) / count`` and ``m2 = sum(mask * (x - mean)**2)``. What
        does not count may hold anything, also NaN. For an ``x`` on a device it lies there, and
        nobody looks at its values: what is not above 0 does not count.
    keepdims : bool
        Whether reduced axes stay, with size 1.

    Returns
    -------
    Moments
        ``count``, ``mean`` and ``m2``, each of the reduced shape, float64, to be merged with the
        moments of other data: of NumPy, or for an ``x`` on a device of its library there. Where
        nothing counts all three are 0.

    Raises
    ------
    TypeError
        For a dtype that is no float.
    ValueError
        For axes out of range or named twice, or a mask with negative or infinite weights.

    References
    ----------
    Chan, Golub and LeVeque, "Algorithms for computing the sample variance: analysis and
    recommendations", 1983.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> nc.moments(np.array([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]]), axis=1)
    Moments(count=array([3., 3.]), mean=array([2., 4.]), m2=array([2., 0.]))
    """
    return Moments(*(plain(field) for field in _moments(x, axis, mask, keepdims)))


def norm(
    x: Any,
    *,
    ord: float = 2,
    axis: int | Sequence[int] | None = None,
    keepdims: bool = False,
) -> Any:
    """Return the norm over the given axes: the length of x as a vector.

    ``sqrt(sum(x**2))``, ``sum(abs(x))`` or ``max(abs(x))``; no square overflows or underflows. It
    is the norm that :func:`normalize` divides by.

    Parameters
    ----------
    x : array of any shape
    ord : {2, 1, inf}
        The order of the norm.
    axis : int or sequence of int, optional
        Axes over which the norm is taken, in any order; all of them when omitted.
    keepdims : bool
        Whether reduced axes stay, with size 1.

    Returns
    -------
    array or scalar
        Of the reduced shape; float32, float64 for float64 ``x``, since sums soon leave the range of
        float16. Of no elements it is 0. NaN where ``x`` has a NaN, else infinite where ``x`` is.

    Raises
    ------
    TypeError
        For a dtype that is no float.
    ValueError
        For another order, or axes out of range or named twice.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> nc.norm(np.array([[3.0, 4.0], [5.0, 12.0]]), axis=1)
    array([ 5., 13.])
    """
    return plain(_norm(x, ord, axis, keepdims))


def plain(result: Any) -> Any:
    """Return a NumPy array without axes as a scalar, as NumPy's reductions do."""
    return result[()] if isinstance(result, np.ndarray) and result.ndim == 0 else result
