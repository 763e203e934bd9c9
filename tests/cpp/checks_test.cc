// Argument checks: overlap() against brute force, and the words of the errors.
#include "ops/checks.h"

#include <gtest/gtest.h>

#include <set>

#include "normcore/errors.h"
#include "ops/signatures.h"
#include "support.h"

namespace normcore {
namespace {

using testing::Random;

// ---- overlap

struct Slice {
  ConstTensor view;
  std::set<Index> elements;  // of the base array
};

// base[start : start + step * (count - 1) + 1 : step] along every axis, axes backwards here and
// there.
Slice slice(const float* base, const std::vector<Index>& strides, const std::vector<Index>& start,
            const std::vector<Index>& step, const std::vector<Index>& count,
            const std::vector<bool>& backwards) {
  const std::size_t n = strides.size();
  Index first = 0;
  std::vector<Index> view_strides(n);
  Slice s;
  s.elements.insert(0);
  for (std::size_t d = 0; d < n; ++d) {
    Index at = start[d];
    view_strides[d] = strides[d] * step[d];
    if (backwards[d]) {
      at += step[d] * (count[d] - 1);
      view_strides[d] = -view_strides[d];
    }
    first += at * strides[d];
    std::set<Index> wider;
    for (const Index e : s.elements) {
      for (Index i = 0; i < count[d]; ++i) wider.insert(e + (start[d] + i * step[d]) * strides[d]);
    }
    s.elements = wider;
  }
  s.view =
      testing::make_tensor(const_cast<float*>(base) + first, DType::kFloat32, count, view_strides);
  return s;
}

// Slices of a small random array. `alike`: same steps, and along each axis both of one element or
// both of more, as for two arrays of one shape.
std::pair<Slice, Slice> two_slices(Random& random, bool alike) {
  static const float base[1000] = {};
  const std::size_t n = std::size_t(random.integer(1, 3));
  std::vector<Index> shape(n), strides(n), start[2], step[2], count[2];
  std::vector<bool> backwards[2];
  Index stride = 1;
  for (std::size_t d = n; d-- > 0;) {
    shape[d] = random.integer(1, 8);
    strides[d] = stride;
    stride *= shape[d];
  }
  for (std::size_t d = 0; d < n; ++d) {
    for (int i = 0; i < 2; ++i) {
      const Index s = alike && i == 1 ? step[0][d] : random.integer(1, 3);
      const Index most = (shape[d] + s - 1) / s;
      Index c = random.integer(1, most);
      if (alike && i == 1 && (count[0][d] == 1 || c == 1)) c = count[0][d];
      step[i].push_back(s);
      count[i].push_back(c);
      start[i].push_back(random.integer(0, shape[d] - (s * (c - 1) + 1)));
      backwards[i].push_back(random.integer(0, 3) == 0);
    }
  }
  return {slice(base, strides, start[0], step[0], count[0], backwards[0]),
          slice(base, strides, start[1], step[1], count[1], backwards[1])};
}
bool share(const Slice& a, const Slice& b) {
  for (const Index e : a.elements) {
    if (b.elements.count(e)) return true;
  }
  return false;
}

TEST(Overlap, IsExactForSlicesOfOneArrayWithEqualSteps) {
  Random random(1);
  int shared = 0;
  constexpr int kTrials = 20'000;
  for (int trial = 0; trial < kTrials; ++trial) {
    const auto [a, b] = two_slices(random, /*alike=*/true);
    const bool want = share(a, b);
    shared += want;
    ASSERT_EQ(overlap(a.view, b.view), want)
        << "shapes " << shape_text(a.view) << " and " << shape_text(b.view);
    ASSERT_EQ(overlap(b.view, a.view), want);
  }
  // Both answers were asked for often.
  EXPECT_GT(shared, kTrials / 10);
  EXPECT_LT(shared, kTrials * 9 / 10);
}

TEST(Overlap, IsExactForSlicesOfUnlikeSteps) {
  Random random(2);
  int shared = 0;
  constexpr int kTrials = 20'000;
  for (int trial = 0; trial < kTrials; ++trial) {
    const auto [a, b] = two_slices(random, /*alike=*/false);
    const bool want = share(a, b);
    shared += want;
    ASSERT_EQ(overlap(a.view, b.view), want)
        << "shapes " << shape_text(a.view) << " and " << shape_text(b.view);
    ASSERT_EQ(overlap(b.view, a.view), want);
  }
  EXPECT_GT(shared, kTrials / 20);
  EXPECT_LT(shared, kTrials * 19 / 20);
}

TEST(Overlap, KnowsArraysOfDifferentElementTypesByTheirBytes) {
  alignas(8) unsigned char memory[64];
  auto view = [&](std::size_t at, DType t, Index n) {
    return ConstTensor(testing::make_tensor(memory + at, t, {n}));
  };
  EXPECT_TRUE(overlap(view(0, DType::kFloat32, 4), view(8, DType::kFloat64, 2)));
  EXPECT_TRUE(overlap(view(8, DType::kFloat64, 2), view(22, DType::kFloat16, 2)));
  EXPECT_FALSE(overlap(view(0, DType::kFloat32, 4), view(16, DType::kFloat64, 2)));
  EXPECT_FALSE(overlap(view(8, DType::kFloat64, 2), view(24, DType::kFloat16, 2)));
  // Between the elements of the other.
  const ConstTensor every_other = testing::make_tensor(memory, DType::kFloat32, {8}, {2});
  const ConstTensor halves = testing::make_tensor(memory + 4, DType::kFloat16, {8}, {4});
  EXPECT_FALSE(overlap(every_other, halves));
  EXPECT_TRUE(overlap(every_other, testing::make_tensor(memory + 4, DType::kFloat16, {8}, {2})));
  // Half an element apart.
  EXPECT_TRUE(overlap(view(0, DType::kFloat16, 4), view(1, DType::kFloat16, 4)));
}

TEST(Overlap, EmptyArraysShareNothing) {
  const float x[4] = {};
  EXPECT_FALSE(overlap(ConstTensor(x, {0}), ConstTensor(x, {4})));
  EXPECT_FALSE(overlap(ConstTensor(x, {2, 0}), ConstTensor(x, {2, 0})));
}

TEST(SameMemory, AsksForPlaceTypeShapeAndStridesThatMatter) {
  const float x[6] = {};
  EXPECT_TRUE(same_memory(ConstTensor(x, {2, 3}), ConstTensor(x, {2, 3})));
  EXPECT_TRUE(same_memory(ConstTensor(x, {1, 3}, {3, 1}), ConstTensor(x, {1, 3}, {7, 1})));
  EXPECT_FALSE(same_memory(ConstTensor(x, {2, 3}), ConstTensor(x, {3, 2})));
  EXPECT_FALSE(same_memory(ConstTensor(x, {2, 2}), ConstTensor(x, {2, 2}, {1, 2})));
  EXPECT_FALSE(same_memory(ConstTensor(x, {2}), ConstTensor(x + 1, {2})));
}

// ---- words

template <class Error = value_error, class F>
std::string message(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error of this kind";
}

TEST(ShapeText, IsPythonsTuple) {
  const Index shape[] = {4, 5, 6};
  EXPECT_EQ(shape_text(shape, 0), "()");
  EXPECT_EQ(shape_text(shape, 1), "(4,)");
  EXPECT_EQ(shape_text(shape, 3), "(4, 5, 6)");
}

TEST(CheckShape, NamesTheArgumentItsShapeAndTheRule) {
  const float w[6] = {};
  ExpectedShape expected;
  expected.append(4);
  expected.rule = "x.shape[channel_axis=1]";
  EXPECT_EQ(message([&] { check_shape("weight", ConstTensor(w, {3}), expected); }),
            "weight has shape (3,), expected (4,): x.shape[channel_axis=1]");
  EXPECT_EQ(message([&] { check_shape("weight", ConstTensor(w, {4, 1}), expected); }),
            "weight has shape (4, 1), expected (4,): x.shape[channel_axis=1]");
  EXPECT_NO_THROW(check_shape("weight", ConstTensor(w, {4}), expected));
}

TEST(CheckLike, NamesTypeAndShape) {
  const float x[6] = {};
  const double d[6] = {};
  EXPECT_EQ(
      message<type_error>([&] { check_like("dy", ConstTensor(d, {6}), ConstTensor(x, {6})); }),
      "dy has dtype float64, expected float32: x's");
  EXPECT_EQ(message([&] { check_like("dy", ConstTensor(x, {2, 3}), ConstTensor(x, {6})); }),
            "dy has shape (2, 3), expected (6,): x's");
}

TEST(CheckOutput, RefusesOtherShapesAndTypes) {
  float x[12] = {}, y[12] = {};
  double d[6] = {};
  EXPECT_EQ(message([&] { check_output("out", Tensor(y, {5}), ConstTensor(x, {6})); }),
            "out has shape (5,), expected (6,): x's");
  EXPECT_EQ(message([&] { check_output("out", Tensor(d, {6}), ConstTensor(x, {6})); }),
            "out has dtype float64, expected float32: x's");
}

// ---- what a call reads and writes

// One operand that is read and one that is written, which may be the first or not.
std::string message_of(const ConstTensor& x, const Tensor& out, bool may_be_x = true) {
  return message([&] {
    Operands operands;
    operands.reads("x", x);
    operands.writes("out", out, {may_be_x ? &x : nullptr});
    operands.check();
  });
}
constexpr const char* kNone = "no error of this kind";

TEST(Operands, OutIsXItselfOrApartFromIt) {
  float x[12] = {};
  const ConstTensor in(x, {6});
  EXPECT_EQ(message_of(in, Tensor(x, {6})), kNone);
  EXPECT_EQ(message_of(in, Tensor(x + 6, {6})), kNone);
  EXPECT_EQ(message_of(in, Tensor(x, {6}), /*may_be_x=*/false),
            "out overlaps x in memory, expected memory of its own");
  EXPECT_EQ(message_of(in, Tensor(x + 1, {6})),
            "out overlaps x in memory, expected x itself or memory of its own");
  EXPECT_EQ(message_of(in, Tensor(x + 5, {6}, {-1})),
            "out overlaps x in memory, expected x itself or memory of its own");
}

TEST(Operands, EveryElementThatIsWrittenHasMemoryOfItsOwn) {
  float x[64] = {}, y[64] = {};
  const ConstTensor in(x, {2, 3});
  auto of_strides = [&](Index a, Index b) {
    return message_of(in, Tensor(y + 20, {2, 3}, {a, b}));
  };
  EXPECT_EQ(of_strides(0, 1),
            "out is broadcast along axis 0, expected memory of its own for every element");
  const char* const overlapping =
      "out has elements that overlap in memory, expected memory of its own for every element";
  for (const auto& [a, b] : {std::pair<Index, Index>{1, 1}, {2, 1}, {-2, 1}, {2, -2}, {4, 2}}) {
    EXPECT_EQ(of_strides(a, b), overlapping) << a << ", " << b;
  }
  // In any order, backwards, apart, and not one within the other.
  for (const auto& [a, b] :
       {std::pair<Index, Index>{3, 1}, {1, 2}, {-1, 2}, {7, -2}, {5, 2}, {3, 2}, {-3, 4}}) {
    EXPECT_EQ(of_strides(a, b), kNone) << a << ", " << b;
  }
  EXPECT_EQ(message_of(ConstTensor(x, {1, 3}), Tensor(y, {1, 3}, {0, 1})), kNone);
  EXPECT_EQ(message_of(ConstTensor(x, {0, 3}), Tensor(y, {0, 3}, {0, 0})), kNone);
}

TEST(Operands, ElementsOfTheirOwnAreFoundExactly) {
  static float memory[4000];
  static const float x[1] = {};
  Random random(3);
  int own = 0, shared = 0;
  for (int trial = 0; trial < 20'000; ++trial) {
    const std::size_t n = std::size_t(random.integer(1, 4));
    std::vector<Index> shape(n), strides(n);
    for (std::size_t d = 0; d < n; ++d) {
      shape[d] = random.integer(1, 4);
      strides[d] = random.integer(-20, 20);
    }
    std::set<Index> places;
    Index size = 1;
    for (const Index s : shape) size *= s;
    for (Index i = 0; i < size; ++i) {
      Index at = 0, rest = i;
      for (std::size_t d = n; d-- > 0; rest /= shape[d]) at += rest % shape[d] * strides[d];
      places.insert(at);
    }
    const bool want = Index(places.size()) == size;
    ++(want ? own : shared);
    const Tensor out = testing::make_tensor(memory + 2000, DType::kFloat32, shape, strides);
    ASSERT_EQ(message_of(ConstTensor(x, {1}), out) == kNone, want)
        << "shape " << shape_text(out) << ", trial " << trial;
  }
  EXPECT_GT(own, 1000);
  EXPECT_GT(shared, 1000);
}

TEST(Operands, NothingThatIsWrittenMeetsAnythingElse) {
  float memory[40] = {};
  double pairs[8] = {};
  const ConstTensor x(memory, {4}), dy(memory + 4, {4}), weight(memory + 8, {4}), absent;
  auto told = [&](const Tensor& out, const Tensor& h, const Tensor& mean, const Tensor& running) {
    return message([&] {
      Operands operands;
      operands.reads("x", x);
      operands.reads("dy", dy);
      operands.reads("weight", weight);
      operands.reads("bias", absent);
      operands.writes("out", out, {&x, &dy});
      operands.writes("h", h);
      operands.writes("stats.mean", mean);
      const ConstTensor buffer = running;
      operands.updates("running_mean", buffer);
      operands.check();
    });
  };
  const Tensor out(memory + 12, {4}), h(memory + 16, {4}), mean(pairs, {4}), none;
  const Tensor running(memory + 24, {4});
  EXPECT_EQ(told(out, h, mean, running), kNone);
  EXPECT_EQ(told(out, none, none, none), kNone);
  EXPECT_EQ(told(Tensor(memory, {4}), h, mean, running), kNone);
  EXPECT_EQ(told(Tensor(memory + 4, {4}), h, mean, running), kNone);
  EXPECT_EQ(told(Tensor(memory + 2, {4}), h, mean, running),
            "out overlaps x in memory, expected x itself or memory of its own");
  EXPECT_EQ(told(Tensor(memory + 7, {4}), h, mean, running),
            "out overlaps dy in memory, expected dy itself or memory of its own");
  EXPECT_EQ(told(out, Tensor(memory + 8, {4}), mean, running),
            "h overlaps weight in memory, expected memory of its own");
  EXPECT_EQ(told(out, Tensor(memory, {4}), mean, running),
            "h overlaps x in memory, expected memory of its own");
  EXPECT_EQ(told(out, out, mean, running), "h overlaps out in memory, expected memory of its own");
  EXPECT_EQ(told(out, h, mean, Tensor(memory + 3, {4})),
            "running_mean overlaps x in memory, expected memory of its own");
  EXPECT_EQ(told(out, h, mean, Tensor(reinterpret_cast<float*>(pairs + 1), {4})),
            "running_mean overlaps stats.mean in memory, expected memory of its own");
  EXPECT_EQ(told(out, h, mean, Tensor(memory + 24, {4}, {0})),
            "running_mean is broadcast along axis 0, expected memory of its own for every element");
}

TEST(CheckAxes, NamesWhatIsOutOfRangeOrTwice) {
  bool marked[kMaxDims];
  check_axes({-1, 0}, 3, marked);
  EXPECT_TRUE(marked[0] && !marked[1] && marked[2]);
  EXPECT_EQ(message([&] { check_axes({3}, 3, marked); }),
            "axis is 3, expected -3 to 2 for x with 3 axes");
  EXPECT_EQ(message([&] { check_axes({0, -3}, 3, marked); }),
            "axis names -3 twice, expected distinct axes");
  EXPECT_EQ(message([&] { check_axes({}, 3, marked); }), "axis is (), expected at least one axis");
}

TEST(CheckNumbers, RefuseWhatIsNoNumber) {
  EXPECT_EQ(message([] { check_finite("momentum", INFINITY); }),
            "momentum is inf, expected a finite number");
  EXPECT_EQ(message([] { check_at_least("eps", NAN, 0.0); }),
            "eps is nan, expected a finite number >= 0");
}

TEST(CheckNumbers, RefuseWhatIsOutOfBounds) {
  const auto text = [](double value, const Bounds& bounds, bool training = false) {
    return message([&] { check_bounds("a", value, bounds, training); });
  };
  EXPECT_EQ(text(-1, kNotNegative), "a is -1, expected a finite number >= 0");
  EXPECT_EQ(text(INFINITY, kNotNegative), "a is inf, expected a finite number >= 0");
  EXPECT_EQ(text(NAN, kNotNegative), "a is nan, expected a finite number >= 0");
  EXPECT_EQ(text(0.5, kAtLeastOne), "a is 0.5, expected a finite number >= 1");
  EXPECT_EQ(text(0, kPositiveInTraining, true),
            "a is 0, expected a finite number > 0 when training");
  EXPECT_EQ(text(1.5, kFraction), "a is 1.5, expected a finite number from 0 to 1");
  EXPECT_EQ(text(0.5, kOrder), "a is 0.5, expected a number >= 1 or infinity");
  EXPECT_EQ(text(NAN, kOrder), "a is nan, expected a number >= 1 or infinity");
  EXPECT_EQ(text(-INFINITY, kAny), "a is -inf, expected a finite number");
  EXPECT_NO_THROW(check_bounds("a", 0, kNotNegative, true));
  EXPECT_NO_THROW(check_bounds("a", 0, kPositiveInTraining, false));
  EXPECT_NO_THROW(check_bounds("a", 1, kFraction, true));
  EXPECT_NO_THROW(check_bounds("a", INFINITY, kOrder, true));
  for (const double order : {1.5, 3.0, 0.0, double(-INFINITY), double(NAN)}) {
    EXPECT_EQ(text(order, kNormOrder),
              "a is " + std::to_string(order) + ", expected 1, 2 or infinity");
  }
  for (const double order : {1.0, 2.0, double(INFINITY)}) {
    EXPECT_NO_THROW(check_bounds("a", order, kNormOrder, false));
  }
}

}  // namespace
}  // namespace normcore
