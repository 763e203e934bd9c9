// The channel family where a team can hold a whole pool: its cells are read once, stay in
// registers, and give their statistics, their solved coefficients and their results, as rows.cuh
// does for rows. A pack never spans two cells, so it has the weight of one channel. For methods of
// one pool and one formula for all of its channels, without gradients of their own; the elements of
// a cell follow each other.
#pragma once

#include "cuda/geometry.cuh"
#include "cuda/rows.cuh"

namespace normcore::cuda {

// The pools of a call: `members` cells each, `packs` packs for a cell.
struct HeldPools {
  Geometry g;
  PoolShape shape;
  int members, packs;
  double inverse_count;

  // One weight for all members.
  __host__ __device__ bool one_channel() const {
    return shape.extent == Extent::column || shape.extent == Extent::cell;
  }
  __device__ Index first_cell(Index entry) const { return shape.cell_of(g, entry, 0); }
  __device__ Index channel(Index entry, int member) const {
    return first_cell(entry) % g.cells + (one_channel() ? 0 : member);
  }
  // From a member to the next.
  __device__ Index step(const View& v) const {
    return shape.extent == Extent::column ? v.outer[0] : v.cell;
  }
};

// Which packs a thread holds: of pack p the member that it is of, its first element there, and the
// elements of the member; none beyond the pool.
template <class T, int P>
struct Places {
  int member[P], first[P], n[P];

  __device__ Places(const HeldPools& pools, const Team& team, bool active) {
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const int j = p * team.size() + team.index();
      const int m = j / pools.packs;
      const bool inside = active && m < pools.members;
      member[p] = inside ? m : 0;
      first[p] = (j - m * pools.packs) * kPack<T>;
      n[p] = inside ? int(pools.g.count) : 0;
    }
  }
  // f(value) for all elements of what `held` holds,
  template <class F>
  __device__ void each(const Pack<T> (&held)[P], F f) const {
#pragma unroll
    for (int p = 0; p < P; ++p) {
      Compute<T> v[kPack<T>];
      held[p].widen(v);
#pragma unroll
      for (int e = 0; e < kPack<T>; ++e) {
        if (first[p] + e < n[p]) f(v[e]);
      }
    }
  }
  // and for the zeros beyond them.
  template <class F>
  __device__ void each_and_zeros(const Pack<T> (&held)[P], F f) const {
#pragma unroll
    for (int p = 0; p < P; ++p) {
      Compute<T> v[kPack<T>];
      held[p].widen(v);
#pragma unroll
      for (int e = 0; e < kPack<T>; ++e) f(v[e]);
    }
  }
};

template <class T, int P>
__device__ void load_places(const Places<T, P>& at, const T* start, Index step,
                            Pack<T> (&pack)[P]) {
#pragma unroll
  for (int p = 0; p < P; ++p)
    pack[p] = load_pack(start + at.member[p] * step, at.first[p], at.n[p]);
}
template <class T, int P>
__device__ void store_places(const Places<T, P>& at, T* start, Index step, const Team& team,
                             const Pack<T> (&pack)[P]) {
#pragma unroll
  for (int p = 0; p < P; ++p) {
    store_pack_by_warp(start + at.member[p] * step, at.first[p], at.n[p], pack[p], team.lanes());
  }
}

template <bool kRaw, class T, int P>
__device__ Stats pool_statistics(const Places<T, P>& at, const Pack<T> (&held)[P],
                                 const HeldPools& pools, bool active, const Team& team, int& phase,
                                 Compute<T>& center) {
  return held_statistics<kRaw>([&](auto f) { at.each(held, f); },
                               [&](auto f) { at.each_and_zeros(held, f); }, pools.shape.count,
                               pools.inverse_count, active, team, phase, center);
}

