// Layer normalization (Ba, Kiros and Hinton 2016): statistics per sample, over its features.
#pragma once

#include "normcore/methods/standardize.h"

namespace normcore {

struct LayerNorm : Standardize<Pool::sample> {};

}  // namespace normcore
