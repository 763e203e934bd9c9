// What holds of every call: the stack that it needs, the floating-point environment in which it
// computes, the number of threads that it may have, and that it can be ended.
#include "calls.h"

#include <gtest/gtest.h>

#include <cctype>
#include <cfenv>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <thread>
#if defined(__unix__)
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace normcore {
namespace {

using namespace testing;

class EachOperation : public ::testing::TestWithParam<Operation> {};
INSTANTIATE_TEST_SUITE_P(All, EachOperation, ::testing::ValuesIn(operations()),
                         [](const auto& test) {
                           std::string name = test.param.name;
                           for (char& c : name) {
                             if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
                           }
                           return name;
                         });

// ---- the stack

#if defined(__unix__)
constexpr std::size_t kStack = std::size_t(1) << 16;

// Bytes that f keeps on the stack of a thread of its own, with what the thread itself needs there.
template <class F>
std::size_t stack_of(F f) {
  constexpr std::size_t kRoom = std::size_t(1) << 20;
  constexpr unsigned char kPaint = 0xa5;
  auto* memory = static_cast<unsigned char*>(::operator new(kRoom, std::align_val_t(4096)));
  std::memset(memory, kPaint, kRoom);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  EXPECT_EQ(pthread_attr_setstack(&attributes, memory, kRoom), 0);
  pthread_t thread;
  auto run = [](void* g) -> void* {
    (*static_cast<F*>(g))();
    return nullptr;
  };
  EXPECT_EQ(pthread_create(&thread, &attributes, run, &f), 0);
  pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
  std::size_t untouched = 0;
  while (untouched < kRoom && memory[untouched] == kPaint) ++untouched;
  ::operator delete(memory, std::align_val_t(4096));
  return kRoom - untouched;
}

TEST_P(EachOperation, NeedsLittleStack) {
#if defined(NORMCORE_SANITIZED)
  GTEST_SKIP() << "AddressSanitizer's stacks are larger";
#endif
  for (const DType t : kDTypes) {
    for (const Index side : {5, 70}) {
      Operands operands(t, 3, 12, side);
      for (const int threads : {1, 3}) {
        const std::size_t used = stack_of([&] { GetParam().run(operands, {.threads = threads}); });
        EXPECT_LT(used, kStack) << name_of(t) << ", side " << side << ", threads " << threads;
        RecordProperty("stack", static_cast<int>(used));
      }
    }
  }
}

TEST(Stack, AnErrorNeedsLittleToo) {
#if defined(NORMCORE_SANITIZED)
  GTEST_SKIP() << "AddressSanitizer's stacks are larger";
#endif
  Operands o(DType::kFloat32, 3, 12, 5);
  EXPECT_LT(stack_of([&] {
              try {
                layer_norm(o.x.tensor(), o.weight.tensor(), {}, o.y.tensor());
              } catch (const value_error&) {
              }
            }),
            kStack);
}
#endif

// ---- the floating-point environment

// Results in the environment that `change` sets, and whether it is still there afterwards.
template <class F>
void expect_same_bits(const Operation& operation, const char* what, F change) {
  for (const DType t : kDTypes) {
    // Down to the subnormal numbers, which are there to be flushed.
    const double tiny = std::ldexp(1, format_of(t).min_exponent + 2);
    Operands want(t, 2, 12, 70, tiny);
    operation.run(want, {.threads = 1});
    for (const int threads : {1, 4}) {
      if (t != DType::kFloat32 && threads > 1) continue;  // what threads do is the same for all
      Operands got(t, 2, 12, 70, tiny);
      std::fenv_t before, after, set;
      std::fegetenv(&before);
      change();
      std::fegetenv(&set);
      operation.run(got, {.threads = threads});
      std::fegetenv(&after);
      const int rounding = std::fegetround();
      std::fesetenv(&set);
      const int rounding_before = std::fegetround();
      std::fesetenv(&before);
      EXPECT_EQ(rounding, rounding_before) << what;
      const auto a = got.results(), b = want.results();
      for (std::size_t i = 0; i < a.size(); ++i) {
        EXPECT_TRUE(a[i]->same_bits(*b[i]))
            << what << ", " << name_of(t) << ", " << threads << " threads, result " << i;
      }
    }
  }
}

TEST_P(EachOperation, RoundsToNearestWhateverTheCallerDoes) {
  expect_same_bits(GetParam(), "upward", [] { std::fesetround(FE_UPWARD); });
  expect_same_bits(GetParam(), "toward zero", [] { std::fesetround(FE_TOWARDZERO); });
}

#if defined(__x86_64__)
TEST_P(EachOperation, KeepsSubnormalNumbersWhateverTheCallerDoes) {
  expect_same_bits(GetParam(), "flushed", [] { _mm_setcsr(_mm_getcsr() | 0x8040); });
}

TEST_P(EachOperation, PutsTheControlRegisterBack) {
  // Traps for all but inexact results: a call must not run into one.
  const unsigned before = _mm_getcsr(), set = 0x1000 | 0x8040 | 0x2000;
  Operands o(DType::kFloat32, 2, 12, 70, 1e-38);
  _mm_setcsr(set);
  GetParam().run(o, {.threads = 3});
  const unsigned after = _mm_getcsr();
  _mm_setcsr(before);
  EXPECT_EQ(after, set);
}

TEST(FloatEnvironment, IsPutBackAfterAnError) {
  Operands o(DType::kFloat32, 2, 3, 4);
  const unsigned before = _mm_getcsr(), set = (before & ~0x3fu) | 0x8040;
  _mm_setcsr(set);
  EXPECT_THROW(layer_norm(o.x.tensor(), o.weight.tensor(), {}, o.y.tensor()), value_error);
  EXPECT_EQ(_mm_getcsr() & ~0x3fu, set);
  _mm_setcsr(before);
}
#endif

// ---- threads

TEST_P(EachOperation, RefusesMoreThreadsThanThereMayBe) {
  Operands o(DType::kFloat32, 3, 12, 5);
  for (const int threads : {-1, kMostThreads + 1, 1 << 20, 1 << 30}) {
    try {
      GetParam().run(o, {.threads = threads});
      FAIL() << threads << " threads were let pass";
    } catch (const value_error& e) {
      EXPECT_NE(std::string(e.what()).find("context.threads is " + std::to_string(threads) +
                                           ", expected 0 to 1024"),
                std::string::npos)
          << e.what();
    }
  }
}

TEST(ThreadSetting, IsBounded) {
  const int before = get_num_threads();
  for (const int n : {0, -1, kMostThreads + 1, 1 << 30}) {
    EXPECT_THROW(set_num_threads(n), value_error) << n;
  }
  set_num_threads(kMostThreads);
  EXPECT_EQ(get_num_threads(), kMostThreads);
  set_num_threads(before);
}

// ---- the end of a call

struct Ended : std::runtime_error {
  Ended() : runtime_error("ended") {}
};

// Lets the call go on so many times.
struct Countdown : Interrupt {
  explicit Countdown(int times) : left(times) {}
  void check() override {
    EXPECT_EQ(std::this_thread::get_id(), thread) << "only the caller's thread is asked";
    if (left-- == 0) throw Ended();
  }
  int left;
  std::thread::id thread = std::this_thread::get_id();
};

TEST(Interrupt, EndsIterationsWithoutAnEnd) {
  for (const Index size : {12, 700}) {
    Array a(DType::kFloat32, {size, size}), u(DType::kFloat32, {size}), v(DType::kFloat32, {size});
    Random random(1);
    a.fill(random, 0, 1);
    for (const int threads : {1, 3}) {
      Countdown interrupt(1);
      const Context context{.threads = threads, .interrupt = &interrupt};
      EXPECT_THROW(power_method(a.tensor(), {}, u.tensor(), v.tensor(), {Index(1) << 50}, context),
                   Ended);
    }
    EXPECT_GT(power_method(a.tensor(), {}, u.tensor(), v.tensor(), {3}).sigma, 0);
  }
}

TEST(Interrupt, EndsOneLongSweep) {
  // 2^38 elements that are all the same one.
  const float x = 1;
  ConstTensor view(&x, DType::kFloat32, 2);
  view.set_dim(0, Index(1) << 19, 0);
  view.set_dim(1, Index(1) << 19, 0);
  float result = 0;
  Tensor y(&result, DType::kFloat32, 2);
  y.set_dim(0, 1, 1);
  y.set_dim(1, 1, 1);
  for (const int threads : {1, 3}) {
    Countdown interrupt(2);
    const Context context{.threads = threads, .interrupt = &interrupt};
    EXPECT_THROW(norm(view, y, {}, context), Ended);
  }
}

TEST(Interrupt, LeavesRunningBuffersAsTheyWere) {
  // Between the sweeps more time passes than a call is let go on without a question.
  struct Slow : Exchange {
    void sum(double*, std::ptrdiff_t) override {
      std::this_thread::sleep_for(std::chrono::milliseconds(250));
    }
  };
  for (const int threads : {1, 3}) {
    Operands o(DType::kFloat32, 2, 12, 200);
    const Operands before(DType::kFloat32, 2, 12, 200);
    BatchNormOptions options{o.ones.tensor(), o.gradient.tensor()};
    options.training = true;
    Slow slow;
    Countdown interrupt(0);
    const Context context{.threads = threads, .exchange = &slow, .interrupt = &interrupt};
    EXPECT_THROW(
        batch_norm(o.x.tensor(), o.weight.tensor(), {}, o.y.tensor(), options, {}, context), Ended);
    EXPECT_TRUE(o.ones.same_bits(before.ones));
    EXPECT_TRUE(o.gradient.same_bits(before.gradient));
  }
}

TEST_P(EachOperation, AsksNothingWhereItIsQuick) {
  Operands o(DType::kFloat32, 3, 12, 5);
  Countdown interrupt(0);
  GetParam().run(o, {.threads = 1, .interrupt = &interrupt});
}

}  // namespace
}  // namespace normcore
