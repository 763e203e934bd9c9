// The pipeline on a CUDA device: the steps of step.h as launches on the caller's
// stream. The formulas are the same headers; nothing waits for the host. Compiled once for each
// storage type T, by pipeline_<type>.cu.
#pragma once

#include <bit>
#include <string>
#include <type_traits>

#include "cuda/cells.cuh"
#include "cuda/columns.cuh"
#include "cuda/launch.h"
#include "cuda/policy.h"
#include "cuda/pools.cuh"
#include "cuda/population.h"
#include "cuda/rows.cuh"
#include "cuda/solve.cuh"
#include "cuda/spread.cuh"
#include "cuda/together.cuh"
#include "normcore/errors.h"
#include "pipeline/methods.h"

namespace normcore::cuda {

namespace {

// Packs that a thread of a kernel may hold of each operand before registers run out (ptxas tells):
// 32 elements, or 16 where each also has sums; of 8 bytes half as many.
template <class T>
constexpr int kForwardPacks = 32 / kPack<T> < 8 ? 32 / kPack<T> : 8;
template <class T>
constexpr int kBackwardPacks = 16 / kPack<T> < 4 ? 16 / kPack<T> : 4;
// The rows' backward also holds the weights: 16 elements of 16 bits, 8 of others.
template <class T>
constexpr int kRowBackwardPacks = sizeof(T) == 8 ? 4 : 2;
// Of the kernels of two sweeps; those of forward, which hold one operand, as many elements of 16
// bits as of 32: what a team costs beside its elements is shared by more.
constexpr int kCellPacks = 4;
template <class T>
constexpr int kForwardCellPacks = sizeof(T) == 2 ? 2 * kCellPacks : kCellPacks;
// Blocks that may share a pool of channels: of larger clusters few fit a device at a time.
constexpr int kPoolCluster = 4;

// Pieces of a pool that each of its cells may pool again.
constexpr Index kPooledParts = 64;

// Elements of a piece where threads take pieces alone.
constexpr Index kLonePiece = 256;
constexpr int kLoneThreads = 128;
constexpr Index kParameterRuns = 256;

// ---- the plan as kernels take it

// The distance of the cells from each other in an operand, if it is one and the same.
inline bool even_rows(const Plan& plan, int operand, Index* stride) {
  const Access& a = plan.access[operand];
  *stride = plan.cells > 1 ? a.cell : plan.outer_dims > 0 ? a.outer[plan.outer_dims - 1] : 0;
  if (plan.outer == 1) return true;
  return plan.outer_dims == 1 && a.outer[0] == *stride * plan.cells;
}

// Of powers of two.
int log2_of(int n) { return std::bit_width(unsigned(n)) - 1; }
Team team_of(const RowPolicy& p) { return {log2_of(p.threads), log2_of(p.cluster), nullptr}; }
constexpr int kTeamBytes = Team::kDoubles * int(sizeof(double));

// f(integral constant P) for the packs of a policy.
template <int kMost, class F>
void with_packs(int packs, F&& f) {
  if constexpr (kMost > 1) {
    if (packs < kMost) return with_packs<kMost / 2>(packs, f);
  }
  f(std::integral_constant<int, kMost>{});
}

// The type that kernels are compiled for.
template <class Method>
struct FormulaOf {
  using type = Method;
};
template <class Method>
  requires requires { typename Method::Formula; }
struct FormulaOf<Method> {
  using type = typename Method::Formula;
};

// ---- one call

template <class Method, class T>
class Pipeline {
  using C = Compute<T>;
  using Formula = typename FormulaOf<Method>::type;
  static constexpr DType kDType = kDTypeOf<T>;
  static constexpr int P = kPoolCount<Method>;
  static constexpr int V = kPack<T>;
  // Whose pool can be a row of elements that have parameters of their own.
  static constexpr bool kRowFamily = P == 1 && Method::pools[0] == Pool::sample;
  // Whose gradients are those of one pool and the channels' parameters.
  static constexpr bool kSolvedAtOnce =
      P == 1 && !MeasuresSpread<Method> && kParameterCount<Method> == 0;
  // Whose given statistics are all that its coefficients need.
  static constexpr bool kGiven = P == 1 && Method::pools[0] == Pool::batch &&
                                 !MeasuresSpread<Method> && kParameterCount<Method> == 0;
  // Whose statistics are of the batch alone, so that a mask says what counts in them.
  static constexpr bool kMaskable = Method::pools[P - 1] == Pool::batch && !MeasuresSpread<Method>;
  static constexpr bool kHeld =
      P == 1 && !MeasuresSpread<Method> && !Method::by_channel && kParameterCount<Method> == 0;

 public:
  using Params = typename Method::Params;

  Pipeline(const Plan& plan, DeviceMemory& memory, const Params& params)
      : plan_(plan), memory_(memory), params_(prepared(params)), g_(geometry_of(plan)) {}

