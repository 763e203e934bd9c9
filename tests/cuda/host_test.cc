// What the host does around the kernels: memory, streams, the current device, errors. The emulated
// runtime says what it was asked for; it does everything at once, so that nothing here waits.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "cuda/device_buffer.h"
#include "cuda/launch.h"
#include "normcore/normcore.h"
#include "support.h"

namespace normcore::cuda {
namespace {

// Every test has devices of its own, since what is found out about one is kept.
enum DeviceOf {
  kDropped = 10,
  kGathered,
  kDuringCapture,
  kWithoutPools,
  kGuarded,
  kOther,
  kShort,
  kEight,
  kTwelve,
  kRefusing,
  kRefusingAll,
  kRefusingFour,
  kStreams,
  kKept
};

void* stream(std::uintptr_t number) { return reinterpret_cast<void*>(number); }
Context on(int device, std::uintptr_t number = 0) {
  Context c{Device::kCuda, device};
  c.stream = stream(number);
  return c;
}
std::string call(const char* name, int device, std::uintptr_t argument = 0) {
  return std::string(name) + " " + std::to_string(device) + " " + std::to_string(argument);
}
using Calls = std::vector<std::string>;

class CudaHost : public ::testing::Test {
 protected:
  void SetUp() override { emulation::host = {}; }
  void TearDown() override { emulation::host = {}; }

