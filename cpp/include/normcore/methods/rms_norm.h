// RMS normalization (Zhang and Sennrich 2019): the mean square per sample, without centring.
#pragma once

#include "normcore/methods/standardize.h"

namespace normcore {

struct RMSNorm : Standardize<Pool::sample, true> {};

}  // namespace normcore