  void forward(const ForwardArgs<C>& args) {
    if constexpr (kHeld && kRowFamily) {
      if (forward_rows(args)) return;
    }
    if constexpr (kHeld && !kRowFamily) {
      if (args.y && of_this_array(args.population) && forward_pools(args)) return;
    }
    if (args.residual) {
      settle_pieces(kForwardCellPacks<T>, {kX, kY, kResidual, kXIn},
                    {args.x, args.y, args.residual, args.x_in});
    } else if (args.y) {
      settle_pieces(kForwardCellPacks<T>, {kX, kY}, {args.x, args.y});
    } else {
      settle_pieces(kForwardCellPacks<T>, {kX}, {args.x});
    }
    if (args.residual) {
      const View x = view(kXIn, args.x_in), residual = view(kResidual, args.residual);
      on_pieces<kForwardCellPacks<T>>(
          [&](auto p, auto form) {
            launch(pieces_, stream(), cell_add<T, p(), form()>, g_, x, residual, view(kX, args.x),
                   team_);
          },
          [&](auto whole) {
            launch(pieces_, stream(), tile_add<T, whole()>, g_, tiles_, x, residual,
                   view(kX, args.x));
          });
    }
    const View x = view(kX, args.x), y = view(kY, args.y);
    const Source weight = memory_.source(args.channel_weight, 1);
    const Source bias = memory_.source(args.channel_bias);
    const C* element_weight = table(args.element_weight);
    const C* element_bias = table(args.element_bias);
    ForwardTable<C> to{};
    auto apply = [&](const auto& f) {
      using F = std::decay_t<decltype(f)>;
      on_pieces<kForwardCellPacks<T>>(
          [&](auto p, auto form) {
            launch(pieces_, stream(), cell_apply<T, p(), form(), F>, g_, x, y, team_, f,
                   element_weight, element_bias);
          },
          [&](auto whole) {
            launch(pieces_, stream(), tile_apply<T, whole(), F>, g_, tiles_, x, y, f,
                   element_weight, element_bias);
          });
    };
    if constexpr (P == 1 && !MeasuresSpread<Method>) {
      if (!args.given_mean && of_this_array(args.population)) {
        const PoolShape shape = pool_of(plan_, extent_of(Method::pools[0], plan_.affinity));
        if constexpr (kHeld && !kRowFamily) {
          if (args.y && forward_together(args, shape, weight, bias)) return;
        }
        const Moments of_pieces = piece_moments(args.x);
        const Index parts = shape.cells_of_entry(g_) * g_.pieces;
        if constexpr (kHeld && Method::pools[0] != Pool::batch && !kRowFamily) {
          if (args.y && parts <= kPooledParts && pieces_of_ == Pieces::packed &&
              policy_.packs > 1) {
            using F = PooledCoefficients<Formula, C>;
            const F f{shape, of_pieces.mean, of_pieces.m2, params_, weight, bias, columns_of(args)};
            return on_long_pieces<kForwardCellPacks<T>>([&](auto p, auto form) {
              launch(pieces_, stream(), cell_apply<T, p(), form(), F>, g_, x, y, team_, f,
                     element_weight, element_bias);
            });
          }
        }
        const Summers by(parts);
        if (args.y) to = take_table();
        launch(each_by(by, shape.entries()), stream(), pool_and_solve<Formula, C>, by, g_, shape,
               of_pieces.mean, of_pieces.m2, params_, weight, bias, columns_of(args), to);
        if (args.y) apply(Coefficients<C>{to.a, to.center, to.shift});
        return;
      }
    }
    PoolTables<Formula> pools = statistics(args);
    auto show = [&](int pool, const StatisticsColumns& out) {
      if (!out) return;
      launch(each(pools.shape[pool].entries()), stream(), export_statistics<Formula>, g_, pools,
             pool, params_, out);
    };
    show(args.given_mean && P > 1 ? 1 : 0, columns_of(args));
    show(P - 1, {column(args.last_mean), column(args.last_var), {}, {}, {}});
    if (!args.y) return;
    if constexpr (kGiven) {
      if (args.given_mean && pieces_of_ != Pieces::lone && g_.shared_rows && !args.element_weight) {
        return apply(GivenCoefficients<Formula, C>{pools.mean[0], pools.var[0], weight, bias,
                                                   pools.shape[0].count, params_});
      }
    }
    to = take_table();
    launch(each(g_.coefficient_cells()), stream(), solve_forward<Formula, C>, g_, pools, params_,
           weight, bias, to);
    apply(Coefficients<C>{to.a, to.center, to.shift});
  }

  void backward(const BackwardArgs<C>& args) {
    if constexpr (kHeld && kRowFamily) {
      if (backward_rows(args)) return;
    }
    if constexpr (kHeld && !kRowFamily) {
      if (of_this_array(args.population) && backward_pools(args)) return;
    }
    if (args.dh) {
      settle_pieces(kCellPacks, {kX, kDy, kDx, kDh}, {args.x, args.dy, args.dx, args.dh});
    } else {
      settle_pieces(kCellPacks, {kX, kDy, kDx}, {args.x, args.dy, args.dx});
    }
    const Source weight = memory_.source(args.channel_weight, 1);
    const PoolTables<Formula> pools = statistics(args);
    const View x = view(kX, args.x), dy = view(kDy, args.dy);
    const View dx = view(kDx, args.dx), dh = view(kDh, args.dh);
    const Index cells = g_.coefficient_cells();
    GradientTable<C> t{};
    t.each([&]<class N>(N*& array) { array = memory_.take<N>(cells); });
    t.center = memory_.take<C>(cells);
    if constexpr (kHeld && !kRowFamily) {
      if (!args.given_mean && of_this_array(args.population) &&
          backward_together(args, pools, weight, t)) {
        return;
      }
    }
    launch(each(cells), stream(), solve_backward<Formula, C>, g_, pools, params_, weight, t);

    const bool given = args.given_mean && P == 1;  // nothing is computed from x
    const bool element = static_cast<bool>(args.element_weight);
    const bool wanted = args.wants_parameters();
    const C* element_weight = table(args.element_weight);
    double* sum_u = memory_.take<double>(cells);
    double* sum_1 = memory_.take<double>(cells);
    if (!given || wanted) {
      const Index parts = g_.outer * g_.cells * g_.pieces;
      double* dy_u = memory_.take<double>(parts);
      double* dy_1 = memory_.take<double>(parts);
      on_pieces(
          [&](auto p, auto form) {
            launch(pieces_, stream(), cell_sums<T, p(), form()>, g_, dy, x, team_, t.center,
                   t.unit_c, element_weight, dy_u, dy_1);
          },
          [&](auto whole) {
            launch(pieces_, stream(), tile_sums<T, whole()>, g_, tiles_, dy, x, t.center, t.unit_c,
                   element_weight, dy_u, dy_1);
          });
      const bool by_channel = wanted && !element;
      if constexpr (kSolvedAtOnce) {
        const Team team = solving_team(pools.shape[0], kSolveThreads);
        const Launch l{ceil_div(pools.shape[0].entries(), kSolveThreads >> team.log_threads),
                       kSolveThreads, kTeamBytes};
        // Of a pool that is also of other processes they are summed, and then shared out.
        const bool together = !given && exchange_of(0, args.population);
        const Index entries = pools.shape[0].entries();
        GradientSolver<Formula, C> solver =
            solver_of(args, pools, weight, t, dy_u, dy_1, sum_u, sum_1);
        if (together) take_in_row(entries, solver.pooled.mean[0], solver.pooled.var[0]);
        launch(l, stream(), solve_gradients<Formula, C>, team, solver);
        if (together) {
          sum_over_processes(*args.population.exchange, solver.pooled.mean[0], 2 * entries,
                             memory_);
          launch(each(cells), stream(), share_out<Formula, C>, g_, pools, 0, solver.pooled,
                 static_cast<const double*>(nullptr), t);
        }
        if (by_channel && g_.coefficient_rows() != 1) channel_sums(args, t, sum_u, sum_1);
      } else {
        const Summers by_pieces(g_.coefficient_pieces());
        launch(each_by(by_pieces, cells), stream(), sum_pieces, by_pieces, g_, dy_u, dy_1, sum_u,
               sum_1);
        if (by_channel) channel_sums(args, t, sum_u, sum_1);
      }
    }
    if (wanted && element) element_gradients(args, t);
    if constexpr (MeasuresSpread<Method>) {
      through_spread(pools, args, weight, t, sum_u, sum_1);
      return;
    } else if constexpr (!kSolvedAtOnce) {
      if (!given) pull_back_through(pools, args, weight, t, sum_u, sum_1);
    }
    const GradientCoefficients<C> f{t.p, given || ShiftsOnly<Method> ? nullptr : t.q,
                                    given ? nullptr : t.r, t.center, t.unit_c};
    // What is by element, and runs along a row: weights, or how much an element counts.
    auto apply = [&](auto masked, const auto& by_element) {
      on_pieces(
          [&](auto p, auto form) {
            launch(pieces_, stream(), cell_grad<T, p(), form(), masked()>, g_, dy, x, dh, dx, team_,
                   f, by_element);
          },
          [&](auto whole) {
            launch(pieces_, stream(), tile_grad<T, whole(), masked()>, g_, tiles_, dy, x, dh, dx, f,
                   by_element);
          });
    };
    if constexpr (kMaskable) {
      if (args.population.mask) return apply(std::true_type{}, view(kMask, args.population.mask));
    }
    apply(std::false_type{}, element_weight);
  }

