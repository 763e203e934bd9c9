// The channel family, and whatever the row kernels do not hold: two sweeps over the tensor with
// small kernels on the table of cells between them. A cell is cut into pieces; partial results have
// one entry per cell and piece, and are merged in a fixed order (solve.cuh).
//
// Where the elements of a cell follow each other a team of threads takes a piece and moves packs of
// 16 bytes; where cells are neighbours, element for element, tiles do (columns.cuh); with other
// strides a thread takes a piece alone, neighbouring threads neighbouring cells.
#pragma once

#include "cuda/geometry.cuh"
#include "cuda/rows.cuh"

namespace normcore::cuda {

// Who takes a piece. whole: a team, and all packs are whole and lie on their boundary; packed: a
// team, wherever they lie.
enum class Form { lone, packed, whole };

// Per coefficient cell; see Geometry::coefficient_of.
template <class C>
struct Coefficients {
  const C* a;
  const C* center;
  const C* b;

  __device__ void of_cell(Index at, C& a_of, C& center_of, C& b_of) const {
    a_of = a[at];
    center_of = center[at];
    b_of = b[at];
  }
  template <class Tile, int V>
  __device__ void of_tile(const Tile& tile, Index at, C (&a_of)[V], C (&center_of)[V],
                          C (&b_of)[V]) const {
    tile.coefficients(a, at, a_of);
    tile.coefficients(center, at, center_of);
    tile.coefficients(b, at, b_of);
  }
};
template <class C>
struct GradientCoefficients {
  const C* p;
  const C* q;
  const C* r;
  const C* center;
  const C* unit;
};

// Which piece of which cell a thread, or its team, works on.
struct Piece {
  Index cell, index, first;
  int n;  // 0: none
};
// `backwards`: the last blocks first, for what the sweep before has left in the cache.
template <Form kForm>
__device__ Piece my_piece(const Geometry& g, const Team& team, bool backwards = false) {
  const unsigned block = backwards ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
  const Index cells = g.outer * g.cells;
  Index cell, index;
  if constexpr (kForm == Form::lone) {
    // Cells run fastest where threads work alone, so that neighbours read neighbours.
    const Index at = Index(block) * blockDim.x + threadIdx.x;
    index = at / cells;
    cell = at - index * cells;
    if (index >= g.pieces) return {0, 0, 0, 0};
  } else {
    const Index at = Index(block) * team.teams() + team.number();
    if (at >= cells * g.pieces) return {0, 0, 0, 0};
    const auto [c, i] = g.by_pieces(at);
    cell = c;
    index = i;
  }
  return {cell, index, index * g.piece, int(g.elements_of(index))};
}

template <bool kRaw, class T, int P, Form kForm>
__global__ void __launch_bounds__(512)
    cell_moments(Geometry g, View x, Team team, double* mean, double* m2) {
  using C = Compute<T>;
  const Piece piece = my_piece<kForm>(g, team);
  const T* start = x.cell_start<const T>(g, piece.cell);
  const Index to = piece.cell * g.pieces + piece.index;
  if constexpr (kForm != Form::lone) {
    team.scratch = shared_memory();
    int phase = 0;
    const int n = piece.n;
    RowPacks<T, P, kForm == Form::whole> held;
    held.template load<false>(start + piece.first, n, team);
    C center;
    const Stats s = row_statistics<kRaw>(held, n, 1 / double(n), n, team, phase, center);
    if (n > 0 && team.index() == 0) {
      mean[to] = double(center) + s.mean;
      m2[to] = s.var * double(n);
    }
  } else if (piece.n > 0) {
    // In float64, which holds the square of any float; twice, for an exact centre.
    const double n = double(piece.n);
    double center = 0;
    if constexpr (!kRaw) {
      // From the first on: equal elements have exactly themselves for a mean.
      const double first = double(widen(start[x.step(g, piece.first)]));
      for (Index s = piece.first; s < piece.first + piece.n; ++s) {
        center += (double(widen(start[x.step(g, s)])) - first) / n;
      }
      center += first;
    }
    double rest = 0, squares = 0;
    for (Index s = piece.first; s < piece.first + piece.n; ++s) {
      const double d = double(widen(start[x.step(g, s)])) - center;
      rest += d;
      squares += d * d;
    }
    mean[to] = kRaw ? 0 : center + rest / n;
    m2[to] = squares;
  }
}

// y = a * (x - center) + b, and with elementwise parameters weight * that + bias. F: the
// coefficients, or what makes them.
template <class T, int P, Form kForm, class F>
__global__ void __launch_bounds__(512)
    cell_apply(Geometry g, View x, View y, Team team, F f, const Compute<T>* weight,
               const Compute<T>* bias) {
  using C = Compute<T>;
  constexpr bool kWhole = kForm == Form::whole;
  const Piece piece = my_piece<kForm>(g, team, true);
  const T* from = x.cell_start<const T>(g, piece.cell);
  T* to = y.cell_start<T>(g, piece.cell);
  C a, center, b;
  auto value = [&](C v, Index s) {
    const C normalized = fused(a, v - center, b);
    return weight ? fused(weight[s], normalized, bias[s]) : normalized;
  };
  if constexpr (kForm != Form::lone) {
    const int n = piece.n;
    RowPacks<T, P, kWhole> held;
    held.load(from + piece.first, n, team);
    if constexpr (requires { f.of_piece(g, team, piece, a, center, b); }) {
      f.of_piece(g, team, piece, a, center, b);
    } else {
      f.of_cell(g.coefficient_of(piece.cell), a, center, b);
    }
    held.each_pack(n, team, [&](int p, C(&v)[kPack<T>], int left) {
      const Index first = piece.first + held.at(p, team);
#pragma unroll
      for (int e = 0; e < kPack<T>; ++e) {
        if (kWhole || e < left) v[e] = value(v[e], first + e);
      }
      held.pack[p] = Pack<T>::narrowed(v);
    });
    held.store(to + piece.first, n, team);
  } else {
    f.of_cell(g.coefficient_of(piece.cell), a, center, b);
    for (Index s = piece.first; s < piece.first + piece.n; ++s) {
      to[y.step(g, s)] = narrow<T>(value(widen(from[x.step(g, s)]), s));
    }
  }
}

// h = x + residual
template <class T, int P, Form kForm>
__global__ void __launch_bounds__(512)
    cell_add(Geometry g, View x, View residual, View h, Team team) {
  const Piece piece = my_piece<kForm>(g, team);
  const T* a = x.cell_start<const T>(g, piece.cell);
  const T* b = residual.cell_start<const T>(g, piece.cell);
  T* to = h.cell_start<T>(g, piece.cell);
  if constexpr (kForm != Form::lone) {
    const int n = piece.n;
    RowPacks<T, P, kForm == Form::whole> terms, others;
    terms.load(a + piece.first, n, team);
    others.load(b + piece.first, n, team);
    terms.each_pack(n, team, [&](int p, Compute<T>(&v)[kPack<T>], int) {
      Compute<T> w[kPack<T>];
      others.pack[p].widen(w);
#pragma unroll
      for (int e = 0; e < kPack<T>; ++e) v[e] += w[e];
      terms.pack[p] = Pack<T>::narrowed(v);
    });
    terms.store(to + piece.first, n, team);
  } else {
    for (Index s = piece.first; s < piece.first + piece.n; ++s) {
      to[h.step(g, s)] = narrow<T>(widen(a[x.step(g, s)]) + widen(b[residual.step(g, s)]));
    }
  }
}

// sum dy * u and sum dy of every piece, u = (x - center) * unit; weight as in cell_apply.
template <class T, int P, Form kForm>
__global__ void __launch_bounds__(512)
    cell_sums(Geometry g, View dy, View x, Team team, const Compute<T>* center,
              const Compute<T>* unit, const Compute<T>* weight, double* dy_u, double* dy_1) {
  using C = Compute<T>;
  constexpr bool kWhole = kForm == Form::whole;
  const Piece piece = my_piece<kForm>(g, team);
  const Index to = piece.cell * g.pieces + piece.index;
  const T* dy_start = dy.cell_start<const T>(g, piece.cell);
  const T* x_start = x.cell_start<const T>(g, piece.cell);
  if constexpr (kForm != Form::lone) {
    team.scratch = shared_memory();
    int phase = 0;
    const int n = piece.n;
    RowPacks<T, P, kWhole> x_held, dy_held;
    x_held.template load<false>(x_start + piece.first, n, team);
    dy_held.template load<false>(dy_start + piece.first, n, team);
    const Index at = g.coefficient_of(piece.cell);
    const C c = center[at], u = unit[at];
    C sums[2] = {0, 0};
    dy_held.each_pack(n, team, [&](int p, C(&dy_p)[kPack<T>], int left) {
      const Index first = piece.first + dy_held.at(p, team);
      C x_p[kPack<T>];
      x_held.pack[p].widen(x_p);
#pragma unroll
      for (int e = 0; e < kPack<T>; ++e) {
        if (!kWhole && e >= left) continue;
        if (weight) dy_p[e] *= weight[first + e];
        sums[0] = fused(dy_p[e], (x_p[e] - c) * u, sums[0]);
        sums[1] += dy_p[e];
      }
    });
    team_sum(sums, team, phase);
    if (n > 0 && team.index() == 0) {
      dy_u[to] = double(sums[0]);
      dy_1[to] = double(sums[1]);
    }
  } else if (piece.n > 0) {
    const Index at = g.coefficient_of(piece.cell);
    const C c = center[at], u = unit[at];
    double sum_u = 0, sum_1 = 0;
    for (Index s = piece.first; s < piece.first + piece.n; ++s) {
      C v = widen(dy_start[dy.step(g, s)]);
      if (weight) v *= weight[s];
      sum_u += double(v * ((widen(x_start[x.step(g, s)]) - c) * u));
      sum_1 += double(v);
    }
    dy_u[to] = sum_u;
    dy_1[to] = sum_1;
  }
}

// What a gradient has by element: how much an element counts, or weights; null: none.
template <class C, bool kMasked>
using ByElement = std::conditional_t<kMasked, View, const C*>;

// p * dy + m * (q * u + r): what does not count may hold anything.
template <class C>
__device__ C masked_grad(C of_dy, C of_statistics, C m) {
  return of_dy + (m > 0 ? m * of_statistics : C(0));
}

// dx = p * dy + q * u + r, or with weights by element p * (weight * dy - r) + q * u, or with a mask
// as masked_grad. Null q and r are 0: then x, which may hold anything, is not read. dh is added.
template <class T, int P, Form kForm, bool kMasked>
__global__ void __launch_bounds__(512)
    cell_grad(Geometry g, View dy, View x, View dh, View dx, Team team,
              GradientCoefficients<Compute<T>> f, ByElement<Compute<T>, kMasked> by_element) {
  using C = Compute<T>;
  constexpr bool kWhole = kForm == Form::whole;
  const Piece piece = my_piece<kForm>(g, team, true);
  const bool through_statistics = f.q != nullptr, has_dh = dh.data != nullptr;
  const T* dy_start = dy.cell_start<const T>(g, piece.cell);
  const T* x_start = x.cell_start<const T>(g, piece.cell);
  const T* dh_start = has_dh ? dh.cell_start<const T>(g, piece.cell) : nullptr;
  T* to = dx.cell_start<T>(g, piece.cell);
  C p_c, c, u, q, r;
  auto settle = [&] {
    const Index at = g.coefficient_of(piece.cell);
    p_c = f.p[at];
    c = f.center[at];
    u = f.unit[at];
    q = through_statistics ? f.q[at] : C(0);
    r = f.r ? f.r[at] : C(0);
  };
  const C* row = nullptr;
  if constexpr (kMasked) {
    row = by_element.template cell_start<const C>(g, piece.cell);
  } else {
    row = by_element;
  }
  auto value = [&](C dy_i, C x_i, Index s) {
    if constexpr (kMasked) {
      const C of_statistics = through_statistics ? fused(q, (x_i - c) * u, r) : r;
      return masked_grad(p_c * dy_i, of_statistics, row[by_element.step(g, s)]);
    } else {
      const C d = row ? p_c * (row[s] * dy_i - r) : fused(p_c, dy_i, r);
      return through_statistics ? fused(q, (x_i - c) * u, d) : d;
    }
  };
  if constexpr (kForm != Form::lone) {
    const int n = piece.n;
    RowPacks<T, P, kWhole> x_held, dy_held, dh_held;
    x_held.load(x_start + piece.first, through_statistics ? n : 0, team);
    dy_held.load(dy_start + piece.first, n, team);
    if (has_dh) dh_held.load(dh_start + piece.first, n, team);
    settle();
    dy_held.each_pack(n, team, [&](int p, C(&dx_p)[kPack<T>], int left) {
      const Index first = piece.first + dy_held.at(p, team);
      C x_p[kPack<T>];
      x_held.pack[p].widen(x_p);
#pragma unroll
      for (int e = 0; e < kPack<T>; ++e) {
        if (kWhole || e < left) dx_p[e] = value(dx_p[e], x_p[e], first + e);
      }
      if (has_dh) {
        C extra[kPack<T>];
        dh_held.pack[p].widen(extra);
#pragma unroll
        for (int e = 0; e < kPack<T>; ++e) dx_p[e] += extra[e];
      }
      dy_held.pack[p] = Pack<T>::narrowed(dx_p);
    });
    dy_held.store(to + piece.first, n, team);
  } else {
    settle();
    for (Index s = piece.first; s < piece.first + piece.n; ++s) {
      C d = value(widen(dy_start[dy.step(g, s)]), widen(x_start[x.step(g, s)]), s);
      if (has_dh) d += widen(dh_start[dh.step(g, s)]);
      to[dx.step(g, s)] = narrow<T>(d);
    }
  }
}

// The gradients of elementwise parameters: a thread an element, blockIdx.y a run of the cells; each
// run leaves a row of [runs, count].
template <class T>
__global__ void parameter_sums(Geometry g, View dy, View x, Coefficients<Compute<T>> f,
                               Compute<T>* dweight, Compute<T>* dbias) {
  using C = Compute<T>;
  const Index s = Index(blockIdx.x) * blockDim.x + threadIdx.x;
  if (s >= g.count) return;
  const Index cells = g.outer * g.cells, runs = gridDim.y, run = blockIdx.y;
  const Index dy_step = dy.step(g, s), x_step = x.step(g, s);
  double dw = 0, db = 0;
  for (Index cell = run * cells / runs; cell < (run + 1) * cells / runs; ++cell) {
    const Index at = g.coefficient_of(cell);
    const C dy_i = widen(dy.cell_start<const T>(g, cell)[dy_step]);
    const C d = widen(x.cell_start<const T>(g, cell)[x_step]) - f.center[at];
    dw += double(dy_i * (f.a[at] * d + f.b[at]));
    db += double(dy_i);
  }
  dweight[run * g.count + s] = C(dw);
  dbias[run * g.count + s] = C(db);
}

}  // namespace normcore::cuda
