// The plan: which axes merge, what is rows and what columns, what may be used in place, and that
// the blocks and pieces it cuts cover the table exactly once. Hunts every mistake of geometry,
// without touching the elements of any array.
#include "plan/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "pipeline/forward.h"
#include "plan/round_to_odd.h"
#include "support.h"

namespace normcore {
namespace {

using testing::Random;

// Which arrays and axes a plan is asked for. Roles: one letter per axis, n(outer) c(hannel)
// s(pace).
struct Request {
  std::string roles;
  std::vector<Index> shape;
  std::vector<Index> strides = {};  // of x; contiguous where empty
  std::vector<Index> out = {};      // of a second operand; absent where empty
  std::vector<Pool> pools = {Pool::sample};
  Affinity affinity = Affinity::channel;
  Index groups = 1;
  bool computed = true;
  DType dtype = DType::kFloat32;
  int parameter_axis = -1;
  bool wide_cells = false;
  bool backward = false;  // a third operand, like x
};

Plan plan_of(const Request& r) {
  std::vector<Role> roles;
  for (const char letter : r.roles) {
    roles.push_back(letter == 'n' ? Role::outer : letter == 'c' ? Role::channel : Role::space);
  }
  const ConstTensor x = testing::make_tensor(nullptr, r.dtype, r.shape, r.strides);
  const ConstTensor y = testing::make_tensor(nullptr, r.dtype, r.shape, r.out);
  PlanRequest request{.roles = roles.data(),
                      .affinity = r.affinity,
                      .parameter_axis = r.parameter_axis,
                      .groups = r.groups,
                      .wide_cells = r.wide_cells,
                      .operands = {&x, r.out.empty() ? nullptr : &y, r.backward ? &x : nullptr}};
  for (const Pool pool : r.pools) {
    if (r.computed) request.pools.add(extent_of(pool, r.affinity));
  }
  Plan plan;
  make_plan(request, &plan);
  return plan;
}

// ---- the table

struct PlanCase {
  const char* name;
  Request request;
  Layout layout;
  Index outer, cells, count;
  int outer_dims, space_dims;
  bool direct, direct_out = true;
};
void PrintTo(const PlanCase& c, std::ostream* out) { *out << c.name; }

constexpr Layout kRowsLayout = Layout::rows, kColumns = Layout::columns;
constexpr Affinity kElement = Affinity::element;
const std::vector<Pool> kBatch = {Pool::batch}, kInstance = {Pool::instance},
                        kGroup = {Pool::group}, kBoth = {Pool::batch, Pool::instance};

const PlanCase kPlans[] = {
    // channels first
    {"BatchNCHW", {"ncss", {2, 3, 4, 5}, {}, {}, kBatch}, kRowsLayout, 2, 3, 20, 1, 1, true},
    {"InstanceNCHW", {"ncss", {2, 3, 4, 5}, {}, {}, kInstance}, kRowsLayout, 2, 3, 20, 1, 1, true},
    {"GroupNCHW",
     {"ncss", {2, 6, 4, 5}, {}, {}, kGroup, Affinity::channel, 3},
     kRowsLayout,
     2,
     6,
     20,
     1,
     1,
     true},
    {"BatchNC", {"nc", {7, 3}, {}, {}, kBatch}, kColumns, 1, 3, 7, 0, 1, true},
    {"BatchNCTransposed", {"nc", {7, 3}, {1, 7}, {}, kBatch}, kRowsLayout, 1, 3, 7, 0, 1, true},
    {"OneSample", {"ncss", {1, 3, 4, 5}, {}, {}, kBatch}, kRowsLayout, 1, 3, 20, 0, 1, true},
    {"OneChannel", {"ncss", {2, 1, 4, 5}, {}, {}, kBatch}, kRowsLayout, 2, 1, 20, 1, 1, true},
    {"OnePixel", {"ncss", {2, 3, 1, 1}, {}, {}, kBatch}, kColumns, 1, 3, 2, 0, 1, true},
    {"SizeOneAxesBetween",
     {"ncsss", {2, 3, 1, 4, 1}, {}, {}, kGroup},
     kRowsLayout,
     2,
     3,
     4,
     1,
     1,
     true},
    {"NothingButOnes", {"ncs", {1, 1, 1}, {}, {}, kBatch}, kRowsLayout, 1, 1, 1, 0, 0, true},
    // channels last: as memory order of a logical NCHW, and as the last axis
    {"BatchNHWC",
     {"ncss", {2, 3, 4, 5}, {60, 1, 15, 3}, {}, kBatch},
     kColumns,
     1,
     3,
     40,
     0,
     1,
     true},
    {"BatchLastAxis", {"nssc", {2, 4, 5, 3}, {}, {}, kBatch}, kColumns, 1, 3, 40, 0, 1, true},
    {"GroupNHWC",
     {"ncss", {2, 6, 4, 5}, {120, 1, 30, 6}, {}, kGroup, Affinity::channel, 2},
     kColumns,
     2,
     6,
     20,
     1,
     1,
     true},
    {"InstanceLastAxis", {"nssc", {2, 4, 5, 3}, {}, {}, kInstance}, kColumns, 2, 3, 20, 1, 1, true},
    // Batch and space are one to batch pools alone.
    {"BatchAndInstanceNHWC", {"nssc", {2, 4, 5, 3}, {}, {}, kBoth}, kColumns, 2, 3, 20, 1, 1, true},
    {"GivenNHWC",
     {"nssc", {2, 4, 5, 3}, {}, {}, kInstance, Affinity::channel, 1, false},
     kColumns,
     1,
     3,
     40,
     0,
     1,
     true},
    {"GivenNCHW",
     {"ncss", {2, 3, 4, 5}, {}, {}, kInstance, Affinity::channel, 1, false},
     kRowsLayout,
     2,
     3,
     20,
     1,
     1,
     true},
    // elementwise parameters, any axes
    {"LastAxis",
     {"nns", {4, 6, 8}, {}, {}, {Pool::sample}, kElement},
     kRowsLayout,
     1,
     24,
     8,
     0,
     1,
     true},
    {"LastTwoAxes",
     {"nss", {4, 6, 8}, {}, {}, {Pool::sample}, kElement},
     kRowsLayout,
     1,
     4,
     48,
     0,
     1,
     true},
    {"AllAxes",
     {"sss", {4, 6, 8}, {}, {}, {Pool::sample}, kElement},
     kRowsLayout,
     1,
     1,
     192,
     0,
     1,
     true},
    {"FirstAxis", {"sn", {8, 5}, {}, {}, {Pool::sample}, kElement}, kColumns, 1, 5, 8, 0, 1, true},
    {"MiddleAxis",
     {"nsn", {3, 4, 5}, {}, {}, {Pool::sample}, kElement},
     kColumns,
     3,
     5,
     4,
     1,
     1,
     true},
    {"ChannelsOfNCHW",
     {"nsnn", {2, 3, 4, 5}, {}, {}, {Pool::sample}, kElement},
     kColumns,
     2,
     20,
     3,
     1,
     1,
     true},
    {"FirstAndLastAxis",
     {"sns", {3, 4, 5}, {}, {}, {Pool::sample}, kElement},
     kRowsLayout,
     1,
     4,
     15,
     0,
     2,
     false},
    {"PaddedRows",
     {"nns", {4, 6, 8}, {60, 10, 1}, {}, {Pool::sample}, kElement},
     kRowsLayout,
     1,
     24,
     8,
     0,
     1,
     true},
    {"PaddedPlanes",
     {"nns", {4, 6, 8}, {50, 8, 1}, {}, {Pool::sample}, kElement},
     kRowsLayout,
     4,
     6,
     8,
     1,
     1,
     true},
    {"EveryOtherElement",
     {"ns", {4, 8}, {16, 2}, {}, {Pool::sample}, kElement},
     kRowsLayout,
     1,
     4,
     8,
     0,
     1,
     false},
    // strange strides
    {"BroadcastBatch", {"ncs", {2, 3, 4}, {0, 4, 1}, {}, kGroup}, kRowsLayout, 2, 3, 4, 1, 1, true},
    {"BroadcastSpace", {"ncs", {2, 3, 4}, {3, 1, 0}, {}, kGroup}, kColumns, 2, 3, 4, 1, 1, true},
    {"NegativeSpace",
     {"ncs", {2, 3, 4}, {12, 4, -1}, {}, kGroup},
     kRowsLayout,
     2,
     3,
     4,
     1,
     1,
     false},
    {"NegativeBatch",
     {"ncs", {2, 3, 4}, {-12, 4, 1}, {}, kGroup},
     kRowsLayout,
     2,
     3,
     4,
     1,
     1,
     true},
    {"NegativeChannelsLast",
     {"ncs", {2, 3, 4}, {12, -1, 3}, {}, kGroup},
     kColumns,
     2,
     3,
     4,
     1,
     1,
     false},
    // An axis merges only where every operand has it continue the other.
    {"OutputOfOtherOrder",
     {"ncss", {2, 3, 4, 5}, {}, {60, 1, 15, 3}, kBatch},
     kRowsLayout,
     2,
     3,
     20,
     1,
     1,
     true,
     false},
    {"OutputThatStopsMerging",
     {"nns", {4, 6, 8}, {}, {50, 8, 1}, {Pool::sample}, kElement},
     kRowsLayout,
     4,
     6,
     8,
     1,
     1,
     true},
    {"OutputWithPaddedSpace",
     {"ncss", {2, 3, 4, 5}, {}, {84, 28, 7, 1}, kBatch},
     kRowsLayout,
     2,
     3,
     20,
     1,
     2,
     true,
     false},
};

class Plans : public ::testing::TestWithParam<PlanCase> {};

TEST_P(Plans, TableAndMergedAxes) {
  const PlanCase& c = GetParam();
  const Plan p = plan_of(c.request);
  EXPECT_EQ(p.layout, c.layout);
  EXPECT_EQ(p.outer, c.outer);
  EXPECT_EQ(p.cells, c.cells);
  EXPECT_EQ(p.count, c.count);
  EXPECT_EQ(p.outer_dims, c.outer_dims);
  EXPECT_EQ(p.space_dims, c.space_dims);
  EXPECT_EQ(p.access[0].direct, c.direct);
  if (!c.request.out.empty()) {
    EXPECT_EQ(p.access[1].direct, c.direct_out);
  }
}
INSTANTIATE_TEST_SUITE_P(All, Plans, ::testing::ValuesIn(kPlans),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(PlanParameters, RowsOfTheTableRunAlongAnAxisOfTheirOwn) {
  Request r{"nns", {5, 3, 8}, {}, {}, {Pool::sample}, kElement};
  const Plan shared = plan_of(r);
  EXPECT_FALSE(shared.parameters_by_row);
  EXPECT_EQ(shared.outer * shared.cells, 15);
  for (const Index samples : {5, 1}) {
    r.shape[0] = samples;
    r.parameter_axis = 1;
    const Plan p = plan_of(r);
    EXPECT_TRUE(p.parameters_by_row);
    EXPECT_EQ(p.outer, 3);
    EXPECT_EQ(p.outer_axes[0], 1);
    EXPECT_EQ(p.cells, samples);
    EXPECT_EQ(p.count, 8);
    EXPECT_EQ(p.access[0].outer[0], 8);
    if (samples > 1) {
      EXPECT_EQ(p.access[0].cell, 24);
    }
  }
  r.shape = {5, 1, 8};  // nothing differs along an axis of one
  EXPECT_FALSE(plan_of(r).parameters_by_row);
}

TEST(PlanWideCells, AreTheShortPlanesOfASampleThatIsOneRow) {
  auto plan = [](const char* roles, std::vector<Index> shape, std::vector<Index> strides = {},
                 std::vector<Index> out = {}, std::vector<Pool> pools = kBatch,
                 bool computed = true) {
    Request r{roles, shape, strides, out, pools, Affinity::channel, 1, computed};
    r.wide_cells = true;
    return plan_of(r);
  };
  for (const bool computed : {true, false}) {
    const Plan p = plan("ncss", {16, 5, 3, 4}, {}, {}, kBatch, computed);
    EXPECT_EQ(p.layout, Layout::columns);
    EXPECT_EQ(p.cell_columns, 12);
    EXPECT_EQ(p.outer, 1);
    EXPECT_EQ(p.cells, 5);
    EXPECT_EQ(p.count, 16);
    EXPECT_EQ(p.access[0].cell, 12);
    EXPECT_EQ(p.access[0].space[0], 60);
    EXPECT_TRUE(p.access[0].direct);
  }
  // Samples may lie apart, in any operand, and each in its own way; so may merged axes before them.
  EXPECT_EQ(plan("ncs", {16, 5, 4}, {30, 4, 1}).cell_columns, 4);
  EXPECT_EQ(plan("ncs", {16, 5, 4}, {}, {50, 4, 1}).cell_columns, 4);
  EXPECT_EQ(plan("ncs", {16, 5, 4}, {-20, 4, 1}).cell_columns, 4);
  EXPECT_EQ(plan("nscs", {4, 4, 5, 4}).count, 16);
  EXPECT_EQ(plan("nscs", {4, 4, 5, 4}, {100, 20, 4, 1}).cell_columns, 1);
  EXPECT_EQ(plan("ncs", {16, 1, 4}).cell_columns, 4);
  // Channels that do not follow each other, planes in other orders, long planes, few samples.
  EXPECT_EQ(plan("ncs", {16, 5, 4}, {25, 5, 1}).cell_columns, 1);
  EXPECT_EQ(plan("ncs", {16, 5, 4}, {}, {25, 5, 1}).cell_columns, 1);
  EXPECT_EQ(plan("ncs", {16, 5, 4}, {20, -4, 1}).cell_columns, 1);
  EXPECT_EQ(plan("ncss", {16, 5, 3, 4}, {}, {60, 12, 1, 3}).cell_columns, 1);
  EXPECT_EQ(plan("ncs", {16, 5, 4}, {20, 1, 5}).cell_columns, 1);
  EXPECT_EQ(plan("ncs", {1000, 5, 100}).cell_columns, 100);
  EXPECT_EQ(plan("ncs", {1000, 5, 101}).cell_columns, 1);
  EXPECT_EQ(plan("ncs", {22, 5, 100}).cell_columns, 100);
  EXPECT_EQ(plan("ncs", {21, 5, 100}).cell_columns, 1);
  // Where a sweep is all that there is, shorter ones alone.
  EXPECT_EQ(plan("ncs", {1000, 5, 31}, {}, {}, kBatch, false).cell_columns, 31);
  EXPECT_EQ(plan("ncs", {1000, 5, 32}, {}, {}, kBatch, false).cell_columns, 1);
  EXPECT_EQ(plan("ncss", {16, 5, 7, 7}).cell_columns, 49);
  EXPECT_EQ(plan("ncss", {15, 5, 7, 7}).cell_columns, 1);
  EXPECT_EQ(plan("ncs", {4, 5, 4}).cell_columns, 4);
  EXPECT_EQ(plan("ncs", {3, 5, 4}).cell_columns, 1);
  EXPECT_EQ(plan("nc", {16, 5}).cell_columns, 1);
  // Pools within a sample.
  EXPECT_EQ(plan("ncs", {16, 5, 4}, {}, {}, kInstance).cell_columns, 1);
  EXPECT_EQ(plan("ncs", {16, 5, 4}, {}, {}, kBoth).cell_columns, 1);
  // Whoever does not ask has none.
  EXPECT_EQ(plan_of({"ncs", {16, 5, 4}, {}, {}, kBatch}).cell_columns, 1);
}

TEST(PlanFusion, SmallTensorsAreFusedUnlessStatisticsAreGiven) {
  for (PlanCase c : kPlans) {
    EXPECT_EQ(plan_of(c.request).fused, c.request.computed) << c.name;
  }
}

TEST(PlanFusion, ABatchPoolBeyondAnyCacheTakesTwoSweeps) {
  const Index kMany = Index(1) << 20;
  for (const Request& r : {Request{"ncs", {64, 8, kMany}, {}, {}, kBatch},
                           Request{"nc", {kMany * 64, 8}, {}, {}, kBatch}}) {
    const Plan p = plan_of(r);
    EXPECT_FALSE(p.fused);
    EXPECT_EQ(p.block_outer, p.outer);
    EXPECT_EQ(p.block_cells, p.cells);
  }
}

TEST(PlanFusion, PlanesOfABatchAreSweptInTheOrderOfMemoryUnlessTheRunsOfABlockAreLong) {
  auto plan = [](std::vector<Index> shape, bool computed = true) {
    return plan_of({"ncs", shape, {}, {}, kBatch, Affinity::channel, 1, computed});
  };
  EXPECT_TRUE(plan({4, 256, 784}).fused);     // runs of 22 planes
  EXPECT_TRUE(plan({4, 16, 196}).fused);      // all channels are one block
  EXPECT_FALSE(plan({32, 128, 784}).fused);   // runs of 4 planes
  EXPECT_FALSE(plan({128, 256, 784}).fused);  // of one plane, past the caches
  EXPECT_TRUE(plan({32, 64, 3136}).fused);    // runs of 12 KB past the caches
  for (const bool computed : {true, false}) {
    const Plan p = plan({32, 512, 196}, computed);
    EXPECT_EQ(p.unit_cells, 512);  // whole samples
    EXPECT_EQ(p.piece_outer, 1);
    EXPECT_FALSE(p.backwards);
  }
  EXPECT_EQ(plan({1, 512, 784}, false).unit_cells, 64);  // strips, enough for some threads
  EXPECT_EQ(plan({40, 512, 49}).piece_outer, 3);         // as many as have 128 elements
  EXPECT_EQ(plan({40, 512, 49}, false).piece_outer, 2);
}

TEST(PlanFusion, TallColumnsAreTakenTileByTileWhereThereAreManyAndTheSharedCacheKeepsThem) {
  auto width = [](Index rows, Index columns, DType dtype = DType::kFloat32) -> Index {
    Request r{"nc", {rows, columns}, {}, {}, kBatch};
    r.dtype = dtype;
    const Plan p = plan_of(r);
    return p.fused ? p.block_cells : 0;
  };
  EXPECT_EQ(width(4096, 4096), 128);
  EXPECT_EQ(width(1031, 2111), 128);
  EXPECT_EQ(width(4096, 4096, DType::kBFloat16), 256);
  EXPECT_EQ(width(1024, 8192, DType::kBFloat16), 256);
  EXPECT_EQ(width(256, 1 << 16), 128);
  EXPECT_EQ(width(4097, 4096), 0);  // a tile that is too large
  EXPECT_EQ(width(4096, 2047), 0);  // too few tiles for the threads
  EXPECT_EQ(width(1024, 2048), 0);  // nothing that leaves the shared cache
}

TEST(PlanWork, LongRowsThatShareParametersAreTakenTogether) {
  EXPECT_EQ(plan_of({"ns", {64, 8192}, {}, {}, {Pool::sample}, kElement}).tile_cells, 4);
  EXPECT_EQ(plan_of({"ns", {3, 8192}, {}, {}, {Pool::sample}, kElement}).tile_cells, 3);
  EXPECT_EQ(plan_of({"ncs", {4, 16, 8192}, {}, {}, kInstance}).tile_cells, 1);
}

TEST(PlanWork, RowsThatNoNearCacheHoldsShareTheSumsOfParameters) {
  auto rows_of_block = [](Index rows, Index width, bool backward) {
    Request r{"ns", {rows, width}, {}, {width, 1}, {Pool::sample}, kElement};
    r.backward = backward;
    return plan_of(r).block_cells;
  };
  EXPECT_EQ(rows_of_block(64, 262144, true), 4);
  EXPECT_EQ(rows_of_block(3, 262144, true), 3);
  EXPECT_EQ(rows_of_block(64, 262144, false), 1);
  EXPECT_EQ(rows_of_block(64, 65536, true), 1);
}

TEST(PlanFusion, ManySamplesAreWorkedOnOneByOneHoweverLongTheyAre) {
  EXPECT_TRUE(plan_of({"ns", {1000, 1 << 22}, {}, {}, {Pool::sample}, kElement}).fused);
  EXPECT_TRUE(plan_of({"ncs", {1000, 32, 1 << 16}, {}, {}, kGroup}).fused);
}

TEST(PlanStreaming, OnlyLargeOutputsAreStreamed) {
  EXPECT_FALSE(plan_of({"ns", {100, 1000}, {}, {}, {Pool::sample}, kElement}).stream);
  EXPECT_TRUE(plan_of({"ns", {100'000, 10'000}, {}, {}, {Pool::sample}, kElement}).stream);
}

TEST(PlanOfNothing, IsOneBlockOfNoRowsThatKeepsItsChannels) {
  for (const char* roles : {"ncs", "nsc"}) {
    for (const std::vector<Index>& shape : {std::vector<Index>{0, 3, 4}, {2, 3, 0}, {2, 0, 4}}) {
      for (const std::vector<Pool>& pools : {kBatch, kInstance, kGroup, kBoth}) {
        Request r{roles, shape, {}, {}, pools};
        if (r.roles == "nsc") std::swap(r.shape[1], r.shape[2]);
        const Plan p = plan_of(r);
        EXPECT_EQ(p.cells, shape[1]);
        EXPECT_FALSE(p.fused);
        EXPECT_EQ(p.outer_blocks() * p.cell_blocks(), 1);
        const Block b = block_at(p, 0);
        EXPECT_EQ(b.on, 0);
        EXPECT_EQ(b.kn, shape[1]);
        EXPECT_EQ(Units(p, b).count(), 0);
      }
    }
  }
}

// ---- invariants, over random requests

std::vector<Index> contiguous(const std::vector<Index>& shape) {
  std::vector<Index> strides(shape.size());
  Index step = 1;
  for (std::size_t i = shape.size(); i-- > 0; step *= shape[i]) strides[i] = step;
  return strides;
}

Request random_request(Random& random, Index longest) {
  Request r;
  const bool element = random.integer(0, 1) == 0;
  const int ndim = int(random.integer(element ? 1 : 2, 5));
  for (int i = 0; i < ndim; ++i) r.shape.push_back(random.integer(1, 4));
  // One or two longer axes; the longest stay alone.
  for (Index n = longest; n > 4; n = longest > 5000 ? 0 : n / 10) {
    r.shape[std::size_t(random.integer(0, ndim - 1))] = random.integer(1, n);
  }
  if (element) {
    r.affinity = kElement;
    for (int i = 0; i < ndim; ++i) r.roles += random.integer(0, 1) ? 'n' : 's';
    r.roles[std::size_t(random.integer(0, ndim - 1))] = 's';
  } else {
    r.roles.assign(std::size_t(ndim), 's');
    r.roles[0] = 'n';
    const std::size_t channel = std::size_t(random.integer(1, ndim - 1));
    r.roles[channel] = 'c';
    const Index channels = r.shape[channel];
    while (channels % (r.groups = random.integer(1, channels)) != 0) {
    }
    const std::vector<Pool> choices[] = {kBatch, kInstance, kGroup, kBoth, {Pool::sample}};
    r.pools = choices[random.integer(0, 4)];
    r.computed = random.integer(0, 4) > 0;
  }
  // Axes in any order of memory, some padded, some backwards.
  for (std::vector<Index>* strides : {&r.strides, &r.out}) {
    std::vector<std::size_t> order(r.shape.size());
    std::iota(order.begin(), order.end(), 0);
    for (std::size_t i = order.size(); i-- > 1 && random.integer(0, 2) == 0;) {
      std::swap(order[i], order[std::size_t(random.integer(0, Index(i)))]);
    }
    strides->assign(order.size(), 0);
    Index step = random.integer(0, 5) == 0 ? 2 : 1;
    for (std::size_t i = order.size(); i-- > 0;) {
      (*strides)[order[i]] = random.integer(0, 7) == 0 ? -step : step;
      step *= r.shape[order[i]];
      if (random.integer(0, 5) == 0) step += 3;
    }
  }
  r.dtype = testing::kDTypes[random.integer(0, 3)];
  r.wide_cells = random.integer(0, 1) == 0;
  return r;
}
std::string describe(const Request& r) {
  std::string s = r.roles;
  for (const auto* v : {&r.shape, &r.strides, &r.out}) {
    s += v == &r.shape ? " shape" : v == &r.strides ? " strides" : " out";
    for (const Index i : *v) (s += ' ') += std::to_string(i);
  }
  return (s += " groups ") += std::to_string(r.groups);
}

// Offset of the merged digits of i.
Index offset_of(Index i, int dims, const Index* sizes, const Index* strides) {
  Index offset = 0;
  for (int d = dims - 1; d >= 0; --d) {
    offset += i % sizes[d] * strides[d];
    i /= sizes[d];
  }
  return offset;
}

TEST(PlanInvariants, EveryElementIsReachedOnceAndAtTheSamePlaceInEveryOperand) {
  Random random(1);
  int wide = 0;
  for (int trial = 0; trial < 8000; ++trial) {
    Request r = random_request(random, trial % 2 ? 9 : 40);
    if (trial % 4 == 0 && r.affinity == Affinity::channel) {
      // Contiguous samples, for short planes to be found.
      r.pools = kBatch;
      r.strides = r.out = contiguous(r.shape);
    }
    const Plan p = plan_of(r);
    wide += p.cell_columns > 1;
    ASSERT_EQ(p.outer * p.cells * p.count * p.cell_columns,
              std::accumulate(r.shape.begin(), r.shape.end(), Index(1), std::multiplies<>()))
        << describe(r);
    // Pairs of places in x and out: as the arrays say, and as the plan walks.
    std::map<std::pair<Index, Index>, int> places;
    std::vector<Index> at(r.shape.size(), 0);
    for (bool more = true; more;) {
      ++places[{std::inner_product(at.begin(), at.end(), r.strides.begin(), Index(0)),
                std::inner_product(at.begin(), at.end(), r.out.begin(), Index(0))}];
      more = false;
      for (std::size_t d = at.size(); d-- > 0 && !more;) {
        more = ++at[d] < r.shape[d];
        if (!more) at[d] = 0;
      }
    }
    for (Index o = 0; o < p.outer; ++o) {
      for (Index k = 0; k < p.cells; ++k) {
        for (Index s = 0; s < p.count * p.cell_columns; ++s) {
          Index place[2];
          for (int i = 0; i < 2; ++i) {
            const Access& a = p.access[i];
            place[i] = offset_of(o, p.outer_dims, p.outer_sizes, a.outer) + k * a.cell +
                       offset_of(s / p.cell_columns, p.space_dims, p.space_sizes, a.space) +
                       s % p.cell_columns;
          }
          ASSERT_EQ(--places[std::make_pair(place[0], place[1])], 0) << describe(r);
        }
      }
    }
  }
  EXPECT_GT(wide, 50);
}

TEST(PlanInvariants, DirectOperandsAreContiguousAlongATile) {
  Random random(2);
  for (int trial = 0; trial < 2000; ++trial) {
    const Request r = random_request(random, 9);
    const Plan p = plan_of(r);
    for (const Access& a : {p.access[0], p.access[1]}) {
      if (!a.direct) continue;
      // Its space is one, whatever another operand's is.
      for (int d = 1; d < p.space_dims; ++d) {
        EXPECT_EQ(a.space[d - 1], a.space[d] * p.space_sizes[d]) << describe(r);
      }
      if (p.layout == Layout::rows && p.space_dims > 0) {
        EXPECT_EQ(a.space[p.space_dims - 1], 1) << describe(r);
      }
      if (p.layout == Layout::columns && p.cells > 1) {
        EXPECT_EQ(a.cell, p.cell_columns) << describe(r);
      }
    }
  }
}

TEST(PlanInvariants, BlocksAndPiecesCoverTheTableExactlyOnce) {
  Random random(3);
  int checked = 0;
  for (int trial = 0; trial < 300; ++trial) {
    // Long axes reach beyond chunks, pieces and cache sizes.
    const Request r = random_request(random, trial % 3 == 0 ? 70'000 : 500);
    if (std::accumulate(r.shape.begin(), r.shape.end(), 1.0, std::multiplies<>()) > 1e6) continue;
    ++checked;
    const Plan p = plan_of(r);
    std::vector<unsigned char> seen(std::size_t(p.outer * p.cells * p.count), 0);
    for (Index i = 0; i < p.outer_blocks() * p.cell_blocks(); ++i) {
      const Block b = block_at(p, i);
      const Units units(p, b);
      for (Index u = 0; u < units.count(); ++u) {
        const Range range = units.range(u);
        ASSERT_GT(range.on * range.kn * range.sn, 0) << describe(r);
        for (Index o = range.o0; o < range.o0 + range.on; ++o) {
          for (Index k = range.k0; k < range.k0 + range.kn; ++k) {
            const auto cell = seen.begin() + (o * p.cells + k) * p.count;
            std::for_each(cell + range.s0, cell + range.s0 + range.sn, [](auto& n) { ++n; });
          }
        }
        // What a piece's row of partial results covers follows the block's order.
        ASSERT_LT(units.piece_of(u), units.pieces()) << describe(r);
      }
    }
    ASSERT_EQ(std::count(seen.begin(), seen.end(), 1), Index(seen.size())) << describe(r);
  }
  EXPECT_GT(checked, 200);
}

TEST(PlanInvariants, BlocksAreClosedUnderTheirPools) {
  Random random(4);
  for (int trial = 0; trial < 5000; ++trial) {
    const Request r = random_request(random, 3000);
    const Plan p = plan_of(r);
    for (const Pool pool : r.pools) {
      switch (r.computed ? extent_of(pool, r.affinity) : Extent::cell) {
        case Extent::cell:
          break;
        case Extent::group:
          EXPECT_EQ(p.block_cells % (p.cells / p.groups), 0) << describe(r);
          break;
        case Extent::row:
          EXPECT_EQ(p.block_cells, p.cells) << describe(r);
          break;
        case Extent::column:
          EXPECT_EQ(p.block_outer, p.outer) << describe(r);
          break;
      }
    }
    EXPECT_GE(p.tile_cells, 1);
    EXPECT_LE(p.tile_cells, p.block_cells) << describe(r);
    EXPECT_LE(p.unit_cells, p.block_cells) << describe(r);
  }
}

// The order of summation of a cell: what fixes its bits.
TEST(PlanInvariants, ChunkingOfACellDoesNotDependOnTheNumberOfCells) {
  for (const DType dtype : testing::kDTypes) {
    for (const Index length : {2, 100, 5000, 100'000}) {
      struct Family {
        const char* name;
        Request (*make)(Index cells, Index length);
      };
      const Family families[] = {
          {"rows", [](Index n, Index s) { return Request{"ns", {n, s}, {}, {}, {}, kElement}; }},
          {"gathered rows",
           [](Index n, Index s) { return Request{"ns", {n, s}, {2 * s, 2}, {}, {}, kElement}; }},
          // One column is a row; from two on they are columns.
          {"columns",
           [](Index n, Index s) { return Request{"sn", {s, n + 1}, {}, {}, {}, kElement}; }},
          {"samples", [](Index n, Index s) { return Request{"ncs", {n, 4, s}, {}, {}, kGroup}; }},
          {"channels", [](Index n, Index s) { return Request{"ncs", {3, n, s}, {}, {}, kBatch}; }},
          {"channels of short planes",
           [](Index n, Index s) {
             Request r{"ncs", {s, n, 7}, {}, {}, kBatch};
             r.wide_cells = true;
             return r;
           }},
          {"channels of many samples",
           [](Index n, Index s) { return Request{"ncs", {s, n, 196}, {}, {}, kBatch}; }},
          {"last channels",
           [](Index n, Index s) { return Request{"nsc", {3, s, n + 1}, {}, {}, kBatch}; }},
          {"last samples",
           [](Index n, Index s) { return Request{"nsc", {n, s, 4}, {}, {}, kGroup}; }},
      };
      for (const Family& family : families) {
        Plan one{};
        for (const Index n : {1, 2, 3, 16, 1000, 100'000}) {
          Request r = family.make(n, length);
          r.dtype = dtype;
          if (r.pools.empty()) r.pools = {Pool::sample};
          const Plan p = plan_of(r);
          if (n == 1) one = p;
          EXPECT_EQ(p.layout, one.layout) << family.name;
          EXPECT_EQ(p.chunk, one.chunk) << family.name;
          EXPECT_EQ(p.piece_space, one.piece_space) << family.name;
          EXPECT_EQ(p.piece_outer, one.piece_outer) << family.name;
          EXPECT_EQ(p.count, one.count) << family.name;
          EXPECT_EQ(p.cell_columns, one.cell_columns) << family.name;
        }
      }
    }
  }
}

// v, rounded to nearest even with `digits` of them.
double rounded(double v, int digits) {
  if (v == 0 || !std::isfinite(v)) return v;
  const int shift = digits - 1 - std::ilogb(v);
  return std::ldexp(std::nearbyint(std::ldexp(v, shift)), -shift);
}

TEST(RoundToOdd, RoundsAsOnceTo16Bits) {
  Random random(21);
  int twice = 0;  // where float(v) would end elsewhere
  for (const int digits : {8, 11}) {
    const double ulp = std::ldexp(1.0, 1 - digits);
    for (int i = 0; i < 100'000; ++i) {
      const double sign = random.integer(0, 1) == 0 ? 1 : -1;
      const double scale = std::ldexp(1.0, int(random.integer(0, 39)));
      const double number = 1 + double(random.integer(0, (Index(1) << (digits - 1)) - 1)) * ulp;
      const double step = std::ldexp(double(random.integer(-1, 1)), int(random.integer(-51, -20)));
      const double v = sign * scale * (number + 0.5 * ulp * double(random.integer(0, 1)) + step);
      EXPECT_EQ(rounded(double(round_to_odd(v)), digits), rounded(v, digits)) << v;
      twice += rounded(double(float(v)), digits) != rounded(v, digits);
    }
  }
  EXPECT_GT(twice, 1000);  // or the numbers are none that show it
}

TEST(RoundToOdd, KeepsWhatIsAFloatAndWhatNoFloatReaches) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float v : {0.0f, -0.0f, 1.0f, -0x1.8p-149f, 0x1.fffffep127f, infinity, -infinity}) {
    EXPECT_EQ(round_to_odd(v), v);
    EXPECT_EQ(std::signbit(round_to_odd(v)), std::signbit(v));
  }
  EXPECT_TRUE(std::isnan(round_to_odd(std::nan(""))));
  // Beyond float: the largest, which 16 bits round to infinity; below it: the smallest, to 0.
  EXPECT_EQ(round_to_odd(-1e300), -0x1.fffffep127f);
  EXPECT_EQ(round_to_odd(1e-300), 0x1p-149f);
  EXPECT_EQ(round_to_odd(-1e-300), -0x1p-149f);
}

}  // namespace
}  // namespace normcore