 private:
  Params prepared(const Params& params) const {
    if constexpr (PreparesParams<Method>) {
      double* numbers = memory_.take<double>(Method::kPrepared);
      launch({1, 1}, stream(), prepare_params<Method>, params, numbers);
      return Method::prepared(params, numbers);
    } else {
      return params;
    }
  }
  cudaStream_t stream() const { return memory_.stream(); }
  static bool of_this_array(const Population& p) { return !p.mask && !p.exchange; }
  // Of pool i.
  static Exchange* exchange_of(int i, const Population& p) {
    return Method::pools[i] == Pool::batch ? p.exchange : nullptr;
  }
  View view(int operand, const void* data) const {
    return data ? view_of(plan_, operand, data) : View{};
  }
  static Column column(double* table) { return {table, DType::kFloat64, 1}; }
  static StatisticsColumns columns_of(const ForwardArgs<C>& args) {
    if (args.columns) return args.columns;
    return {column(args.mean), column(args.var), column(args.rstd), {}, {}};
  }
  static Column dweight_of(const BackwardArgs<C>& args) {
    return args.dweight_column.data ? args.dweight_column : column(args.dweight);
  }
  static Column dbias_of(const BackwardArgs<C>& args) {
    return args.dbias_column.data ? args.dbias_column : column(args.dbias);
  }
  static SavedStatistics saved(const BackwardArgs<C>& args) {
    return {args.forward_mean, args.forward_var, args.forward_step};
  }
  // Parameters by element as kernels take them that read no other than the compute type.
  const C* table(const ElementParameter<C>& p) const {
    if (!p.as_given) return p.values;
    if (!p.data) return memory_.template take_filled<C>(plan_.count, C(p.offset));
    Walk in_order;
    in_order.append(plan_.count, 1);
    return memory_.template load_shifted<C>(ConstTensor(p.data, p.dtype, 1), in_order, p.offset);
  }
  ForwardTable<C> take_table() {
    const Index cells = g_.coefficient_cells();
    return {memory_.take<C>(cells), memory_.take<C>(cells), memory_.take<C>(cells)};
  }
  static Launch each(Index n) { return one_each(n, kSolveThreads); }

  // ---- rows that stay in registers

  bool row_shape(std::initializer_list<int> operands, int most_packs, RowPolicy* policy,
                 Index (&strides)[kMaxOperands]) const {
    if (plan_.layout != Layout::rows || plan_.affinity != Affinity::element ||
        plan_.extent != Extent::cell) {
      return false;
    }
    for (const int i : operands) {
      if (!plan_.access[i].direct || !even_rows(plan_, i, &strides[i])) return false;
    }
    const int most_cluster = facts_of(memory_.device()).most_cluster;
    *policy = row_policy(ceil_div(plan_.count, V), most_packs, most_cluster);
    return static_cast<bool>(*policy);
  }

  // The parameters of rows as the caller has them, where both are of T or of its compute type.
  RowParameters row_parameters(const ElementParameter<C>& weight,
                               const ElementParameter<C>& bias) const {
    auto is = [](const ElementParameter<C>& p, DType dtype) {
      return p.as_given && (!p.data || p.dtype == dtype);
    };
    const bool narrow = is(weight, kDType) && is(bias, kDType);
    const bool wide = !narrow && is(weight, DTypeOf<C>::value) && is(bias, DTypeOf<C>::value);
    auto values = [&](const ElementParameter<C>& p) -> ElementValues {
      return narrow || wide ? ElementValues{p.data, p.data ? 0 : p.offset}
                            : ElementValues{table(p), 0};
    };
    const bool shifted = (narrow || wide) && weight.data;
    return {values(weight), values(bias), shifted ? weight.offset : 0, narrow};
  }
  static bool whole(const RowParameters& p) {
    return aligned(p.weight.data) && aligned(p.bias.data);
  }
  // Whether all rows begin on a boundary of 16 bytes.
  template <class Rows>
  static bool whole(const Rows& rows) {
    return aligned(rows.data) && rows.stride % V == 0;
  }
  static bool aligned(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; }

  // f(packs, whole, cluster), integral constants, for the kernels of a policy: a cluster begins
  // where threads hold all that they can.
  template <int kMost, class F>
  static void with_row_kernel(const RowPolicy& policy, bool is_whole, F&& f) {
    auto choose = [&](auto packs, auto cluster) {
      if (is_whole) {
        f(packs, std::true_type{}, cluster);
      } else {
        f(packs, std::false_type{}, cluster);
      }
    };
    if (policy.cluster > 1) return choose(std::integral_constant<int, kMost>{}, std::true_type{});
    with_packs<kMost>(policy.packs, [&](auto packs) { choose(packs, std::false_type{}); });
  }

