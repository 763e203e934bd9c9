// The kernels with barriers, launched by hand with teams, blocks and clusters that are small, so
// that every kind of team takes part in seconds: a part of a warp, warps of a block, several teams
// with barriers, clusters. The pipeline takes its teams by the length of a row, and clusters only
// where a row is long.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "by_hand.h"
#include "cuda/columns.cuh"
#include "cuda/pools.cuh"
#include "cuda/rows.cuh"
#include "cuda/spread.cuh"
#include "cuda/together.cuh"
#include "normcore/methods/layer_norm.h"
#include "reports.h"

namespace normcore::cuda {
namespace {

using Formula = Standardize<Pool::instance, false>;

constexpr Formula::Params kParams{1e-5};
constexpr int kPacks = 2;  // that a thread holds of a row or pool

// How a kernel is launched: `of_block` teams of `threads` threads each; a team may have as many in
// every block of a cluster, and is then alone in its block. Powers of two.
struct Teams {
  int threads, of_block, cluster;

  Team team() const {
    return {std::countr_zero(unsigned(threads)), std::countr_zero(unsigned(cluster)), nullptr};
  }
  unsigned block() const { return unsigned(threads * of_block); }
  unsigned blocks_for(Index rows) const {
    return unsigned((rows + of_block - 1) / of_block * cluster);
  }
};

// ---- rows

struct RowCase {
  Index rows;
  int n, offset;  // the row begins `offset` elements past a boundary of 16 bytes
  Teams teams;
};
void PrintTo(const RowCase& c, std::ostream* out) {
  *out << c.rows << " rows of " << c.n << " + " << c.offset << ", " << c.teams.of_block
       << " teams of " << c.teams.threads << ", clusters of " << c.teams.cluster;
}

template <bool kWhole, bool kCluster>
void run_rows(const RowCase& c) {
  const Index end = c.rows * c.n + c.offset;
  Values x = numbers(end), dy = x, y(x.size(), NAN), weight = numbers(c.n), bias = weight;
  Doubles mean(std::size_t(c.rows), NAN), var = mean, rstd = mean;
  const RowParameters parameters{{weight.data(), 1}, {bias.data(), 0}, 0, false};

  RowsForward f{};
  f.rows = c.rows;
  f.n = c.n;
  f.inverse_n = 1 / double(c.n);
  f.x = {x.data() + c.offset, c.n};
  f.y = {y.data() + c.offset, c.n};
  f.parameters = parameters;
  f.out.mean = column(mean);
  f.out.var = column(var);
  f.out.rstd = column(rstd);
  const auto forward = [&] {
    launch(c.teams.blocks_for(c.rows), c.teams.block(), c.teams.cluster,
           rows_forward<Formula, float, kPacks, kWhole, kCluster>, f, kParams, c.teams.team());
  };
  forward();
  const Values input = x, apart(y.begin() + c.offset, y.end());
  f.y.data = x.data() + c.offset;  // in place
  forward();
  EXPECT_EQ(Values(x.begin() + c.offset, x.end()), apart);
  EXPECT_TRUE(finite(apart) && finite(mean) && finite(var) && finite(rstd));
  x = input;

  constexpr Index kParts = 2;  // blocks, or clusters, that walk the rows
  for (const bool saved : {true, false}) {
    Values dx(x.size(), NAN), dweight(std::size_t(kParts * c.n), NAN), dbias = dweight;
    RowsBackward<float> b{};
    b.rows = c.rows;
    b.n = c.n;
    b.inverse_n = f.inverse_n;
    b.x = {x.data() + c.offset, c.n};
    b.dy = {dy.data() + c.offset, c.n};
    b.dx = {dx.data() + c.offset, c.n};
    b.parameters = parameters;
    b.saved = {saved ? mean.data() : nullptr, saved ? var.data() : nullptr, 1};
    b.dweight = dweight.data();
    b.dbias = dbias.data();
    launch(unsigned(kParts * c.teams.cluster), c.teams.block(), c.teams.cluster,
           rows_backward<Formula, float, kPacks, kWhole, kCluster>, b, kParams, c.teams.team());
    EXPECT_TRUE(finite(Values(dx.begin() + c.offset, dx.end())));

    Doubles sums(std::size_t(c.n), NAN), sums_of_bias = sums;
    launch(dim3(unsigned((c.n + 31) / 32), 2), 32 * kSumWarps, 1, sum_parameter_rows<float>,
           ParameterSums<float>{dweight.data(), column(sums)},
           ParameterSums<float>{dbias.data(), column(sums_of_bias)}, kParts, Index(c.n));
    EXPECT_TRUE(finite(sums) && finite(sums_of_bias));
  }
}

class Rows : public ::testing::TestWithParam<RowCase> {};

TEST_P(Rows, HaveNoRaces) {
  const RowCase& c = GetParam();
  const int before = races::reports();
  const bool whole = c.n % 4 == 0 && c.offset == 0;
  if (c.teams.cluster > 1) {
    whole ? run_rows<true, true>(c) : run_rows<false, true>(c);
  } else {
    whole ? run_rows<true, false>(c) : run_rows<false, false>(c);
  }
  EXPECT_EQ(races::reports(), before);
}
INSTANTIATE_TEST_SUITE_P(
    Teams, Rows,
    ::testing::Values(RowCase{37, 29, 0, {4, 16, 1}}, RowCase{19, 64, 0, {8, 8, 1}},
                      RowCase{9, 61, 1, {16, 2, 1}}, RowCase{7, 250, 3, {32, 4, 1}},
                      RowCase{5, 500, 0, {64, 2, 1}}, RowCase{5, 1000, 1, {128, 1, 1}},
                      RowCase{5, 700, 0, {64, 1, 2}}, RowCase{3, 1003, 2, {64, 1, 4}}));

// ---- pools

// Groups of `members` channels of `count` elements.
struct PoolCase {
  Index groups;
  int members;
  Index count;
  Teams teams;
};
void PrintTo(const PoolCase& c, std::ostream* out) {
  *out << c.groups << " groups of " << c.members << " x " << c.count << ", " << c.teams.of_block
       << " teams of " << c.teams.threads << ", clusters of " << c.teams.cluster;
}

class Pools : public ::testing::TestWithParam<PoolCase> {};

TEST_P(Pools, HaveNoRaces) {
  const PoolCase& c = GetParam();
  const int before = races::reports();
  const Index cells = c.groups * c.members;
  Values x = numbers(cells * c.count), dy = x, y(x.size(), NAN);
  Doubles weight(std::size_t(cells), 1.5), bias(weight.size(), 0.5);
  Doubles mean(std::size_t(c.groups), NAN), var = mean, rstd = mean;
  HeldPools p{};
  p.g.outer = 1;
  p.g.cells = cells;
  p.g.by_cells = Division(cells);
  p.g.count = p.g.piece = c.count;
  p.g.pieces = 1;
  p.g.space_dims = 1;
  p.g.space_sizes[0] = c.count;
  p.shape = {Extent::group, 1, c.groups, c.members, double(c.count) * c.members};
  p.members = c.members;
  p.packs = int((c.count + 3) / 4);
  p.inverse_count = 1 / p.shape.count;
  auto view = [&](Values& a) {
    View v{};
    v.data = a.data();
    v.cell = c.count;
    v.space[0] = 1;
    return v;
  };
  StatisticsColumns out;
  out.mean = column(mean);
  out.var = column(var);
  out.rstd = column(rstd);
  launch(c.teams.blocks_for(c.groups), c.teams.block(), c.teams.cluster,
         pool_forward<Formula, float, kPacks>, p, view(x), view(y), kParams, c.teams.team(),
         weight.data(), bias.data(), out);
  EXPECT_TRUE(finite(y) && finite(mean) && finite(var) && finite(rstd));
  for (const bool saved : {true, false}) {
    Values dx(x.size(), NAN);
    Doubles dweight(weight.size(), NAN), dbias = dweight;
    launch(c.teams.blocks_for(c.groups), c.teams.block(), c.teams.cluster,
           pool_backward<Formula, float, kPacks>, p, view(dy), view(x), view(dx), kParams,
           c.teams.team(), weight.data(),
           SavedStatistics{saved ? mean.data() : nullptr, saved ? var.data() : nullptr, 1},
           MemberGradients{column(dweight), column(dbias)});
    EXPECT_TRUE(finite(dx) && finite(dweight) && finite(dbias));
  }
  EXPECT_EQ(races::reports(), before);
}
INSTANTIATE_TEST_SUITE_P(Teams, Pools,
                         ::testing::Values(PoolCase{5, 3, 29, {32, 4, 1}},
                                           PoolCase{5, 3, 130, {64, 2, 1}},
                                           PoolCase{3, 3, 300, {64, 1, 2}}));

// ---- tiles

// Cells that are neighbours in memory, in rows `gap` elements apart from each other.
struct TileCase {
  Index outer, cells, count, piece, gap;
  int log_across, log_rows;
};
void PrintTo(const TileCase& c, std::ostream* out) {
  *out << c.outer << " x " << c.cells << " cells of " << c.count << " in pieces of " << c.piece
       << ", tiles of " << (1 << c.log_across) << " x " << (1 << c.log_rows);
}

// How the tiles of a case lie.
struct TilePlan {
  Geometry g{};
  TileShape shape;
  unsigned tiles, threads;

