#include "cuda/pipeline.cuh"

namespace normcore::cuda {
#define NORMCORE_METHOD(name, type) NORMCORE_INSTANTIATE_ON(type, double)
#include "normcore/methods.def"
#undef NORMCORE_METHOD
}  // namespace normcore::cuda