  bool forward_rows(const ForwardArgs<C>& args) {
    if (!args.element_weight) return false;
    RowPolicy policy;
    Index stride[kMaxOperands];
    const bool add = args.residual != nullptr;
    if (!row_shape(add ? std::initializer_list<int>{kX, kY, kResidual, kXIn}
                       : std::initializer_list<int>{kX, kY},
                   kForwardPacks<T>, &policy, stride)) {
      return false;
    }
    RowsForward a{};
    a.rows = plan_.outer * plan_.cells;
    a.n = int(plan_.count);
    a.inverse_n = 1 / double(plan_.count);
    a.x = add ? RowsIn{args.x_in, stride[kXIn]} : RowsIn{args.x, stride[kX]};
    if (add) {
      a.residual = {args.residual, stride[kResidual]};
      a.h = {const_cast<void*>(args.x), stride[kX]};
    }
    a.y = {args.y, stride[kY]};
    a.parameters = row_parameters(args.element_weight, args.element_bias);
    a.out = columns_of(args);
    const bool is_whole = plan_.count % V == 0 && whole(a.x) && whole(a.y) && whole(a.parameters) &&
                          (!add || (whole(a.residual) && whole(a.h)));
    const Launch l{ceil_div(a.rows, policy.rows_per_block) * policy.cluster, policy.block_threads(),
                   kTeamBytes, policy.cluster};
    bool done = false;
    with_row_kernel<kForwardPacks<T>>(policy, is_whole, [&](auto p, auto all, auto cluster) {
      const auto kernel = rows_forward<Formula, T, p(), all(), cluster()>;
      done = has_room(kernel, l, memory_.device());
      if (done) launch(l, stream(), kernel, a, params_, team_of(policy));
    });
    return done;
  }

  bool backward_rows(const BackwardArgs<C>& args) {
    if (!args.element_weight) return false;
    RowPolicy policy;
    Index stride[kMaxOperands];
    if (!row_shape(args.dh ? std::initializer_list<int>{kX, kDy, kDx, kDh}
                           : std::initializer_list<int>{kX, kDy, kDx},
                   kRowBackwardPacks<T>, &policy, stride)) {
      return false;
    }
    RowsBackward<C> a{};
    a.rows = plan_.outer * plan_.cells;
    a.n = int(plan_.count);
    a.inverse_n = 1 / double(plan_.count);
    a.x = {args.x, stride[kX]};
    a.dy = {args.dy, stride[kDy]};
    if (args.dh) a.dh = {args.dh, stride[kDh]};
    a.dx = {args.dx, stride[kDx]};
    a.parameters = row_parameters(args.element_weight, {.as_given = true});
    a.saved = saved(args);
    const bool is_whole = plan_.count % V == 0 && whole(a.x) && whole(a.dy) && whole(a.dx) &&
                          whole(a.parameters) && (!args.dh || whole(a.dh));
    const bool wanted = args.wants_parameters();
    if (Method::raw && dbias_of(args).data) return false;
    Launch l{0, policy.block_threads(), kTeamBytes, policy.cluster};
    l.shared_bytes += backward_bytes<C>(log2_of(policy.threads), policy.block_threads(), a.n,
                                        policy.packs, args.dh != nullptr);
    bool done = false;
    with_row_kernel<kRowBackwardPacks<T>>(policy, is_whole, [&](auto p, auto all, auto cluster) {
      const auto kernel = rows_backward<Formula, T, p(), all(), cluster()>;
      // As many blocks as run at once: what follows from the device, the length of a row and its
      // alignment decides the order of the parameters' sums, unless there are fewer rows.
      const Index most = resident_clusters(kernel, l, memory_.device());
      done = most > 0;
      if (!done) return;
      const Index blocks = std::min(most, ceil_div(a.rows, policy.rows_per_block));
      l.blocks = blocks * policy.cluster;
      if (wanted) {
        a.dweight = memory_.template take<C>(blocks * a.n);
        if (!Method::raw) a.dbias = memory_.template take<C>(blocks * a.n);
      }
      launch(l, stream(), kernel, a, params_, team_of(policy));
      if (wanted) sum_parts(a.dweight, a.dbias, blocks, a.n, args);
    });
    return done;
  }

  // The gradients of the channels' parameters from the sums of the cells.
  void channel_sums(const BackwardArgs<C>& args, const GradientTable<C>& t, const double* sum_u,
                    const double* sum_1) {
    const Summers by(g_.coefficient_rows());
    launch(each_by(by, g_.cells), stream(), channel_gradients<C>, by, g_, t, sum_u, sum_1,
           dweight_of(args), dbias_of(args));
  }
  // The gradients of n parameters from tables [parts, n].
  template <class Part>
  void sum_parts(const Part* dweight, const Part* dbias, Index parts, Index n,
                 const BackwardArgs<C>& args) {
    sum_columns<Part>({dweight, dweight_of(args)}, {dbias, dbias_of(args)}, parts, n);
  }
  template <class Part>
  void sum_columns(const ParameterSums<Part>& first, const ParameterSums<Part>& second, Index parts,
                   Index n) {
    const Launch l{ceil_div(n, 32), 32 * kSumWarps, 32 * kSumWarps * int(sizeof(double)), 1, 2};
    launch(l, stream(), sum_parameter_rows<Part>, first, second, parts, n);
  }

  // ---- pools of channels that stay in registers

  // `given`: statistics that are none of x's.
  bool pools_shape(std::initializer_list<int> operands, bool given, int most_packs,
                   HeldPools* pools, RowPolicy* policy) const {
    if (plan_.layout != Layout::rows || plan_.affinity != Affinity::channel || given) return false;
    for (const int i : operands) {
      if (!plan_.access[i].direct) return false;
    }
    pools->g = g_;
    pools->shape = pool_of(plan_, extent_of(Method::pools[0], plan_.affinity));
    const Index members = pools->shape.cells_of_entry(g_), packs = ceil_div(g_.count, V);
    // Members must be evenly spaced, and full packs for the most part.
    if (pools->shape.extent == Extent::column && plan_.outer_dims > 1) return false;
    if (members > 1 && packs * V > g_.count + g_.count / 4) return false;
    if (!is_few(g_.outer * g_.cells)) return false;
    const int most_cluster = std::min(kPoolCluster, facts_of(memory_.device()).most_cluster);
    *policy = row_policy(members * packs, most_packs, most_cluster);
    if (!*policy) return false;
    pools->members = int(members);
    pools->packs = int(packs);
    pools->inverse_count = 1 / pools->shape.count;
    return true;
  }
  Launch pools_launch(const HeldPools& pools, const RowPolicy& policy, int shared_bytes) const {
    return {ceil_div(pools.shape.entries(), policy.rows_per_block) * policy.cluster,
            policy.block_threads(), shared_bytes, policy.cluster};
  }

