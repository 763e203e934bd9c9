// Loops that take a range in steps: bands, strips, tiles, pieces. The last step is clipped here, so
// that no loop's body can reach past the end, and an empty range has no steps.
#pragma once

#include <algorithm>
#include <type_traits>

#include "normcore/dtype.h"

namespace normcore {

// f(begin, end) for [first, last) in steps. Where f gives a bool, false ends the loop, and its
// result is whether all steps were done.
template <class F>
auto for_steps(Index first, Index last, Index step, F&& f) {
  if constexpr (std::is_same_v<decltype(f(first, last)), bool>) {
    for (Index begin = first; begin < last; begin += step) {
      if (!f(begin, std::min(begin + step, last))) return false;
    }
    return true;
  } else {
    for (Index begin = first; begin < last; begin += step) f(begin, std::min(begin + step, last));
  }
}

}  // namespace normcore
