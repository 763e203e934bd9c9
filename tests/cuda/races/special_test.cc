// As kernels_test.cc: the kernels of special/ that have barriers, launched by hand with small
// blocks and clusters.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "by_hand.h"
#include "cuda/local_response.cuh"
#include "cuda/mixing.cuh"
#include "cuda/spectral.cuh"
#include "reports.h"

namespace normcore::cuda {
namespace {

// ---- tiles of channels

// A batch of images, or channels-last. Blocks write `segment` channels each.
struct ResponseCase {
  Index pixels, channels, segment, before, after;
  bool last;
};
void PrintTo(const ResponseCase& c, std::ostream* out) {
  *out << c.pixels << " pixels of " << c.channels << " channels, " << c.segment << " of a block";
}

// Of operands without gaps.
ChannelLayout layout_of(Index channels, Index pixels, bool last) {
  ChannelLayout layout;
  layout.channels = channels;
  layout.last = last;
  layout.pixels.dims = 1;
  layout.pixels.count = layout.pixels.size[0] = pixels;
  for (int o = 0; o < 3; ++o) {
    layout.pixels.stride[o][0] = last ? channels : 1;
    layout.step[o] = last ? 1 : pixels;
  }
  return layout;
}

template <bool kBackward, bool kLast>
void run_response(const ResponseCase& c) {
  Values x = numbers(c.pixels * c.channels), dy = x, out(x.size(), NAN);
  const ChannelTile tile{layout_of(c.channels, c.pixels, kLast), c.segment, c.before, c.after};
  const ResponseFormula formula{1, 0.1, 0.75, 1e30};
  const dim3 blocks(unsigned((c.pixels + kPixels - 1) / kPixels),
                    unsigned((c.channels + c.segment - 1) / c.segment));
  launch(blocks, kBlock, 1, channels_kernel<float, kBackward, kLast>, tile, x.data(), dy.data(),
         out.data(), formula);
  EXPECT_TRUE(finite(out));
}

class Response : public ::testing::TestWithParam<ResponseCase> {};

TEST_P(Response, HasNoRaces) {
  const ResponseCase& c = GetParam();
  const int before = races::reports();
  c.last ? run_response<false, true>(c) : run_response<false, false>(c);
  c.last ? run_response<true, true>(c) : run_response<true, false>(c);
  EXPECT_EQ(races::reports(), before);
}
INSTANTIATE_TEST_SUITE_P(Tiles, Response,
                         ::testing::Values(ResponseCase{35, 9, 5, 2, 1, false},
                                           ResponseCase{5, 37, 37, 1, 2, true}));

// ---- products over the channels of pixels

struct MixtureCase {
  Index channels, pixels, splits;
  bool last;
};
void PrintTo(const MixtureCase& c, std::ostream* out) {
  *out << c.pixels << " pixels of " << c.channels << " channels, " << c.splits << " splits";
}

template <bool kFew>
void run_mixture(const MixtureCase& c) {
  using Tile = ProductTile<kFew>;
  using Outer = OuterTile<kFew>;
  static_assert(std::max(Tile::kBytes, Outer::kBytes) <= kTestBytes);
  const Index n = c.channels, size = n * c.pixels;
  const dim3 blocks(unsigned(ceil_div(c.pixels, Index(Tile::kPixels))),
                    unsigned(ceil_div(n, Index(Tile::kRows))));
  const Index outer = ceil_div(n, Index(Outer::kChannels));
  const Values x = numbers(size), dy = x;
  Values y(x.size(), NAN), dx = y;
  const Doubles weights(std::size_t(n * n), 0.1), ones(std::size_t(n), 1);
  Doubles t(x.size(), NAN), rest = t, of_channels(std::size_t(blocks.x * 2 * n), NAN);
  Doubles of_weights(std::size_t(c.splits * n * n), NAN);
  Doubles of_a(blocks.x * blocks.y, NAN), of_e = of_a;
  const Mixture m{layout_of(n, c.pixels, c.last),
                  weights.data(),
                  ones.data(),
                  ones.data(),
                  2,
                  1,
                  0.5,
                  0,
                  c.pixels};
  MixingArrays<float> arrays{
      x.data(),           dy.data(),         y.data(),    nullptr,     t.data(), rest.data(),
      of_channels.data(), of_weights.data(), of_a.data(), of_e.data(), false};
  auto product = [&](auto kernel) { launch(blocks, kBlock, 1, kernel, m, arrays); };
  product(product_kernel<float, Product::kY, kFew>);
  EXPECT_TRUE(finite(y));
  product(product_kernel<float, Product::kTerms, kFew>);
  launch(dim3(unsigned(outer * outer), unsigned(c.splits)), kBlock, 1, outer_kernel<float, kFew>, m,
         arrays, c.splits);
  arrays.out = dx.data();
  product(product_kernel<float, Product::kGradient, kFew>);
  EXPECT_TRUE(finite(dx) && finite(of_channels) && finite(of_weights));
  EXPECT_TRUE(finite(of_a) && finite(of_e));

  Doubles sums(std::size_t(2 * n), NAN), a(1, NAN);
  const Folds folds{{{of_channels.data(), Index(blocks.x), 2 * n, sums.data(), 1},
                     {of_a.data(), Index(of_a.size()), 1, a.data(), 1}}};
  launch(dim3(unsigned(ceil_div(2 * n, Index(kWarps))), 2), kBlock, 1, fold_kernel, folds);
  EXPECT_TRUE(finite(sums) && finite(a));
}

class Mixtures : public ::testing::TestWithParam<MixtureCase> {};

TEST_P(Mixtures, HaveNoRaces) {
  const MixtureCase& c = GetParam();
  const int before = races::reports();
  c.channels <= kFewChannels ? run_mixture<true>(c) : run_mixture<false>(c);
  EXPECT_EQ(races::reports(), before);
}
INSTANTIATE_TEST_SUITE_P(Tiles, Mixtures,
                         ::testing::Values(MixtureCase{5, 261, 2, false},
                                           MixtureCase{5, 261, 2, true},
                                           MixtureCase{20, 133, 2, false},
                                           MixtureCase{20, 133, 2, true},
                                           MixtureCase{66, 9, 1, false}));

// ---- sums per channel

__global__ void sums_of_channels(ChannelSums sums, const float* x, double* partial) {
  sums.run<2>(partial, [&](Index c, Index n, double (&to)[2]) {
    const double v = double(x[sums.last ? n * sums.channels + c : c * sums.positions + n]);
    to[0] += v;
    to[1] += v * v;
  });
}

TEST(SumsOfChannels, HaveNoRaces) {
  const int before = races::reports();
  const Values x = numbers(3 * 2100);
  for (const bool last : {false, true}) {
    const ChannelSums sums(3, 2100, last);
    ASSERT_EQ(sums.splits, 2);
    Doubles partial(2 * 2 * 3, NAN);
    launch(dim3(1, 2), kBlock, 1, sums_of_channels, sums, x.data(), partial.data());
    EXPECT_TRUE(finite(partial));
  }
  EXPECT_EQ(races::reports(), before);
}

// ---- power iteration

// A matrix whose rows are packs; `along` blocks share a row.
struct PowerCase {
  Index rows;
  int packs;
  unsigned threads, blocks, along;
  int crew;  // blocks that make the vectors
};
void PrintTo(const PowerCase& c, std::ostream* out) {
  *out << c.rows << " rows of " << c.packs << " packs, " << c.blocks << " x " << c.along
       << " blocks of " << c.threads << ", then " << c.crew;
}

template <int P>
void run_power(const PowerCase& c) {
  const Index cols = c.packs * kPack<float>;
  alignas(16) static float memory[1 << 16];
  ASSERT_LE(c.rows * cols, 1 << 16);
  const Values elements = numbers(c.rows * cols);
  std::copy(elements.begin(), elements.end(), memory);
  const auto* a = reinterpret_cast<const uint4*>(memory);
  Values u(std::size_t(c.rows), 0), v(std::size_t(cols), 0), random = u, narrow(u.size(), NAN);
  Values shares(std::size_t(c.blocks * cols), NAN), tops(c.blocks * c.along, NAN);
  Doubles of_rows(std::size_t(c.rows * c.along), NAN), of_cols(std::size_t(cols), NAN);
  PowerNumbers numbers{};
  const PowerNumbers* none = nullptr;
  Settle<float> settling{&numbers,
                         {c.rows, cols},
                         {of_rows.data(), of_cols.data()},
                         {u.data(), v.data()},
                         kRowSide,
                         kColSide,
                         true,
                         true,
                         3,
                         -1,
                         -1,
                         0,
                         c.crew};
  Sweep<float> s{a,        c.rows,   cols,           c.packs,       c.packs,    nullptr,
                 v.data(), u.data(), of_rows.data(), shares.data(), tops.data()};
  auto sweep = [&](auto kernel) { launch(dim3(c.blocks, c.along), c.threads, 1, kernel, s); };
  auto by_crew = [&](auto kernel, const auto&... args) {
    launch(dim3(unsigned(c.crew)), kCrewThreads, c.crew, kernel, args...);
  };
  auto collect = [&](const PowerNumbers* n) {
    launch(dim3(unsigned((cols + 31) / 32)), 32 * kCollectWarps, 1, collect_shares<float>,
           shares.data(), Index(c.blocks), cols, cols, n, of_cols.data());
  };
  // A start of zeros, which is replaced.
  sweep(sweep_matrix<float, P, false, true>);
  collect(none);
  by_crew(begin_iterations<float>, Begin<float>{settling,
                                                a,
                                                cols,
                                                tops.data(),
                                                Index(tops.size()),
                                                {},
                                                false,
                                                kRowSide,
                                                0,
                                                0,
                                                random.data(),
                                                of_cols.data()});
  EXPECT_TRUE(finite(tops) && finite(v) && finite(of_cols) && numbers.done == 0);
  s.numbers = &numbers;
  for (int i = 0; i < 2; ++i) {
    if (c.along == 1) {
      sweep(sweep_matrix<float, P, true, true>);
    } else {
      sweep(sweep_matrix<float, P, true, false>);
      launch(dim3(unsigned(c.rows)), 32, 1, collect_dots<float>, of_rows.data(), Index(c.along),
             c.rows, s.numbers, narrow.data());
      s.y = narrow.data();
      sweep(sweep_matrix<float, P, false, true>);
    }
    collect(s.numbers);
    by_crew(settle<float>, settling);
  }
  EXPECT_TRUE(finite(u) && finite(v) && numbers.sigma > 0);
  // All iterations at once, from either side.
  Doubles of_blocks(std::size_t(c.crew * cols), NAN);
  const HeldShape<float> shape(c.rows, c.packs, c.packs, kPack<float>, c.crew);
  ASSERT_LE(shape.bytes(), kTestBytes);
  for (const Side start : {kRowSide, kColSide}) {
    settling.start = start;
    numbers.iterations = numbers.done = 0;
    by_crew(iterate_held<float>, Held<float>{settling, shape, a, of_blocks.data()});
    EXPECT_TRUE(finite(u) && finite(v) && finite(of_blocks) && numbers.iterations == 3);
  }
  by_crew(random_vector<float>, v.data(), cols, 0, c.crew);
  by_crew(evaluate<float>, settling, u.data(), v.data());
  EXPECT_TRUE(std::isfinite(numbers.sigma));

  const RowPieces pieces{c.rows, c.packs, c.packs, c.packs, 5};
  const dim3 blocks(unsigned((c.rows + 31) / 32), unsigned((c.packs + 31) / 32));
  Doubles parts(blocks.x * blocks.y, NAN);
  launch(blocks, kCrewThreads, 1, inner_rows<float>, a, a, pieces, parts.data());
  launch(dim3(1), kCrewThreads, 1, settle_gradient<float>, parts.data(), Index(parts.size()),
         &numbers.sigma, 0.0, u.data(), c.rows, &numbers, narrow.data());
  EXPECT_TRUE(finite(parts) && finite(narrow));
}

class Power : public ::testing::TestWithParam<PowerCase> {};

TEST_P(Power, HasNoRaces) {
  const PowerCase& c = GetParam();
  const int before = races::reports();
  c.packs <= int(c.threads * c.along) ? run_power<1>(c) : run_power<4>(c);
  EXPECT_EQ(races::reports(), before);
}
INSTANTIATE_TEST_SUITE_P(Matrices, Power,
                         ::testing::Values(PowerCase{37, 60, 64, 2, 1, 1},
                                           PowerCase{9, 250, 64, 2, 1, 2},
                                           PowerCase{9, 290, 64, 1, 2, 2}));

}  // namespace
}  // namespace normcore::cuda