  bool forward_pools(const ForwardArgs<C>& args) {
    HeldPools pools;
    RowPolicy policy;
    if (!pools_shape({kX, kY}, args.given_mean, kForwardPacks<T>, &pools, &policy)) return false;
    const Launch l = pools_launch(pools, policy, kTeamBytes);
    bool done = false;
    with_packs<kForwardPacks<T>>(policy.packs, [&](auto p) {
      const auto kernel = pool_forward<Formula, T, p()>;
      done = has_room(kernel, l, memory_.device());
      if (!done) return;
      const Source weight = memory_.source(args.channel_weight, 1);
      const Source bias = memory_.source(args.channel_bias);
      launch(l, stream(), kernel, pools, view(kX, args.x), view(kY, args.y), params_,
             team_of(policy), weight, bias, columns_of(args));
    });
    return done;
  }

  bool backward_pools(const BackwardArgs<C>& args) {
    HeldPools pools;
    RowPolicy policy;
    if (!pools_shape({kX, kDy, kDx}, args.given_mean, kBackwardPacks<T>, &pools, &policy))
      return false;
    const int shared =
        kTeamBytes + pool_sums_bytes<C>(pools, policy.packs * policy.block_threads());
    if (shared > kSharedBytes) return false;
    const Launch l = pools_launch(pools, policy, shared);
    bool fits = false;
    with_packs<kBackwardPacks<T>>(policy.packs, [&](auto p) {
      fits = has_room(pool_backward<Formula, T, p()>, l, memory_.device());
    });
    if (!fits) return false;
    // A pool of all samples has the whole gradient of its channel.
    const bool whole = pools.shape.extent == Extent::column || g_.outer == 1;
    const bool wanted = args.wants_parameters();
    MemberGradients parts{dweight_of(args), dbias_of(args)};
    if (wanted && !whole) {
      parts = {column(memory_.take<double>(g_.outer * g_.cells)),
               column(memory_.take<double>(g_.outer * g_.cells))};
    }
    const Source weight = memory_.source(args.channel_weight, 1);
    with_packs<kBackwardPacks<T>>(policy.packs, [&](auto p) {
      launch(l, stream(), pool_backward<Formula, T, p()>, pools, view(kDy, args.dy),
             view(kX, args.x), view(kDx, args.dx), params_, team_of(policy), weight, saved(args),
             parts);
    });
    if (wanted && !whole) {
      sum_parts(static_cast<const double*>(parts.dweight.data),
                static_cast<const double*>(parts.dbias.data), g_.outer, g_.cells, args);
    }
    return true;
  }

  // ---- two sweeps in one launch

  // f(kernel, launch) for tiles that the second-level cache holds, of so many tensors; false where
  // it does not.
  template <class Whole, class Others, class F>
  bool on_tiles_together(int tensors, Whole whole, Others others, F f) {
    const DeviceFacts& facts = facts_of(memory_.device());
    const Index bytes = g_.outer * g_.cells * g_.count * Index(sizeof(T)) * tensors;
    if (pieces_of_ != Pieces::tiled || !facts.cooperative || bytes > facts.cache_bytes / 2) {
      return false;
    }
    Launch l = pieces_;
    l.shared_bytes = std::max(l.shared_bytes, kTeamBytes);
    l.cooperative = true;
    auto run = [&](auto kernel) {
      l.blocks = std::min<Index>(pieces_.blocks, resident_clusters(kernel, l, memory_.device()));
      if (l.blocks > 0) f(kernel, l);
      return l.blocks > 0;
    };
    return whole_ ? run(whole) : run(others);
  }

  bool forward_together(const ForwardArgs<C>& args, const PoolShape& shape, const Source& weight,
                        const Source& bias) {
    return on_tiles_together(1, tiles_forward<Formula, T, true>, tiles_forward<Formula, T, false>,
                             [&](auto kernel, const Launch& l) {
                               const Moments m = take_moments();
                               launch(l, stream(), kernel, g_, tiles_, unsigned(pieces_.blocks),
                                      view(kX, args.x), view(kY, args.y),
                                      Summers(shape.cells_of_entry(g_) * g_.pieces), shape, m.mean,
                                      m.m2, params_, weight, bias, columns_of(args), take_table());
                             });
  }

  bool backward_together(const BackwardArgs<C>& args, const PoolTables<Formula>& pools,
                         const Source& weight, const GradientTable<C>& t) {
    return on_tiles_together(
        2, tiles_backward<Formula, T, true>, tiles_backward<Formula, T, false>,
        [&](auto kernel, const Launch& l) {
          const Index cells = g_.coefficient_cells();
          const Moments sums = take_moments();
          const GradientSolver<Formula, C> solver =
              solver_of(args, pools, weight, t, sums.mean, sums.m2, memory_.take<double>(cells),
                        memory_.take<double>(cells));
          const bool solved = g_.coefficient_rows() == 1;  // by it, the channels' gradients too
          launch(l, stream(), kernel, tiles_, unsigned(pieces_.blocks), view(kDy, args.dy),
                 view(kX, args.x), view(kDx, args.dx), solving_team(pools.shape[0], l.threads),
                 solver, Summers(g_.coefficient_rows()), solved ? Column{} : dweight_of(args),
                 solved ? Column{} : dbias_of(args));
        });
  }

  // ---- two sweeps with tables between them

