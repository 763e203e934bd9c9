// Calls that look like an earlier one, whose checks and plan are remembered, and are not sound:
// what is not remembered is looked at every time.
#include <gtest/gtest.h>

#include <cstdint>

#include "support.h"

namespace normcore {
namespace {

constexpr Index kRows = 3, kColumns = 10;

struct Call {
  alignas(64) float x[64] = {}, weight[16] = {}, mean[16] = {}, var[16] = {};
  testing::Bytes y{64 * 4};

  Call() {
    for (int i = 0; i < 64; ++i) x[i] = float(i * i % 11);
    for (int i = 0; i < 16; ++i) weight[i] = var[i] = 1;
  }
  float* out() { return reinterpret_cast<float*>(y.data()); }
  void layer_norm_of(const void* from, const void* w, void* to) {
    layer_norm({static_cast<const float*>(from), {kRows, kColumns}},
               {static_cast<const float*>(w), {kColumns}}, {},
               {static_cast<float*>(to), {kRows, kColumns}});
  }
  void batch_norm_with(const Buffer& running_mean, const Buffer& running_var) {
    batch_norm({x, {kRows, kColumns}}, {}, {}, {out(), {kRows, kColumns}},
               {.running_mean = running_mean, .running_var = running_var, .training = true});
  }
  void good() {
    layer_norm_of(x, weight, out());
    batch_norm_with({mean, {kColumns}}, {var, {kColumns}});
    y = testing::Bytes(64 * 4);
  }
  bool untouched() const { return y.poisoned(0, y.size()); }
};

template <class F>
void refused(const char* beginning, F f) {
  Call call;
  for (int i = 0; i < 3; ++i) {
    call.good();
    try {
      f(call);
      ADD_FAILURE() << "not refused: " << beginning;
    } catch (const std::invalid_argument& e) {
      EXPECT_EQ(std::string(e.what()).rfind(beginning, 0), 0u) << e.what();
    }
    EXPECT_TRUE(call.untouched());
  }
}

void* at(const void* p, std::ptrdiff_t bytes) {
  return reinterpret_cast<void*>(reinterpret_cast<std::intptr_t>(p) + bytes);
}

TEST(RepeatedCalls, NoMemory) {
  refused("x", [](Call& c) { c.layer_norm_of(nullptr, c.weight, c.out()); });
  refused("weight", [](Call& c) { c.layer_norm_of(c.x, nullptr, c.out()); });
  refused("out", [](Call& c) { c.layer_norm_of(c.x, c.weight, nullptr); });
}
TEST(RepeatedCalls, AddressesOfNoFloat) {
  refused("x", [](Call& c) { c.layer_norm_of(at(c.x, 1), c.weight, c.out()); });
  refused("weight", [](Call& c) { c.layer_norm_of(c.x, at(c.weight, 2), c.out()); });
  refused("out", [](Call& c) { c.layer_norm_of(c.x, c.weight, at(c.out(), 3)); });
}
TEST(RepeatedCalls, AddressesBeyondMemory) {
  for (const std::uint64_t address : {~std::uint64_t{63}, (std::uint64_t{1} << 63) - 64}) {
    void* p = reinterpret_cast<void*>(address);
    refused("x", [=](Call& c) { c.layer_norm_of(p, c.weight, c.out()); });
    refused("out", [=](Call& c) { c.layer_norm_of(c.x, c.weight, p); });
  }
}
TEST(RepeatedCalls, MemoryThatIsShared) {
  refused("out overlaps x", [](Call& c) { c.layer_norm_of(c.out() + 1, c.weight, c.out()); });
  refused("out overlaps weight", [](Call& c) { c.layer_norm_of(c.x, c.out() + 20, c.out()); });
  refused("running_var overlaps running_mean",
          [](Call& c) { c.batch_norm_with({c.mean, {kColumns}}, {c.mean + 1, {kColumns}}); });
}
TEST(RepeatedCalls, BuffersThatMayNotBeWritten) {
  refused("running_mean is read-only", [](Call& c) {
    c.batch_norm_with({static_cast<const float*>(c.mean), {kColumns}}, {c.var, {kColumns}});
  });
}
TEST(RepeatedCalls, OutOverX) {
  Call call, other;
  call.good();
  call.layer_norm_of(call.x, call.weight, call.out());
  other.layer_norm_of(other.x, other.weight, other.x);
  EXPECT_EQ(std::memcmp(call.out(), other.x, kRows * kColumns * sizeof(float)), 0);
}

}  // namespace
}  // namespace normcore
