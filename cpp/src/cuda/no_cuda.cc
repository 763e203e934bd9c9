// The build without CUDA.
#include "normcore/context.h"

namespace normcore::cuda {

bool is_available() { return false; }

}  // namespace normcore::cuda
