// Context::exchange: statistics over several processes, which are threads here, are those of one
// call on the joined batch, forward and backward, however many samples each has.
#include <gtest/gtest.h>

#include <barrier>
#include <numeric>
#include <thread>

#include "adaptive_methods.h"

namespace normcore {
namespace {

using namespace testing;

// Sums over threads that stand for processes. One that goes away, or asks for another number of
// values than the others, is a fault; nobody waits for it.
class Threads {
 public:
  explicit Threads(std::size_t n) : barrier_(std::ptrdiff_t(n)), asked_(n) {}

  class Member : public Exchange {
   public:
    Member(Threads& all, std::size_t rank) : all_(all), rank_(rank) {}
    ~Member() override {
      all_.asked_[rank_] = {};
      all_.barrier_.arrive_and_drop();
    }
    void sum(double* values, std::ptrdiff_t n) override {
      all_.asked_[rank_] = {values, n};
      all_.barrier_.arrive_and_wait();
      Vector total(static_cast<std::size_t>(n), 0);
      for (const auto& [theirs, count] : all_.asked_) {
        EXPECT_EQ(count, n) << "processes disagree";
        for (std::ptrdiff_t i = 0; i < std::min(n, count); ++i) total[std::size_t(i)] += theirs[i];
      }
      all_.barrier_.arrive_and_wait();
      std::copy(total.begin(), total.end(), values);
    }

   private:
    Threads& all_;
    std::size_t rank_;
  };

  // f(rank, exchange) in a thread for each.
  template <class F>
  static void run(std::size_t n, F f) {
    Threads all(n);
    std::vector<std::thread> threads;
    for (std::size_t rank = 0; rank < n; ++rank) {
      threads.emplace_back([&, rank] {
        Member member(all, rank);
        f(rank, &member);
      });
    }
    for (std::thread& t : threads) t.join();
  }

 private:
  struct Asked {
    double* values = nullptr;
    std::ptrdiff_t n = 0;
  };
  std::barrier<> barrier_;
  std::vector<Asked> asked_;
};

// Lp and top-k refuse other processes, except where they need no statistics of x.
std::vector<Method> merged() {
  std::vector<Method> result;
  for (const Method& m : methods()) {
    const bool spread = m.name.starts_with("lp") || m.name.starts_with("topk");
    if (m.stats != Method::kNoStats && (!spread || m.name.ends_with("eval"))) result.push_back(m);
  }
  return result;
}

class Processes : public Searching {};

TEST_P(Processes, AgreeWithOneCallOnTheJoinedBatch) {
  const std::vector<Index> splits[] = {{2, 5}, {0, 3, 1}, {4, 0, 0, 2}, {1, 1}, {20, 0, 41}};
  for (const auto& split : splits) {
    for (const bool saved : {true, false}) {
      if (!saved && GetParam().name == "batch_renorm") continue;  // refuses it
      const Index N = std::accumulate(split.begin(), split.end(), Index(0));
      const Index S = N == 2 ? 1 : random_.integer(2, 60);  // also one value in each process
      Values v = draw(random_, GetParam(), {N, random_.integer(1, 5), S});
      // Nothing counts in the first process, where others have something.
      if (N > 2 && split[0] > 0) std::fill_n(v.mask.begin(), split[0] * S, 0.0), v.mask.back() = 1;
      SCOPED_TRACE("N " + std::to_string(N) + (saved ? ", saved statistics" : ""));
      const Call joined(GetParam(), DType::kFloat64, 0, v);
      joined.forward(joined.stats());
      joined.backward(saved ? joined.saved() : SavedStats());

      std::vector<Call> parts;
      for (Index i = 0, from = 0; i < Index(split.size()); from += split[std::size_t(i++)]) {
        parts.emplace_back(GetParam(), DType::kFloat64, int(i),
                           v.part(from, from + split[std::size_t(i)]));
      }
      Threads::run(split.size(), [&](std::size_t rank, Exchange* exchange) {
        const Context context{.threads = 1 + int(rank % 2), .exchange = exchange};
        const Call& c = parts[rank];
        EXPECT_NO_THROW(c.forward(c.stats(), context));
        EXPECT_NO_THROW(c.backward(saved ? c.saved() : SavedStats(), context));
      });

      // Some hundred doubles are added in another order, and divided by deviations above 0.03.
      auto expect = [&](Array Call::* a, const Vector& got, const char* what) {
        const Vector want = (joined.*a).read();
        expect_near(got, want, 1e-11 * (1 + largest(want)), what);
      };
      auto concatenated = [&](Array Call::* a) {
        Vector all;
        for (const Call& c : parts) {
          const Vector own = (c.*a).read();
          all.insert(all.end(), own.begin(), own.end());
        }
        return all;
      };
      auto summed = [&](Array Call::* a) {
        Vector sum((joined.*a).values.size(), 0);
        sum.assign(std::size_t((joined.*a).size()), 0);
        for (const Call& c : parts) {
          for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += (c.*a).read(Index(i));
        }
        return sum;
      };
      expect(&Call::y, concatenated(&Call::y), "y");
      expect(&Call::dx, concatenated(&Call::dx), "dx");
      for (const Gradient& g : parameter_gradients(GetParam())) {
        expect(g.array, summed(g.array), g.name);
      }
      for (const Call& c : parts) {
        expect(&Call::running_mean, c.running_mean.read(), "running mean");
        expect(&Call::running_spread, c.running_spread.read(), "running spread");
        const bool eval = GetParam().name.ends_with("eval");
        if (GetParam().stats != Method::kByChannel || (eval && c.N == 0)) continue;
        expect(&Call::mean, c.mean.read(), "mean");
        expect(&Call::rstd, c.rstd.read(), "rstd");
        expect(&Call::pooled, c.pooled.read(), "pooled");
      }
    }
  }
}

TEST_P(Processes, OneValueInAllOfThemIsTooFewForAll) {
  const Method& m = GetParam();
  if (m.name.ends_with("eval") || m.name.starts_with("masked")) return;  // not training, or weights
  const Values v = draw(random_, m, {1, 3, 1});
  const Call one(m, DType::kFloat64, 0, v), none(m, DType::kFloat64, 0, v.part(0, 0));
  Threads::run(2, [&](std::size_t rank, Exchange* exchange) {
    const Call& c = rank ? one : none;
    EXPECT_THROW(c.forward(c.stats(), {.exchange = exchange}), std::invalid_argument);
    if (m.name == "batch_renorm") return;  // no statistics to hand on
    EXPECT_THROW(c.backward({}, {.exchange = exchange}), std::invalid_argument);
  });
  for (const Call* c : {&one, &none}) {
    for (const auto a : {&Call::y, &Call::dx, &Call::dbias, &Call::dfirst, &Call::mean, &Call::rstd,
                         &Call::pooled, &Call::given}) {
      EXPECT_TRUE((c->*a).bytes.poisoned(0, (c->*a).bytes.size())) << "N " << c->N;
    }
    EXPECT_EQ(c->running_mean.read(), v.mean);
    EXPECT_EQ(c->running_spread.read(), v.spread);
  }
}

INSTANTIATE_TEST_SUITE_P(All, Processes, ::testing::ValuesIn(merged()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace normcore