  // What empty_cache asks of one of the devices that there are by now.
  Calls emptied(int device) {
    Calls all = calls([] { empty_cache(); });
    std::erase_if(all, [&](const std::string& c) {
      return c.starts_with("cudaSetDevice") || c.find(' ' + std::to_string(device) + ' ') == c.npos;
    });
    return all;
  }
  // What f asks the runtime for.
  template <class F>
  Calls calls(F&& f) {
    emulation::host.calls.clear();
    emulation::host.record = true;
    f();
    emulation::host.record = false;
    return emulation::host.calls;
  }
};

TEST_F(CudaHost, DroppingAResultAsksNothingOfTheDevice) {
  auto memory = allocate_shared(100, on(kDropped, 7));
  const auto address = reinterpret_cast<std::uintptr_t>(memory.get());
  EXPECT_EQ(calls([&] { memory.reset(); }), Calls{});
  const Calls want{call("cudaDeviceSynchronize", kDropped), call("cudaFree", kDropped, address),
                   call("cudaMemPoolTrimTo", kDropped)};
  EXPECT_EQ(emptied(kDropped), want);
  // Nothing is freed twice.
  const Calls again{want[0], want[2]};
  EXPECT_EQ(emptied(kDropped), again);
}

TEST_F(CudaHost, ResultsThatGatherAreFreedAfterTheDeviceHasPassedThem) {
  emulation::host.device = kGathered;  // of 1 MiB: a sixteenth may gather
  const auto take = [] { allocate_shared(40000, on(kGathered)); };
  const auto waits = [&] {
    int n = 0;
    for (const std::string& c : calls(take)) n += c == call("cudaDeviceSynchronize", kGathered);
    return n;
  };
  EXPECT_EQ(waits(), 0);
  EXPECT_EQ(waits(), 0);
  EXPECT_EQ(waits(), 1);
  EXPECT_EQ(waits(), 0);
}

TEST_F(CudaHost, NothingIsFreedWhereTheDeviceCannotBeWaitedFor) {
  auto memory = allocate_shared(8, on(kDuringCapture));
  const auto freed =
      call("cudaFree", kDuringCapture, reinterpret_cast<std::uintptr_t>(memory.get()));
  memory.reset();
  emulation::host.capturing = stream(3);
  EXPECT_EQ(emptied(kDuringCapture), Calls{call("cudaDeviceSynchronize", kDuringCapture)});
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  emulation::host.capturing = nullptr;
  const Calls after = emptied(kDuringCapture);
  ASSERT_EQ(after.size(), 3u);
  EXPECT_EQ(after[1], freed);
}

TEST_F(CudaHost, AResultIsNotAllocatedOnAStreamThatIsCaptured) {
  emulation::host.capturing = stream(3);
  EXPECT_THROW(allocate_shared(8, on(kDuringCapture, 3)), value_error);
  EXPECT_NE(allocate_shared(8, on(kDuringCapture, 4)), nullptr);
}

std::vector<float> normalized(const Context& context) {
  constexpr Index kSamples = 3, kChannels = 2, kSpace = 22001;  // two sweeps, which need scratch
  std::vector<float> x(kSamples * kChannels * kSpace), y(x.size(), -1);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = float(i * 7 % 31);
  batch_norm({x.data(), {kSamples, kChannels, kSpace}}, {}, {},
             {y.data(), {kSamples, kChannels, kSpace}}, {}, {}, context);
  return y;
}

TEST_F(CudaHost, DevicesWithoutPoolsAllocateInTheOldWay) {
  const std::vector<float> want = normalized(on(0));
  emulation::host.pools = false;
  int taken = 0, freed = 0;
  const Calls all = calls([&] { EXPECT_EQ(normalized(on(kWithoutPools)), want); });
  for (const std::string& c : all) {
    taken += c.starts_with("cudaMalloc ");
    freed += c.starts_with("cudaFree ");
    EXPECT_FALSE(c.starts_with("cudaMallocFromPoolAsync") || c.starts_with("cudaFreeAsync")) << c;
  }
  EXPECT_GT(taken, 0);
  EXPECT_EQ(freed, taken);
  EXPECT_EQ(calls([] { allocate_shared(8, on(kWithoutPools)); })[1],
            call("cudaMalloc", kWithoutPools));
}

TEST_F(CudaHost, ScratchIsGivenBackOnTheStreamOfTheCall) {
  int taken = 0, freed = 0;
  for (const std::string& c : calls([] { normalized(on(0, 5)); })) {
    taken += c == call("cudaMallocFromPoolAsync", 0, 5);
    freed += c == call("cudaFreeAsync", 0, 5);
  }
  EXPECT_GT(taken, 0);
  EXPECT_EQ(freed, taken);
}

TEST_F(CudaHost, TheCurrentDeviceIsSetOnlyWhereItIsAnother) {
  facts_of(kGuarded);
  emulation::host.device = kGuarded;
  EXPECT_EQ(calls([] { const DeviceGuard guard(kGuarded); }), Calls{});
  const Calls want{call("cudaSetDevice", kOther), call("cudaSetDevice", kGuarded)};
  EXPECT_EQ(calls([] { const DeviceGuard guard(kOther); }), want);
  // A result of another device than the current one, and its end.
  EXPECT_EQ(calls([] { allocate_shared(8, on(kGuarded)); }),
            Calls{call("cudaMallocFromPoolAsync", kGuarded)});
}

TEST_F(CudaHost, AShortageGivesBackWhatIsUnusedBeforeItIsAnError) {
  emulation::host.device = kShort;
  allocate_shared(8, on(kShort));
  emulation::out_of_memory = true;
  const Calls all = calls([] { EXPECT_THROW(allocate(8, kShort, nullptr), device_error); });
  emulation::out_of_memory = false;
  ASSERT_EQ(all.size(), 5u);
  EXPECT_EQ(all[1], call("cudaDeviceSynchronize", kShort));
  EXPECT_TRUE(all[2].starts_with("cudaFree "));
  EXPECT_EQ(all[4], all[0]);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "left for the caller's own calls to find";
}

TEST_F(CudaHost, ClustersAreAsLargeAsTheDeviceRuns) {
  emulation::host.largest_cluster = 8;
  EXPECT_EQ(facts_of(kEight).most_cluster, 8);
  emulation::host.largest_cluster = 12;
  EXPECT_EQ(facts_of(kTwelve).most_cluster, 8);
  emulation::host.largest_cluster = 0;
  EXPECT_EQ(facts_of(kRefusing).most_cluster, 1);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(facts_of(0).most_cluster, 16);
}

void nothing() {}

TEST_F(CudaHost, SharedMemoryThatAKernelMayTakeDoesNotShrink) {
  const Launch large{1, 32, 100 << 10}, small{1, 32, 60 << 10};
  EXPECT_THROW(launch(large, nullptr, nothing), std::runtime_error) << "it has not asked";
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  for (const Launch& l : {large, small, large}) EXPECT_GT(resident_clusters(nothing, l, 0), 0);
  launch(large, nullptr, nothing);
}

// A large row, a large channel and a long vector, each for a cluster: two at least of the first
// two, eight of the last.
std::vector<double> results_of_clusters(int device) {
  constexpr Index kLong = 20000;
  using testing::Array;
  testing::Random random(1);
  const DType dtype = DType::kFloat32;
  const Array x(dtype, {1, kLong}), dy(dtype, {1, kLong}), weight(dtype, {kLong});
  for (const Array* a : {&x, &dy, &weight}) const_cast<Array*>(a)->fill(random, 1, 0.2);
  const Array y(dtype, {1, kLong}), dx(dtype, {1, kLong}), z(dtype, {1, kLong});
  const Array dz(dtype, {1, kLong}), u(dtype, {1}), v(dtype, {kLong});
  const Context there = on(device);
  layer_norm(x.tensor(), weight.tensor(), {}, y.tensor(), {}, {}, there);
  layer_norm_backward(dy.tensor(), x.tensor(), weight.tensor(), {dx.tensor(), {}, {}}, {}, {}, {},
                      there);
  auto image = [](const Array& a) {
    return Tensor(static_cast<float*>(a.tensor().data()), {1, 1, kLong});
  };
  instance_norm(image(x), {}, {}, image(z), {}, {}, there);
  instance_norm_backward(image(dy), image(x), {}, {image(dz), {}, {}}, {}, {}, there);
  power_method(x.tensor(), {}, u.tensor(), v.tensor(), {2}, there);
  std::vector<double> all;
  for (const Array* a : {&y, &dx, &z, &dz, &v}) {
    const auto* values = static_cast<const float*>(a->tensor().data());
    all.insert(all.end(), values, values + kLong);
  }
  return all;
}

TEST_F(CudaHost, ClustersThatHaveNoRoomAreNotLaunched) {
  const std::vector<double> want = results_of_clusters(0);
  for (const int device : {kRefusingAll, kRefusingFour}) {
    emulation::host.refused_cluster = device == kRefusingAll ? 2 : 4;
    const std::vector<double> got = results_of_clusters(device);
    // Other sums: a rounding of each of float32's.
    for (std::size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], 2e-6) << i;
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  }
}

TEST_F(CudaHost, StreamsAreOrderedWhereTheyDiffer) {
  emulation::host.device = kStreams;
  EXPECT_EQ(calls([] { order_streams(on(kStreams, 4), on(kStreams, 4)); }), Calls{});
  const Calls want{call("cudaEventRecord", kStreams, 4), call("cudaStreamWaitEvent", kStreams, 5)};
  EXPECT_EQ(calls([] { order_streams(on(kStreams, 4), on(kStreams, 5)); }), want);
  // A capture takes no event from outside, and none of its own leaves it.
  emulation::host.capturing = stream(5);
  EXPECT_EQ(calls([] { order_streams(on(kStreams, 4), on(kStreams, 5)); }), Calls{});
  EXPECT_THROW(order_streams(on(kStreams, 5), on(kStreams, 4)), value_error);
}

TEST_F(CudaHost, OwnersAreKeptUntilTheStreamHasPassed) {
  emulation::host.device = kKept;
  const auto owner = std::make_shared<int>(1);
  emulation::host.busy = true;
  const Calls want{call("cudaEventRecord", kKept, 6)};
  EXPECT_EQ(calls([&] { keep_until_done(owner, on(kKept, 6)); }), want);
  drop_what_is_done();
  EXPECT_EQ(owner.use_count(), 2);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  emulation::host.busy = false;
  keep_until_done(nullptr, on(kKept, 6));  // any later call
  EXPECT_EQ(owner.use_count(), 1);

  emulation::host.busy = true;
  keep_until_done(owner, on(kKept, 6));
  wait_for_kept();
  EXPECT_EQ(owner.use_count(), 2);
  drop_what_is_done();
  EXPECT_EQ(owner.use_count(), 1);

  emulation::host.capturing = stream(6);
  keep_until_done(owner, on(kKept, 6));
  EXPECT_EQ(owner.use_count(), 1) << "a graph's memory is kept by whoever keeps the graph";
}

TEST_F(CudaHost, NoMemoryIsOnTheCurrentDevice) {
  emulation::host.device = kOther;
  EXPECT_EQ(device_of(nullptr), kOther);
}

}  // namespace
}  // namespace normcore::cuda
