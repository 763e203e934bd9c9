// What a call on the CPU does, for who asks.
#pragma once

#include "plan/plan.h"

namespace normcore {

// One line on standard error where NORMCORE_VERBOSE=1 asks for it.
void explain(const char* op, const Plan& plan, int threads);

}  // namespace normcore
