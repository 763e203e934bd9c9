// Argument checks: overlap() against brute force, and the words of the errors.
#include "checks.h"

#include <gtest/gtest.h>

#include <set>

#include "normcore/errors.h"
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

TEST(Overlap, NeverMissesASharedElement) {
  Random random(2);
  int shared = 0;
  for (int trial = 0; trial < 20'000; ++trial) {
    const auto [a, b] = two_slices(random, /*alike=*/false);
    if (!share(a, b)) continue;
    ++shared;
    ASSERT_TRUE(overlap(a.view, b.view))
        << "shapes " << shape_text(a.view) << " and " << shape_text(b.view);
  }
  EXPECT_GT(shared, 1000);
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

TEST(CheckOutput, AllowsXItselfAndNothingBetween) {
  float x[12] = {};
  const ConstTensor in(x, {6});
  EXPECT_NO_THROW(check_output("out", Tensor(x, {6}), in, /*may_be_x=*/true));
  EXPECT_NO_THROW(check_output("out", Tensor(x + 6, {6}), in, true));
  EXPECT_EQ(message([&] { check_output("h", Tensor(x, {6}), in, /*may_be_x=*/false); }),
            "h overlaps x in memory, expected memory of its own");
  EXPECT_EQ(message([&] { check_output("out", Tensor(x + 1, {6}), in, true); }),
            "out overlaps x in memory, expected x itself or memory of its own");
  EXPECT_EQ(message([&] { check_output("out", Tensor(x + 5, {6}, {-1}), in, true); }),
            "out overlaps x in memory, expected x itself or memory of its own");
}

TEST(CheckOutput, RefusesOtherShapesTypesAndBroadcasts) {
  float x[12] = {}, y[12] = {};
  double d[6] = {};
  EXPECT_EQ(message([&] { check_output("out", Tensor(y, {5}), ConstTensor(x, {6}), true); }),
            "out has shape (5,), expected (6,): x's");
  EXPECT_EQ(message([&] { check_output("out", Tensor(d, {6}), ConstTensor(x, {6}), true); }),
            "out has dtype float64, expected float32: x's");
  EXPECT_EQ(message([&] {
              check_output("out", Tensor(y, {2, 3}, {0, 1}), ConstTensor(x, {2, 3}), true);
            }),
            "out is broadcast along axis 0, expected memory of its own for every element");
  EXPECT_NO_THROW(check_output("out", Tensor(y, {1, 3}, {0, 1}), ConstTensor(x, {1, 3}), true));
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
  EXPECT_EQ(message([] { check_eps(-1, false); }), "eps is -1, expected a finite number >= 0");
  EXPECT_EQ(message([] { check_eps(0, true); }),
            "eps is 0, expected a finite number > 0 when training");
  EXPECT_EQ(message([] { check_eps(NAN, false); }), "eps is nan, expected a finite number >= 0");
  EXPECT_EQ(message([] { check_finite("momentum", INFINITY); }),
            "momentum is inf, expected a finite number");
  EXPECT_NO_THROW(check_eps(0, false));
}

}  // namespace
}  // namespace normcore
