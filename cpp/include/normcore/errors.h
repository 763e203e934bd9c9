// Errors of arguments are found before any output is written. Both kinds are std::invalid_argument;
// Python sees a TypeError and a ValueError.
#pragma once

#include <stdexcept>

#include "normcore/export.h"

namespace normcore {

class NORMCORE_API value_error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// The element type or the kind of an argument is not one that the call takes.
class NORMCORE_API type_error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// A call of the CUDA runtime failed. Python sees a RuntimeError. Outputs may be incomplete.
class NORMCORE_API device_error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace normcore
