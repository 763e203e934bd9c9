// Group normalization (Wu and He 2018): statistics per sample and group of channels.
#pragma once

#include "normcore/methods/standardize.h"

namespace normcore {

struct GroupNorm : Standardize<Pool::group> {};

}  // namespace normcore
