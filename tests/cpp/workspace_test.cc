// The workspace: aligned arrays that do not overlap, given back in order, and kept from call to
// call so that nothing is allocated in the steady state.
#include "cpu/workspace.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <thread>

#include "allocations.h"
#include "support.h"

namespace normcore::cpu {
namespace {

using Scope = Workspace::Scope;
using testing::allocations;

TEST(Workspace, ArraysAreAlignedAndApart) {
  Workspace w;
  testing::Random random(1);
  for (int trial = 0; trial < 50; ++trial) {
    Scope scope(w);
    struct Taken {
      unsigned char* p;
      Index n;
    };
    std::vector<Taken> taken;
    for (int i = 0; i < 20; ++i) {
      const Index n = random.integer(0, i % 5 == 0 ? 300'000 : 3000);
      auto* p = scope.take<unsigned char>(n);
      ASSERT_EQ(reinterpret_cast<std::uintptr_t>(p) % Workspace::kAlignment, 0u);
      std::memset(p, i, std::size_t(n));
      taken.push_back({p, n});
    }
    for (int i = 0; i < 20; ++i) {
      for (Index j = 0; j < taken[std::size_t(i)].n; ++j) {
        ASSERT_EQ(taken[std::size_t(i)].p[j], i) << "array " << i << " was overwritten";
      }
    }
  }
}

TEST(Workspace, FilledArraysAreFilled) {
  Workspace w;
  Scope scope(w);
  const double* p = scope.take_filled<double>(1000, 2.5);
  for (int i = 0; i < 1000; ++i) ASSERT_EQ(p[i], 2.5);
}

#if defined(NORMCORE_POISON)
TEST(Workspace, OnlyWhatIsTakenMayBeTouched) {
  auto poisoned = [](const char* p) { return __asan_address_is_poisoned(p) != 0; };
  Workspace w;
  const char *before, *inner_array, *large;
  {
    Scope outer(w);
    before = outer.take<char>(13);
    {
      Scope inner(w);
      inner_array = inner.take<char>(64);
      large = inner.take<char>(1'000'000);  // a chunk of its own
      for (const char* p : {before, before + 12, inner_array + 63, large + 999'999}) {
        EXPECT_FALSE(poisoned(p));
      }
      for (const char* p : {before + 13, inner_array - 1, inner_array + 64, large + 1'000'000}) {
        EXPECT_TRUE(poisoned(p));
      }
    }
    EXPECT_FALSE(poisoned(before));
    EXPECT_TRUE(poisoned(inner_array));
    EXPECT_TRUE(poisoned(large + 500'000));
    EXPECT_TRUE(std::isnan(outer.take<float>(100)[99]));  // nothing that could pass for a value
  }
  EXPECT_TRUE(poisoned(before));
}
#endif

// Scopes within scopes at random, of small arrays and of some that are more than what is kept.
class Nested {
 public:
  explicit Nested(unsigned seed) : random_(seed) {}

  void scope(int depth) {
    Scope scope(workspace_);
    const std::size_t before = taken_.size();
    auto inner = [&] {
      if (depth < 5 && random_.integer(0, 1)) this->scope(depth + 1);
    };
    inner();
    for (Index i = random_.integer(0, 3); i > 0; --i) {
      const Index sizes[] = {random_.integer(1, 100'000), Index(1) << 20, Index(1) << 24};
      const Index n = sizes[std::max<Index>(0, random_.integer(-4, 2))];
      char* const p = scope.take<char>(n);
      for (const auto& other : taken_) {
        ASSERT_TRUE(p + n <= other.first || other.second <= p) << "an array lies in another";
      }
      taken_.emplace_back(p, p + n);
      inner();
    }
    for (const auto& array : taken_) *array.first = array.second[-1] = 1;
    taken_.resize(before);
  }

 private:
  Workspace workspace_;
  testing::Random random_;
  std::vector<std::pair<char*, char*>> taken_;
};

TEST(Workspace, ScopesWithinScopesHoldWhatIsNotKept) {
  for (unsigned seed = 0; seed < 3; ++seed) {
    Nested nested(seed);
    for (int call = 0; call < 100; ++call) ASSERT_NO_FATAL_FAILURE(nested.scope(0));
  }
}

TEST(Workspace, AScopeGivesBackWhatItTookAndNothingElse) {
  Workspace w;
  Scope outer(w);
  double* kept = outer.take_filled<double>(100, 1);
  double* first;
  {
    Scope inner(w);
    first = inner.take_filled<double>(100, 2);
    inner.take<double>(200'000);  // a chunk of its own
  }
  double* second = outer.take_filled<double>(100, 3);
  EXPECT_EQ(first, second);
  for (int i = 0; i < 100; ++i) ASSERT_EQ(kept[i], 1);
}

void use(Workspace& w) {
  Scope outer(w);
  outer.take<float>(1000);
  for (const Index n : {10, 100'000, 1'000'000}) {
    Scope inner(w);
    inner.take<double>(n);
    inner.take<char>(n);
  }
}

TEST(Workspace, NothingIsAllocatedInTheSteadyState) {
  Workspace w;
  use(w);
  const long before = allocations();
  for (int i = 0; i < 10; ++i) use(w);
  EXPECT_EQ(allocations(), before);
}

TEST(Workspace, ChunksBeyondWhatIsKeptAreGivenBack) {
  Workspace w;
  const auto take = [&](std::size_t bytes) {
    const long before = allocations();
    Scope(w).take<char>(Index(bytes));
    return allocations() - before;
  };
  const std::size_t most = Workspace::kKept - kRedZone;
  take(1);
  take(most);
  EXPECT_EQ(take(most), 0);
  EXPECT_GT(take(most + 1), 0);
  EXPECT_GT(take(most + 1), 0);  // it was not kept
  EXPECT_EQ(take(most), 0);      // what fits still is
}

TEST(Workspace, GrowingDemandsDoNotPileUp) {
  Workspace w;
  for (Index n = 1; n < Index(Workspace::kKept); n += Index(Workspace::kKept) / 100) {
    Scope(w).take<char>(n);
  }
  // As much again is not there: what is kept is bounded.
  Scope scope(w);
  scope.take<char>(Index(Workspace::kKept));
  const long before = allocations();
  scope.take<char>(Index(Workspace::kFirstChunk));
  EXPECT_GT(allocations(), before);
}

TEST(Workspace, ALargeChunkInTheMiddleIsGivenBack) {
  Workspace w;
  auto call = [&] {
    Scope scope(w);
    scope.take<char>(1000);
    scope.take<char>(Index(Workspace::kKept) + 1);
    scope.take<char>(1000);
  };
  call();
  const long before = allocations();
  call();
  EXPECT_GT(allocations(), before);
}

TEST(Workspace, EveryThreadHasItsOwn) {
  Workspace* other = nullptr;
  std::thread([&] { other = &Workspace::local(); }).join();
  EXPECT_NE(other, &Workspace::local());
  EXPECT_EQ(&Workspace::local(), &Workspace::local());
}

}  // namespace
}  // namespace normcore::cpu
