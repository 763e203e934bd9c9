// Between which bounds a sum of squares has lost no term to overflow or to subnormals, by the type
// that it is summed in. Constants alone: the kernels of every instruction set include this.
#pragma once

namespace normcore {

template <class C>
inline constexpr C kLeastSafeSquares = sizeof(C) == 4 ? C(1e-25) : C(1e-250);
template <class C>
inline constexpr C kMostSafeSquares = sizeof(C) == 4 ? C(1e36) : C(1e300);

// How large a sum must be, for each of its products, to have lost nothing to subnormals that a
// double would show: 2^-150 (2^-1075) each.
template <class C>
inline constexpr double kLeastSafeProduct = sizeof(C) == 4 ? 0x1p-97 : 0x1p-1022;

}  // namespace normcore