template <class Method, class T, int P>
__global__ void __launch_bounds__(512)
    pool_forward(HeldPools pools, View x, View y, typename Method::Params params, Team team,
                 Source weight, Source bias, StatisticsColumns out) {
  using C = Compute<T>;
  team.scratch = shared_memory();
  int phase = 0;
  const Index mine = first_row(team);
  const bool active = mine < pools.shape.entries();
  const Index entry = active ? mine : 0, cell = pools.first_cell(entry);
  const Places<T, P> at(pools, team, active);
  Pack<T> held[P];
  load_places(at, x.cell_start<const T>(pools.g, cell), pools.step(x), held);
  C center;
  const Stats stats[1] = {
      pool_statistics<Method::raw>(at, held, pools, active, team, phase, center)};
  const Coef f = Method::coefficients(stats, params, pools.channel(entry, 0));
  if (out && active && team.index() == 0) {
    write_statistics(out, entry, double(center) + stats[0].mean, stats[0].var,
                     Method::rstd(stats[0], params, pools.channel(entry, 0)));
  }
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const Index k = pools.channel(entry, at.member[p]);
    const Applied<C> y_of_x = applied<C>(f, weight(k), bias(k));
    C v[kPack<T>];
    held[p].widen(v);
#pragma unroll
    for (C& v_e : v) v_e = fused(y_of_x.a, v_e - center, y_of_x.shift);
    held[p] = Pack<T>::narrowed(v);
  }
  store_places(at, y.cell_start<T>(pools.g, cell), pools.step(y), team, held);
  if (team.log_cluster > 0) cluster_barrier();
}

// Gradients of the channels' parameters, before they are summed over the pools: [entries] where a
// pool has one channel, else [cells of the table]. Null: not wanted.
struct MemberGradients {
  Column dweight;
  Column dbias;

  __device__ void put(Index i, double dw, double db) const {
    if (dweight.data) cuda::put(dweight, i, dw);
    if (dbias.data) cuda::put(dbias, i, db);
  }
};

// Shared memory of pool_backward beyond the team's, where a pool has several channels: two sums of
// every pack and of every member.
template <class C>
int pool_sums_bytes(const HeldPools& pools, int packs_of_block) {
  return pools.one_channel() ? 0 : 2 * (packs_of_block + pools.members) * int(sizeof(C));
}

// The sums of each member's packs: of this block's packs by its warps, then over the cluster.
template <int P, class C, class Write>
__device__ void member_sums(const HeldPools& pools, const Team& team, bool active,
                            const C (&of_packs)[P][2], Write write) {
  const int thread = team.thread(), threads = team.threads();
  C* first_slot = reinterpret_cast<C*>(team.scratch + Team::kDoubles);
  C* slots = first_slot + team.number() * P * threads * 2;
  C* of_members = first_slot + team.teams() * P * threads * 2;
#pragma unroll
  for (int p = 0; p < P; ++p) {
    slots[(p * threads + thread) * 2] = of_packs[p][0];
    slots[(p * threads + thread) * 2 + 1] = of_packs[p][1];
  }
  __syncthreads();
  const int lanes = team.lanes(), groups = threads / lanes;
  for (int m = thread / lanes; m < pools.members; m += groups) {
    C sum[2] = {0, 0};
#pragma unroll
    for (int p = 0; p < P; ++p) {
      // Of the packs [block, block + threads) of the pool, those of this member.
      const int block = p * team.size() + team.index() - thread;
      const int begin = m * pools.packs - block, end = begin + pools.packs;
      for (int j = (begin > 0 ? begin : 0) + thread % lanes; j < end && j < threads; j += lanes) {
        sum[0] += slots[(p * threads + j) * 2];
        sum[1] += slots[(p * threads + j) * 2 + 1];
      }
    }
    for (int d = lanes / 2; d > 0; d /= 2) {
      sum[0] += __shfl_xor_sync(0xffffffffu, sum[0], d);
      sum[1] += __shfl_xor_sync(0xffffffffu, sum[1], d);
    }
    if (thread % lanes == 0) {
      if (team.log_cluster > 0) {
        of_members[m * 2] = sum[0];
        of_members[m * 2 + 1] = sum[1];
      } else if (active) {
        write(m, double(sum[0]), double(sum[1]));
      }
    }
  }
  if (team.log_cluster == 0) return;
  cluster_barrier();
  for (int m = team.index(); m < pools.members; m += team.size()) {
    double sum[2] = {0, 0};
    for (int b = 0; b < team.cluster(); ++b) {
      sum[0] += double(of_block(of_members, b)[m * 2]);
      sum[1] += double(of_block(of_members, b)[m * 2 + 1]);
    }
    write(m, sum[0], sum[1]);
  }
}