  // Chooses who takes which piece of a cell: teams, tiles or lone threads.
  void settle_pieces(int most_packs, std::initializer_list<int> operands,
                     std::initializer_list<const void*> data) {
    const bool rows = plan_.layout == Layout::rows;
    bool direct = true;
    for (const int i : operands) direct = direct && plan_.access[i].direct;
    const Index cells = g_.outer * g_.cells;
    pieces_of_ = !direct ? Pieces::lone : rows ? Pieces::packed : Pieces::tiled;
    whole_ = (rows ? g_.count : g_.cells) % V == 0;
    auto at = data.begin();
    for (const int i : operands) whole_ = whole_ && whole_rows(plan_.access[i], *at++);
    if (pieces_of_ == Pieces::packed) {
      const RowPolicy longest = row_policy(256 * most_packs, most_packs, 1);
      settle_length(256 * most_packs * V);
      policy_ = g_.pieces > 1 ? longest : row_policy(ceil_div(g_.count, V), most_packs, 1);
      team_ = team_of(policy_);
      pieces_ = {ceil_div(cells * g_.pieces, policy_.rows_per_block), policy_.block_threads(),
                 kTeamBytes};
    } else if (pieces_of_ == Pieces::tiled) {
      // By the table and the type alone, whatever the alignment and the number of samples.
      const int across =
          std::min<int>(kMostAcross, int(std::bit_ceil(std::size_t(ceil_div(g_.cells, V)))));
      const Index down = Index(std::bit_ceil(std::size_t(std::max<Index>(1, g_.count))));
      const int rows_at_once = int(std::clamp<Index>(down, 32 / across, kTileThreads / across));
      settle_length(Index(rows_at_once) * kRowsOfThread);
      const Index tiles = ceil_div(g_.cells, Index(across) * V);
      tiles_ = {log2_of(across), log2_of(rows_at_once), Division(tiles)};
      const int threads = across * rows_at_once;
      pieces_ = {g_.outer * g_.pieces * tiles, threads,
                 std::max(fold_bytes<double>(2, V, threads),
                          fold_bytes<C>(MeasuresSpread<Method> ? kMostTallies : 2, V, threads))};
    } else {
      settle_length(kLonePiece);
      pieces_ = {ceil_div(cells * g_.pieces, kLoneThreads), kLoneThreads};
    }
  }
  void settle_length(Index most) {
    g_.piece = std::min<Index>(std::max<Index>(1, g_.count), most);
    g_.pieces = std::max<Index>(1, ceil_div(g_.count, g_.piece));
    if (g_.outer * g_.cells * g_.pieces > 0x7fffffff) {
      throw device_error("more than 2^31 - 1 pieces of cells: the array is too large");
    }
    g_.by_pieces = Division(g_.pieces);
  }
  // Whether all rows of packs begin on a boundary of 16 bytes: those of a tile, or the cells.
  bool whole_rows(const Access& a, const void* data) const {
    bool is = aligned(data);
    for (int d = 0; d < plan_.outer_dims; ++d) is = is && a.outer[d] % V == 0;
    if (plan_.layout == Layout::rows) return is && a.cell % V == 0;
    for (int d = 0; d < plan_.space_dims; ++d) is = is && a.space[d] % V == 0;
    return is;
  }
  using Whole = std::integral_constant<Form, Form::whole>;
  using Packed = std::integral_constant<Form, Form::packed>;
  // cells(packs, form) for teams of several packs a thread.
  template <int kMost, class Cells>
  void on_long_pieces(Cells cells) const {
    auto by_packs = [&](auto form) {
      if constexpr (kMost > kCellPacks) {
        if (policy_.packs > kCellPacks) return cells(std::integral_constant<int, kMost>{}, form);
      }
      cells(std::integral_constant<int, kCellPacks>{}, form);
    };
    whole_ ? by_packs(Whole{}) : by_packs(Packed{});
  }
  // cells(packs, form) or tiles(whole), integral constants. Teams of few packs have some that hold
  // two, which is not worth a kernel of its own. kMost: kForwardCellPacks of what forward launches.
  template <int kMost = kCellPacks, class Cells, class Tiles>
  void on_pieces(Cells cells, Tiles tiles) const {
    if (pieces_of_ == Pieces::packed) {
      if (policy_.packs > 1) return on_long_pieces<kMost>(cells);
      if (whole_) return cells(std::integral_constant<int, 1>{}, Whole{});
      return cells(std::integral_constant<int, 1>{}, Packed{});
    }
    if (pieces_of_ == Pieces::lone) {
      cells(std::integral_constant<int, 1>{}, std::integral_constant<Form, Form::lone>{});
    } else if (whole_) {
      tiles(std::true_type{});
    } else {
      tiles(std::false_type{});
    }
  }

  // A table of statistics, or where it comes from.
  Source source(const double* values, Index stride) {
    Source s = memory_.source(values);
    if (s.data == values) s.stride = stride;
    return s;
  }

  // Of every piece.
  struct Moments {
    double *mean, *m2;
  };
  Moments take_moments() {
    const Index parts = g_.outer * g_.cells * g_.pieces;
    return {memory_.take<double>(parts), memory_.take<double>(parts)};
  }
  Moments piece_moments(const void* data) {
    const Moments out = take_moments();
    const View x = view(kX, data);
    const cudaStream_t ahead = memory_.stream_ahead_of_steps();
    on_pieces<kForwardCellPacks<T>>(
        [&](auto p, auto form) {
          launch(pieces_, ahead, cell_moments<Method::raw, T, p(), form()>, g_, x, team_, out.mean,
                 out.m2);
        },
        [&](auto whole) {
          launch(pieces_, ahead, tile_moments<Method::raw, T, whole()>, g_, tiles_, x, out.mean,
                 out.m2);
        });
    return out;
  }

  template <class Args>
  PoolTables<Formula> statistics(const Args& args) {
    PoolTables<Formula> pools{};
    const int computed = args.given_mean ? 1 : 0;  // pools from here on
    if (args.given_mean) {
      pools.shape[0] = pool_of(plan_, Extent::column);
      pools.mean[0] = source(args.given_mean, args.given_step);
      pools.var[0] = source(args.given_var, args.given_step);
    }
    for (int i = computed; i < P; ++i) {
      pools.shape[i] = pool_of(plan_, extent_of(Method::pools[i], plan_.affinity));
    }
    if (computed == P) return pools;
    if (args.saved_mean()) {
      pools.mean[P - 1] = source(args.saved_mean(), args.forward_step);
      pools.var[P - 1] = source(args.saved_var(), args.forward_step);
    } else if (args.population.mask) {
      const BatchMoments found =
          masked_batch_moments(plan_, kDType, args.x, args.population.mask, memory_);
      pools.mean[P - 1] = {found.mean};
      pools.var[P - 1] = {found.var};
    } else {
      const Moments of_pieces = piece_moments(args.x);
      merge(pools, P - 1, g_, {of_pieces.mean}, {of_pieces.m2}, 1);
      if constexpr (MeasuresSpread<Method>) measure_spread(pools, args.x);
    }
    // Of several pools the last has an entry per cell: the others are merged from it.
    Geometry cells = g_;
    cells.piece = g_.count;
    cells.pieces = 1;
    cells.by_pieces = Division(1);
    for (int i = computed; i < P - 1; ++i) {
      merge(pools, i, cells, pools.mean[P - 1], pools.var[P - 1], pools.shape[P - 1].count);
    }
    if (!of_this_array(args.population)) count_population(args, computed, pools);
    return pools;
  }

