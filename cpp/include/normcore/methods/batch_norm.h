// Batch normalization (Ioffe and Szegedy 2015): statistics per channel, over batch and space.
#pragma once

#include "normcore/methods/standardize.h"

namespace normcore {

struct BatchNorm : Standardize<Pool::batch> {};

}  // namespace normcore