  explicit TilePlan(const TileCase& c);
};
TilePlan::TilePlan(const TileCase& c) {
  g.outer = c.outer;
  g.cells = c.cells;
  g.count = c.count;
  g.piece = c.piece;
  g.pieces = (c.count + c.piece - 1) / c.piece;
  g.outer_dims = g.space_dims = 1;
  g.outer_sizes[0] = c.outer;
  g.space_sizes[0] = c.count;
  g.by_pieces = Division(g.pieces);
  g.by_cells = Division(c.cells);
  g.by_outer[0] = Division(c.outer);
  const Index of_tile = Index(kPack<float>) << c.log_across;
  const Index across = (c.cells + of_tile - 1) / of_tile;
  shape = {c.log_across, c.log_rows, Division(across)};
  tiles = unsigned(c.outer * g.pieces * across);
  threads = 1u << (c.log_across + c.log_rows);
}
View tile_view(const TileCase& c, Values& a) {
  View v{};
  v.data = a.data();
  v.cell = 1;
  v.outer[0] = c.count * (c.cells + c.gap);
  v.space[0] = c.cells + c.gap;
  return v;
}

template <bool kWhole>
void run_tiles(const TileCase& c) {
  const TilePlan plan(c);
  const Geometry& g = plan.g;
  auto view = [&](Values& a) { return tile_view(c, a); };
  auto start = [&](auto kernel, const auto&... args) {
    launch(plan.tiles, plan.threads, 1, kernel, g, plan.shape, args...);
  };
  Values x = numbers(c.outer * c.count * (c.cells + c.gap)), dy = x, h(x.size(), 0), dx = h;
  const Values table = numbers(c.outer * c.cells), by_element = numbers(c.count);
  Doubles first(std::size_t(c.outer * c.cells * g.pieces), NAN), second = first;
  double *const to = first.data(), *const also_to = second.data();
  const float *const weight = by_element.data(), *const none = nullptr,
                     *const of_cells = table.data();
  start(tile_moments<false, float, kWhole>, view(x), to, also_to);
  EXPECT_TRUE(finite(first) && finite(second));
  start(tile_sums<float, kWhole>, view(dy), view(x), of_cells, of_cells, weight, to, also_to);
  EXPECT_TRUE(finite(first) && finite(second));
  start(tile_add<float, kWhole>, view(x), view(dy), view(h));
  start(tile_grad<float, kWhole, false>, view(dy), view(x), view(h), view(dx),
        GradientCoefficients<float>{of_cells, of_cells, of_cells, of_cells, of_cells}, none);
  start(tile_apply<float, kWhole, Coefficients<float>>, view(x), view(x),
        Coefficients<float>{of_cells, of_cells, of_cells}, weight, weight);  // in place
  EXPECT_TRUE(finite(h) && finite(dx) && finite(x));
}

// Three blocks that wait for each other take all tiles, and a channel's statistics are of all rows.
template <bool kWhole>
void run_tiles_together(const TileCase& c) {
  using Batch = Standardize<Pool::batch, false>;
  constexpr int kBlocks = 3;
  const TilePlan plan(c);
  const Geometry& g = plan.g;
  const Index cells = c.outer * c.cells;
  const PoolShape pool{Extent::column, 1, c.cells, 1, double(c.outer * c.count)};
  auto view = [&](Values& a) { return tile_view(c, a); };
  auto doubles = [&](Index n) { return Doubles(std::size_t(n), NAN); };
  auto start = [&](auto kernel, const auto&... args) {
    launch(kBlocks, plan.threads, kBlocks, kernel, args...);
  };
  Values x = numbers(c.outer * c.count * (c.cells + c.gap)), dy = x, y(x.size(), 0), dx = y;
  Doubles parts = doubles(cells * g.pieces), others = parts, mean = doubles(c.cells), var = mean;
  Values table[3];
  for (Values& v : table) v = Values(std::size_t(cells), NAN);
  Source one{};
  one.missing = 1;
  start(tiles_forward<Batch, float, kWhole>, g, plan.shape, plan.tiles, view(x), view(y),
        Summers(c.outer * g.pieces), pool, parts.data(), others.data(), kParams, one, Source{},
        StatisticsColumns{column(mean), column(var), {}, {}, {}},
        ForwardTable<float>{table[0].data(), table[1].data(), table[2].data()});
  EXPECT_TRUE(finite(y) && finite(mean) && finite(var));
  GradientTable<float> t{};
  std::vector<Doubles> tables(16, doubles(cells));  // with room for every type
  std::size_t used = 0;
  t.each([&]<class N>(N*& array) { array = reinterpret_cast<N*>(tables[used++].data()); });
  t.center = reinterpret_cast<float*>(tables[used++].data());
  PoolTables<Batch> pools{};
  pools.shape[0] = pool;
  pools.mean[0] = {mean.data()};
  pools.var[0] = {var.data()};
  Doubles sum_u = doubles(cells), sum_1 = sum_u, dweight = doubles(c.cells), dbias = dweight;
  const GradientSolver<Batch, float> solver{g,
                                            pools,
                                            kParams,
                                            one,
                                            false,
                                            false,
                                            t,
                                            parts.data(),
                                            others.data(),
                                            sum_u.data(),
                                            sum_1.data(),
                                            {},
                                            {},
                                            {}};
  const Team team{5, 0, nullptr};
  start(tiles_backward<Batch, float, kWhole>, plan.shape, plan.tiles, view(dy), view(x), view(dx),
        team, solver, Summers(c.outer), column(dweight), column(dbias));
  EXPECT_TRUE(finite(dx) && finite(dweight) && finite(dbias));
}

class Tiles : public ::testing::TestWithParam<TileCase> {};

TEST_P(Tiles, HaveNoRaces) {
  const TileCase& c = GetParam();
  const int before = races::reports();
  if ((c.cells + c.gap) % 4 == 0 && c.cells % 4 == 0) {
    run_tiles<true>(c);
    run_tiles_together<true>(c);
  } else {
    run_tiles<false>(c);
    run_tiles_together<false>(c);
  }
  EXPECT_EQ(races::reports(), before);
}
INSTANTIATE_TEST_SUITE_P(Shapes, Tiles,
                         ::testing::Values(TileCase{2, 12, 37, 20, 0, 0, 6},
                                           TileCase{1, 72, 9, 9, 4, 3, 3},
                                           TileCase{2, 5, 150, 75, 1, 1, 5}));
// ---- the k-th largest

// From lists of what is above the k-th largest peak of five pieces, or, where a list has no room,
// from the elements.
class Selections : public ::testing::TestWithParam<Index> {};

TEST_P(Selections, HasNoRaces) {
  const int before = races::reports();
  constexpr Index kCells = 2, kPieces = 5, kPiece = 130, kCount = kPieces * kPiece, k = 5;
  Values x = numbers(kCells * kCount);
  Values center(kCells, 0), unit(kCells, 1), threshold(kCells, NAN);
  Geometry g{};
  g.outer = 1;
  g.cells = kCells;
  g.by_cells = Division(kCells);
  g.count = kCount;
  g.piece = kPiece;
  g.pieces = kPieces;
  g.by_pieces = Division(kPieces);
  g.space_dims = 1;
  g.space_sizes[0] = kCount;
  View view{};
  view.data = x.data();
  view.cell = kCount;
  view.space[0] = 1;
  const SpreadTable<float> t{center.data(),    center.data(), unit.data(),
                             threshold.data(), center.data(), 0};
  const Index room = GetParam();
  Values values(std::size_t(kCells * room), NAN), sorted = values;
  std::vector<unsigned> found(kCells, 99);
  const Outliers<float> list{values.data(), sorted.data(), found.data(), room};
  Doubles sums(std::size_t(kMostTallies * kCells * kPieces), NAN);
  Doubles tallies(std::size_t(kMostTallies * kCells), NAN);
  const Teams teams{32, 2, 1};
  launch(teams.blocks_for(kCells * kPieces), teams.block(), 1,
         cell_tally<float, kPacks, Form::packed, true>, g, view, teams.team(), t, Outliers<float>{},
         sums.data());
  launch(kCells, kSelectThreads, 1, reach_by_peaks<float>, g, k, sums.data(), t, list);
  launch(teams.blocks_for(kCells * kPieces), teams.block(), 1,
         cell_tally<float, kPacks, Form::packed, false>, g, view, teams.team(), t, list,
         sums.data());
  launch(kCells, kSelectThreads, 1, select_largest<float>, g, view, k, sums.data(), list, t,
         tallies.data());
  for (Index c = 0; c < kCells; ++c) {
    Values sizes(x.begin() + c * kCount, x.begin() + (c + 1) * kCount);
    for (float& v : sizes) v = std::fabs(v);
    std::sort(sizes.begin(), sizes.end(), std::greater<>());
    EXPECT_EQ(threshold[std::size_t(c)], sizes[k - 1]);
    EXPECT_GE(tallies[std::size_t(c * kMostTallies + 3)], 1);
  }
  EXPECT_EQ(races::reports(), before);
}
INSTANTIATE_TEST_SUITE_P(Lists, Selections, ::testing::Values(Index(100), Index(1)));

}  // namespace
}  // namespace normcore::cuda
