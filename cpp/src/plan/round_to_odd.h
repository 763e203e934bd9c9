// On the way from double to 16 bits there is float: rounded twice, a number may end an ulp from
// where once would have put it.
#pragma once

#include <bit>
#include <cstdint>

#include "normcore/export.h"

namespace normcore {

// A float that rounds to 16 bits as v itself would. What is no float becomes its neighbour toward
// zero with the last bit set, which no rounding takes for a tie (round to odd: Boldo, Melquiond
// 2005).
NORMCORE_HD inline float round_to_odd(double v) {
  const float near = float(v);
  if (double(near) == v || v != v) return near;
  const bool beyond = (double(near) < 0 ? -double(near) : double(near)) > (v < 0 ? -v : v);
  return std::bit_cast<float>((std::bit_cast<std::uint32_t>(near) - beyond) | 1u);
}

}  // namespace normcore