template <class Method, class T, int P>
__global__ void __launch_bounds__(512)
    pool_backward(HeldPools pools, View dy, View x, View dx, typename Method::Params params,
                  Team team, Source weight, SavedStatistics saved, MemberGradients out) {
  using C = Compute<T>;
  constexpr int V = kPack<T>;
  team.scratch = shared_memory();
  int phase = 0;
  const Index mine = first_row(team);
  const bool active = mine < pools.shape.entries();
  const Index entry = active ? mine : 0, cell = pools.first_cell(entry);
  const Places<T, P> at(pools, team, active);
  Pack<T> x_held[P], dy_held[P];
  load_places(at, x.cell_start<const T>(pools.g, cell), pools.step(x), x_held);
  load_places(at, dy.cell_start<const T>(pools.g, cell), pools.step(dy), dy_held);

  Stats stats[1];
  C center = 0;
  if (saved.mean) {
    stats[0] = counted_from_center<Method::raw>(
        saved.mean[entry * saved.step], saved.var[entry * saved.step], pools.shape.count, &center);
  } else {
    stats[0] = pool_statistics<Method::raw>(at, x_held, pools, active, team, phase, center);
  }
  const Coef f = Method::coefficients(stats, params, pools.channel(entry, 0));
  const double unit = unit_of(f.a);
  const C unit_c = C(unit);
  // Beyond the pool dy is zero, and times dy it must stay zero.
  auto u = [&](int p, int e, C x_e) {
    return at.first[p] + e < at.n[p] ? (x_e - center) * unit_c : C(0);
  };
  C of_packs[P][2];  // sums of dy * u and dy
  C sums[2] = {0, 0};
#pragma unroll
  for (int p = 0; p < P; ++p) {
    of_packs[p][0] = of_packs[p][1] = 0;
    C x_p[V], dy_p[V];
    x_held[p].widen(x_p);
    dy_held[p].widen(dy_p);
#pragma unroll
    for (int e = 0; e < V; ++e) {
      of_packs[p][0] = fused(dy_p[e], u(p, e, x_p[e]), of_packs[p][0]);
      of_packs[p][1] += dy_p[e];
    }
    const bool by_pack = weight && !pools.one_channel();
    const C w = by_pack ? C(weight(pools.channel(entry, at.member[p]))) : C(1);
    sums[0] += w * of_packs[p][0];
    sums[1] += w * of_packs[p][1];
  }
  team_sum(sums, team, phase);
  const bool of_pool = weight && pools.one_channel();
  const double w = of_pool ? weight(pools.channel(entry, 0)) : 1;
  StatsGrad ds[1];
  NoGradients none;
  Method::pullback(stats, params, pools.channel(entry, 0),
                   coefficient_gradient(w, double(sums[0]), double(sums[1]), unit), ds, none);
  Share share;
  share.add<Method::raw>(ds[0], stats[0]);
  const bool zero = is_always_zero<Method>(stats[0].count);
  const C q = zero ? C(0) : C(share.q * inverse_of_unit(unit)), r = zero ? C(0) : C(share.r);
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const double w_p = weight(pools.channel(entry, at.member[p]));
    const C scale = zero ? C(0) : C(w_p * f.a);
    C x_p[V], dx[V];
    x_held[p].widen(x_p);
    dy_held[p].widen(dx);
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const C of_statistics = ShiftsOnly<Method> ? r : fused(q, u(p, e, x_p[e]), r);
      dx[e] = fused(scale, dx[e], of_statistics);
    }
    dy_held[p] = Pack<T>::narrowed(dx);
  }
  store_places(at, dx.cell_start<T>(pools.g, cell), pools.step(dx), team, dy_held);

  if (out.dweight.data || out.dbias.data) {
    auto dweight = [&](double dy_u, double dy_1) { return weight_gradient(f, dy_u, dy_1, unit); };
    if (pools.one_channel()) {
      if (active && team.index() == 0) {
        out.put(entry, dweight(double(sums[0]), double(sums[1])), double(sums[1]));
      }
    } else {
      member_sums(pools, team, active, of_packs, [&](int m, double dy_u, double dy_1) {
        out.put(cell + m, dweight(dy_u, dy_1), dy_1);
      });
    }
  }
  if (team.log_cluster > 0) cluster_barrier();
}

}  // namespace normcore::cuda
