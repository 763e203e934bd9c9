// Whatever a method may declare, the CPU's pipeline computes: see contract.h.
#include "contract.h"

#include "cpu/backend.h"

namespace normcore {
namespace {

struct OnCpu {
  template <class Method>
  static void forward(const Plan& plan, const ForwardArgs<float>& args,
                      const typename Method::Params& params) {
    const cpu::Backend<float> backend(plan, DType::kFloat32, 2);
    Forward<Method, cpu::Backend<float>>(backend, args, params).run();
  }
  template <class Method>
  static void backward(const Plan& plan, const BackwardArgs<float>& args,
                       const typename Method::Params& params) {
    const cpu::Backend<float> backend(plan, DType::kFloat32, 2);
    Backward<Method, cpu::Backend<float>>(backend, args, params).run();
  }
};

class Contract : public ::testing::TestWithParam<testing::Shape> {};

TEST_P(Contract, HoldsForMethodsWithParametersOfTheirOwn) {
  testing::check_contracts<OnCpu>(GetParam());
}
INSTANTIATE_TEST_SUITE_P(Shapes, Contract, ::testing::ValuesIn(testing::kContractShapes));

}  // namespace
}  // namespace normcore
