// Calls on the emulated device through the C++ API: where their scratch memory comes from.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "normcore/normcore.h"

namespace normcore {
namespace {

constexpr Index kSamples = 3, kChannels = 2, kSpace = 22001;  // beyond a cluster: two sweeps

struct Workspace {
  alignas(256) char bytes[1 << 16];
};

std::vector<float> normalized(const Context& context) {
  std::vector<float> x(kSamples * kChannels * kSpace), y(x.size(), -1);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = float(i * 7 % 31);
  batch_norm({x.data(), {kSamples, kChannels, kSpace}}, {}, {},
             {y.data(), {kSamples, kChannels, kSpace}}, {}, {}, context);
  return y;
}

TEST(CudaWorkspaces, ServeACallThatFits) {
  const std::vector<float> want = normalized({Device::kCuda});
  EXPECT_GT(emulation::allocations, 0);
  const int before = emulation::allocations;
  Workspace w;
  Context context{Device::kCuda};
  context.workspace = w.bytes;
  context.workspace_bytes = sizeof(w.bytes);
  EXPECT_EQ(normalized(context), want);
  EXPECT_EQ(emulation::allocations, before);
}

TEST(CudaWorkspaces, ThatAreTooSmallAreHelpedOut) {
  const std::vector<float> want = normalized({Device::kCuda});
  const int before = emulation::allocations;
  Workspace w;
  for (const std::size_t bytes : {std::size_t(0), std::size_t(300), std::size_t(1024)}) {
    Context context{Device::kCuda};
    context.workspace = w.bytes;
    context.workspace_bytes = bytes;
    w.bytes[bytes] = 'x';
    EXPECT_EQ(normalized(context), want);
    EXPECT_EQ(w.bytes[bytes], 'x');
  }
  EXPECT_GT(emulation::allocations, before);
}

TEST(CudaWorkspaces, AreAligned) {
  Workspace w;
  Context context{Device::kCuda};
  context.workspace = w.bytes + 8;
  context.workspace_bytes = 1024;
  EXPECT_THROW(normalized(context), std::invalid_argument);
}

TEST(CudaErrors, NameTheCallTheShapeAndTheDevice) {
  emulation::out_of_memory = true;
  std::string message;
  try {
    normalized({Device::kCuda});
  } catch (const device_error& e) {
    message = e.what();
  }
  emulation::out_of_memory = false;
  EXPECT_EQ(message,
            "batch_norm on float32 (3, 2, 22001), CUDA device 0: cudaMallocFromPoolAsync: out of "
            "memory");
}

TEST(CudaErrors, AnExchangeOfTheHostAloneIsRefusedBeforeAnythingIsWritten) {
  class OfTheHost final : public Exchange {
    void sum(double*, Index) override {}
  } exchange;
  std::vector<float> x{1, 2, 3, 4, 5, 6}, y(6, -1);
  Context context{Device::kCuda};
  context.exchange = &exchange;
  EXPECT_THROW(batch_norm({x.data(), {3, 2}}, {}, {}, {y.data(), {3, 2}}, {}, {}, context),
               value_error);
  EXPECT_EQ(y, std::vector<float>(6, -1));
}

}  // namespace
}  // namespace normcore
