// Instance normalization (Ulyanov et al. 2016): statistics per sample and channel, over space.
#pragma once

#include "normcore/methods/standardize.h"

namespace normcore {

struct InstanceNorm : Standardize<Pool::instance> {};

}  // namespace normcore