  // The pools of all samples where a mask or other processes decide what that is.
  template <class Args>
  void count_population(const Args& args, int computed, PoolTables<Formula>& pools) {
    const Population& population = args.population;
    const Weighed* own =
        population.mask ? weigh_mask(plan_, kDType, population.mask, memory_) : nullptr;
    for (int i = computed; i < P; ++i) {
      if (Method::pools[i] != Pool::batch) continue;
      PoolShape& shape = pools.shape[i];
      shape.counted = own;
      if (population.exchange) {
        const bool known = i == P - 1 && args.saved_mean();
        // What is not known is in tables of ours.
        auto table = [](const Source& s) {
          return const_cast<double*>(static_cast<const double*>(s.data));
        };
        shape.counted = known
                            ? merge_processes(population, own, 0, {}, memory_)
                            : merge_processes(population, own, shape.entries(),
                                              {table(pools.mean[i]), table(pools.var[i])}, memory_);
      }
      population.count->there = shape.counted;
    }
  }

  // The statistics of pool i from those of pieces.
  void merge(PoolTables<Formula>& pools, int i, const Geometry& pieces, const Source& mean,
             const Source& m2, double m2_scale) {
    const PoolShape& shape = pools.shape[i];
    double* pool_mean = memory_.take<double>(shape.entries());
    double* pool_var = memory_.take<double>(shape.entries());
    const Summers by(shape.cells_of_entry(pieces) * pieces.pieces);
    launch(each_by(by, shape.entries()), stream(), pool_pieces, by, pieces, shape, Method::raw,
           mean, m2, m2_scale, pool_mean, pool_var);
    pools.mean[i] = {pool_mean};
    pools.var[i] = {pool_var};
  }

  // ---- spread that is no variance; its pool's entries are the coefficient cells

  SpreadTable<C> new_spread_table() {
    SpreadTable<C> t{};
    const Index cells = g_.coefficient_cells();
    for (C** column : {&t.center, &t.low, &t.unit, &t.threshold, &t.tie}) {
      *column = memory_.take<C>(cells);
    }
    t.order = C(params_.spread.order);
    return t;
  }

  template <bool kPeak>
  void sweep_tally(const SpreadTable<C>& t, const void* x, const Outliers<C>& list, double* sums) {
    on_pieces<kForwardCellPacks<T>>(
        [&](auto p, auto form) {
          launch(pieces_, stream(), cell_tally<T, p(), form(), kPeak>, g_, view(kX, x), team_, t,
                 list, sums);
        },
        [&](auto whole) {
          launch(pieces_, stream(), tile_tally<T, whole(), kPeak>, g_, tiles_, view(kX, x), t, list,
                 sums);
        });
  }
  template <bool kPeak>
  void tally(const SpreadTable<C>& t, const void* x, double* sums, double* out) {
    sweep_tally<kPeak>(t, x, {}, sums);
    const Summers by(g_.coefficient_pieces());
    launch(each_by(by, g_.coefficient_cells()), stream(), join_tallies<kPeak>, by, g_, sums, out);
  }

  // Tallies of u around the threshold, which is found first. `spread` null: not known yet; what
  // backward alone needs is then left out.
  const double* tally_spread(const SpreadTable<C>& t, const void* x, double n,
                             const Source& spread) {
    const Index cells = g_.coefficient_cells();
    double* sums = memory_.take<double>(kMostTallies * g_.outer * g_.cells * g_.pieces);
    double* out = memory_.take<double>(kMostTallies * cells);
    const SpreadKind& kind = params_.spread;
    const double k = kind.largest(n);
    if (kind.order == 0 && k > 1) {
      select(t, x, Index(k), n, sums, out);
      return out;
    }
    if (kind.order == 0) {
      if (!spread) tally<true>(t, x, sums, out);
      launch(each(cells), stream(), take_peak<C>, cells, out, spread, t);
      if (!spread) return out;
    }
    tally<false>(t, x, sums, out);
    return out;
  }

  // The k-th largest of each pool of n elements, and its tallies.
  void select(const SpreadTable<C>& t, const void* x, Index k, double n, double* sums,
              double* out) {
    const Index cells = g_.coefficient_cells();
    const Launch by_cell{cells, kSelectThreads, int(sizeof(Selection))};
    Outliers<C> list{};
    if (k <= g_.coefficient_pieces()) {
      list.room = Index(std::min(double(4 * k + 64), n));
      list.values = memory_.take<C>(cells * list.room);
      list.sorted = memory_.take<C>(cells * list.room);
      list.found = memory_.take<unsigned>(cells);
      sweep_tally<true>(t, x, {}, sums);
      launch(by_cell, stream(), reach_by_peaks<C>, g_, k, sums, t, list);
      sweep_tally<false>(t, x, list, sums);
    }
    launch(by_cell, stream(), select_largest<T>, g_, view(kX, x), k, sums, list, t, out);
  }

  // Puts the spread where the variance was.
  void measure_spread(PoolTables<Formula>& pools, const void* x) {
    const Index cells = g_.coefficient_cells();
    const SpreadTable<C> t = new_spread_table();
    const double n = pools.shape[0].count;
    launch(each(cells), stream(), prepare_spread<Method, C>, cells, n,
           PoolSource{pools.mean[0], pools.var[0]}, true, least_deviation(params_.spread), t);
    double* spread = memory_.take<double>(cells);
    const double* tallies = tally_spread(t, x, n, {});
    launch(each(cells), stream(), finish_spread<C>, cells, params_.spread, n, tallies, pools.var[0],
           t, spread);
    pools.var[0] = {spread};
  }

  void through_spread(const PoolTables<Formula>& pools, const BackwardArgs<C>& args,
                      const Source& weight, const GradientTable<C>& t, const double* sum_u,
                      const double* sum_1) {
    const Index cells = g_.coefficient_cells();
    CellGradients<Formula> d{};
    d.mean[0] = memory_.take<double>(cells);
    d.var[0] = memory_.take<double>(cells);
    launch(each(cells), stream(), pull_back<Formula, C>, g_, pools, params_, weight, t, sum_u,
           sum_1, d);
    const SpreadTable<C> spread = new_spread_table();
    const double n = pools.shape[0].count;
    launch(each(cells), stream(), prepare_spread<Method, C>, cells, n,
           PoolSource{pools.mean[0], pools.var[0]}, false, 0, spread);
    const double* tallies = tally_spread(spread, args.x, n, pools.var[0]);
    launch(each(cells), stream(), finish_slopes<Method, C>, cells, params_.spread, n, tallies,
           pools.var[0], d.mean[0], d.var[0], spread, t.q, t.r);
    const View x = view(kX, args.x), dy = view(kDy, args.dy), dx = view(kDx, args.dx);
    const GradientCoefficients<C> f{t.p, t.q, t.r, nullptr, nullptr};
    on_pieces(
        [&](auto p, auto form) {
          launch(pieces_, stream(), cell_slope_grad<T, p(), form()>, g_, dy, x, dx, team_, f,
                 spread);
        },
        [&](auto whole) {
          launch(pieces_, stream(), tile_slope_grad<T, whole()>, g_, tiles_, dy, x, dx, f, spread);
        });
  }

