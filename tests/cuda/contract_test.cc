// Whatever a method may declare, the device's kernels compute, in registers and in two sweeps: see
// contract.h.
#include "contract.h"

#include "cuda/pipeline.cuh"

namespace normcore {
namespace {

struct OnDevice {
  static cuda::DeviceMemory& of_device(CallMemory& memory) {
    return static_cast<cuda::DeviceMemory&>(memory.get());
  }
  template <class Method>
  static void forward(const Plan& plan, const ForwardArgs<float>& args,
                      const typename Method::Params& params) {
    CallMemory memory(Context{Device::kCuda});
    cuda::forward_on<Method, float>(plan, of_device(memory), params, args);
  }
  template <class Method>
  static void backward(const Plan& plan, const BackwardArgs<float>& args,
                       const typename Method::Params& params) {
    CallMemory memory(Context{Device::kCuda});
    cuda::backward_on<Method, float>(plan, of_device(memory), params, args);
  }
};

class CudaContract : public ::testing::TestWithParam<testing::Shape> {};

TEST_P(CudaContract, HoldsForMethodsWithParametersOfTheirOwn) {
  testing::check_contracts<OnDevice>(GetParam());
}
INSTANTIATE_TEST_SUITE_P(Shapes, CudaContract, ::testing::ValuesIn(testing::kContractShapes));

}  // namespace
}  // namespace normcore