  // Writes the gradients of the channels' parameters too, where a channel has one coefficient cell.
  GradientSolver<Formula, C> solver_of(const BackwardArgs<C>& args,
                                       const PoolTables<Formula>& pools, const Source& weight,
                                       const GradientTable<C>& t, double* dy_u, double* dy_1,
                                       double* sum_u, double* sum_1) const {
    const bool element = static_cast<bool>(args.element_weight);
    const bool writes = !element && g_.coefficient_rows() == 1;
    return {.g = g_,
            .pools = pools,
            .params = params_,
            .weight = weight,
            .by_element = element,
            .given = args.given_mean && P == 1,
            .t = t,
            .dy_u = dy_u,
            .dy_1 = dy_1,
            .sum_u = sum_u,
            .sum_1 = sum_1,
            .dweight = writes ? dweight_of(args) : Column{},
            .dbias = writes ? dbias_of(args) : Column{},
            .pooled = {}};
  }
  // A warp where an entry has one cell.
  Team solving_team(const PoolShape& shape, int most_threads) const {
    const bool one = g_.shared_rows || shape.cells_of_entry(g_) == 1;
    return {one ? 5 : log2_of(std::min(kSolveThreads, most_threads)), 0, nullptr};
  }

  // Tables for the gradients of a pool's means and variances, which are summed over processes
  // together.
  void take_in_row(Index entries, double*& mean, double*& var) {
    mean = memory_.take<double>(2 * entries);
    var = mean + entries;
  }

  void pull_back_through(const PoolTables<Formula>& pools, const BackwardArgs<C>& args,
                         const Source& weight, const GradientTable<C>& t, const double* sum_u,
                         const double* sum_1) {
    constexpr int G = kParameterCount<Method>;
    const int computed = args.given_mean ? 1 : 0;
    const Index cells = g_.coefficient_cells();
    CellGradients<Formula> d{}, pooled{};
    if (args.dparams) d.params = memory_.take<double>(G * cells);
    for (int i = 0; i < P; ++i) {
      d.mean[i] = memory_.take<double>(cells);
      d.var[i] = memory_.take<double>(cells);
    }
    launch(each(cells), stream(), pull_back<Formula, C>, g_, pools, params_, weight, t, sum_u,
           sum_1, d);
    for (int i = 0; args.dparams && i < G; ++i) {
      sum_columns<double>({d.params + i * cells, column(args.dparams + i * g_.cells)}, {},
                          g_.coefficient_rows(), g_.cells);
    }
    for (int i = computed; i < P; ++i) {
      const Index entries = pools.shape[i].entries();
      take_in_row(entries, pooled.mean[i], pooled.var[i]);
      const Summers by(g_.shared_rows ? 1 : pools.shape[i].cells_of_entry(g_));
      launch(each_by(by, entries), stream(), sum_pool, by, g_, pools.shape[i], d.mean[i], d.var[i],
             pooled.mean[i], pooled.var[i]);
      if (Exchange* exchange = exchange_of(i, args.population)) {
        sum_over_processes(*exchange, pooled.mean[i], 2 * entries, memory_);
      }
    }
    launch(each(cells), stream(), share_out<Formula, C>, g_, pools, computed, pooled,
           args.element_weight ? sum_1 : nullptr, t);
  }

  void element_gradients(const BackwardArgs<C>& args, const GradientTable<C>& t) {
    const bool tiled = pieces_of_ == Pieces::tiled;
    const Index lines = g_.outer * (tiled ? Index(tiles_.by_tiles.divisor) : g_.cells);
    const Index runs = std::min(kParameterRuns, lines);
    C* dweight = memory_.take<C>(runs * g_.count);
    C* dbias = memory_.take<C>(runs * g_.count);
    const View dy = view(kDy, args.dy), x = view(kX, args.x);
    const Coefficients<C> f{t.a_c, t.center, t.b_c};
    Launch l = one_each(g_.count, kLoneThreads);
    if (tiled) l = {ceil_div(g_.count, kTilePacksOfMany << tiles_.log_rows), pieces_.threads};
    l.blocks_y = runs;
    if (!tiled) {
      launch(l, stream(), parameter_sums<T>, g_, dy, x, f, dweight, dbias);
    } else if (whole_) {
      launch(l, stream(), tile_parameter_sums<T, true>, g_, tiles_, dy, x, f, dweight, dbias);
    } else {
      launch(l, stream(), tile_parameter_sums<T, false>, g_, tiles_, dy, x, f, dweight, dbias);
    }
    sum_parts(dweight, dbias, runs, g_.count, args);
  }

  const Plan& plan_;
  DeviceMemory& memory_;
  const Params params_;
  Geometry g_;
  enum class Pieces { packed, tiled, lone } pieces_of_ = Pieces::lone;
  RowPolicy policy_;
  Team team_{};
  TileShape tiles_{};
  bool whole_ = false;  // packs
  Launch pieces_{};
};

}  // namespace

template <class Method, class T>
void forward_on(const Plan& plan, DeviceMemory& memory, const typename Method::Params& params,
                const ForwardArgs<Compute<T>>& args) {
  Pipeline<Method, T>(plan, memory, params).forward(args);
}
template <class Method, class T>
void backward_on(const Plan& plan, DeviceMemory& memory, const typename Method::Params& params,
                 const BackwardArgs<Compute<T>>& args) {
  Pipeline<Method, T>(plan, memory, params).backward(args);
}

#define NORMCORE_INSTANTIATE_ON(type, T)                                              \
  template void forward_on<type, T>(const Plan&, DeviceMemory&, const type::Params&,  \
                                    const ForwardArgs<Compute<T>>&);                  \
  template void backward_on<type, T>(const Plan&, DeviceMemory&, const type::Params&, \
                                     const BackwardArgs<Compute<T>>&);

}  // namespace normcore::cuda
