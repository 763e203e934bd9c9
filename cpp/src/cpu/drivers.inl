// The loops of all kernels, and what they read and write: rows of tiles, coefficients that run
// along or down them. `sweep` writes and `fold` sums; they own tails, alignment and streaming, and
// a kernel is what happens to one vector. Partial sums are kept in the compute type within a tile
// (the caller keeps tiles short).
#pragma once

#include "kernels.h"
#include "simd.h"

namespace normcore::cpu::NORMCORE_ISA {
namespace {

template <class T>
SI const T* row(In x, Index r) {
  return static_cast<const T*>(x.data) + r * x.stride;
}
template <class T>
SI T* row(Out y, Index r) {
  return static_cast<T*>(y.data) + r * y.stride;
}

// Rows from this many vectors on are worth aligning to their output.
constexpr Index kAlignVectors = 16;

// What a step of a sweep gives: one vector for each of R rows.
template <class C, int R>
struct Vectors {
  Vec<C> at[R];
};
SI Vectors<float, 1> one(Vec<float> v) { return {{v}}; }
SI Vectors<double, 1> one(Vec<double> v) { return {{v}}; }

template <class T, class C, int R, class Tag>
SI void put_pair(T* y, Index stride, const Vectors<C, R>& a, const Vectors<C, R>& b, Tag tag) {
  for (int j = 0; j < R; ++j) store_pair(y + j * stride, a.at[j], b.at[j], tag);
}

template <bool kStream>
struct TagOfSweep {
  using type = Full;
};
template <>
struct TagOfSweep<true> {
  using type = Stream;
};
template <bool kStream>
using SweepTag = typename TagOfSweep<kStream>::type;

// Stores what f(i, tag) gives over [0, n) of rows that are `stride` apart. The vectors of a
// streamed or long row are aligned to `y`, so f must not care where they begin.
template <bool kStream, class T, class F>
struct Sweep {
  using C = Compute<T>;
  static constexpr Index N = kLanes<C>;
  T* y;
  Index stride, n;
  F f;
  Index i;

  // With what was written before.
  SI Sweep(T* to, Index to_next_row, Index count, F of_element, Index written = 0)
      : y(to), stride(to_next_row), n(count), f(of_element), i(written) {
    if (i > 0 || (!kStream && n < kAlignVectors * N)) return;
    // Elements before the first one whose vector is aligned.
    Index head = Index((0 - reinterpret_cast<std::uintptr_t>(y)) / sizeof(T)) & (N - 1);
    if (head > n) head = n;
    if (head > 0) {
      const Part part{int(head)};
      put(0, f(Index(0), part), part);
      i = head;
    }
    if (sizeof(T) < sizeof(C) && i + N <= n && reinterpret_cast<std::uintptr_t>(y + i) % kBytes) {
      step(Full{});
    }
  }
  template <int R, class Tag>
  SI void put(Index at, const Vectors<C, R>& v, Tag tag) const {
    for (int j = 0; j < R; ++j) store(y + j * stride + at, v.at[j], tag);
  }
  template <class Tag>
  SI void step(Tag tag) {
    put(i, f(i, tag), tag);
    i += N;
  }
  // The next `vectors`, a number that is even, if there are so many.
  template <int vectors>
  SI bool steps() {
    if (i + vectors * N > n) return false;
    const SweepTag<kStream> tag;
    if constexpr (sizeof(T) < sizeof(C)) {
      for (int k = 0; k < vectors; k += 2, i += 2 * N) {
        put_pair(y + i, stride, f(i, tag), f(i + N, tag), tag);
      }
    } else {
      for (int k = 0; k < vectors; ++k) step(tag);
    }
    return true;
  }
  SI void finish() {
    while (steps<2>()) {
    }
    // A single one of 16 bits is half a line.
    if (i + N <= n) step(SweepTag < kStream && sizeof(T) == sizeof(C) > {});
    if (i < n) {
      const Part part{int(n - i)};
      put(i, f(i, part), part);
    }
  }
};
template <bool kStream, class T, class F>
SI void sweep(T* y, Index stride, Index n, F f) {
  Sweep<kStream, T, F>(y, stride, n, f).finish();
}
// Whether the rows of a tile are stored past the caches. A line shared by two rows would be written
// twice, once past the caches: short rows only stream where no line is shared.
template <class T>
SI bool streams(Out y, Index cols) {
  const Index row_bytes = y.stride * Index(sizeof(T));
  const bool aligned =
      (reinterpret_cast<std::uintptr_t>(y.data) | std::uintptr_t(row_bytes)) % 64 == 0;
  return y.stream && (aligned || cols > kAlignVectors * kLanes<Compute<T>>);
}

// Rows without a gap and of up to so many vectors go to memory in its order, one by one: what runs
// along them is in the nearest cache. Streamed, columns of 64 to 256 took 0.55 to 0.94 of the time
// of four rows together; columns of 4096 would take 1.05, and 490 of rows far apart 1.2. Rows
// of up to four vectors that are not streamed stay together: that was not measured.
constexpr Index kInOrder = 64;

// Sweeps the rows of an output tile: f.template operator()<R>(r, run) handles rows r .. r + R - 1,
// R being G, kShort for rows of up to four vectors, or 1, and gives run a step for them. Rows taken
// together share their loads of what runs along them; streamed rows can where they are aligned
// alike.
template <int G, class T, int kShort = G, class F>
SI void sweep_tile(Out y, Index rows, Index cols, F f) {
  Index r = 0;
  auto take = [&]<int R>(auto run) __attribute__((always_inline)) {
    for (; r + R <= rows; r += R) f.template operator()<R>(r, run);
  };
  auto together = [&](auto run) __attribute__((always_inline)) {
    if (kShort > G && cols <= 4 * kLanes<Compute<T>>) take.template operator()<kShort>(run);
    take.template operator()<G>(run);
  };
  const bool in_order = y.stride == cols && cols <= kInOrder * kLanes<Compute<T>>;
  if (streams<T>(y, cols)) {
    auto run = [&](auto step) __attribute__((always_inline)) {
      sweep<true>(row<T>(y, r), y.stride, cols, step);
    };
    const bool alike = y.stride * Index(sizeof(T)) % kBytes == 0;
    if (alike && !in_order) together(run);
    take.template operator()<1>(run);
  } else {
    auto run = [&](auto step) __attribute__((always_inline)) {
      sweep<false>(row<T>(y, r), y.stride, cols, step);
    };
    if (!in_order || cols <= 4 * kLanes<Compute<T>>) together(run);
    take.template operator()<1>(run);
  }
}

// Short rows without a gap that all begin off the lines of y are the same memory as rows that begin
// on one, `head` elements later, with what runs along them turned by as much. If y is such:
// tile(first element, rows, columns, stream, values) for what comes before these rows, for them,
// and for what is left of the last one.
template <class T, int K, class F>
SI bool turn_rows(Out y, Index rows, Index cols, const Compute<T>* const (&values)[K], F tile) {
  using C = Compute<T>;
  constexpr Index kLine = 64 / Index(sizeof(T)), kMost = kAlignVectors * kLanes<C>;
  const Index off = Index(reinterpret_cast<std::uintptr_t>(y.data) % 64 / sizeof(T));
  if (off == 0 || y.stride != cols || cols % kLine != 0 || cols >= kMost || rows < 16) return false;
  const Index head = kLine - off;
  C room[K][kMost];
  const C *first[K], *turned[K], *last[K];
  for (int k = 0; k < K; ++k) {
    for (Index i = head; i < cols; ++i) room[k][i - head] = values[k][i];
    for (Index i = 0; i < head; ++i) room[k][cols - head + i] = values[k][i];
    first[k] = values[k];
    turned[k] = room[k];
    last[k] = values[k] + head;
  }
  tile(Index(0), Index(1), head, false, first);
  tile(head, rows - 1, cols, y.stream, turned);
  tile((rows - 1) * cols + head, Index(1), cols - head, false, last);
  return true;
}
// Short rows without a gap whose lines are shared, and that shall be stored past the caches: a few
// at a time are written to a room that stays in the nearest one, and copied from there in whole
// lines. If y is such: tile(first row, rows, where they go).
template <class T, class F>
SI bool stream_through_room(Out y, Index rows, Index cols, F tile) {
  constexpr Index kRoom = 8192 / Index(sizeof(T)), kWord = sizeof(float) / sizeof(T);
  const bool words = reinterpret_cast<std::uintptr_t>(y.data) % sizeof(float) == 0 &&
                     (kWord < 2 || cols % kWord == 0);
  if (!y.stream || y.stride != cols || !words || cols * 8 > kRoom || streams<T>(y, cols))
    return false;
  alignas(64) T room[kRoom];
  for (Index r = 0; r < rows; r += kRoom / cols) {
    const Index n = rows - r < kRoom / cols ? rows - r : kRoom / cols;
    tile(r, n, Out{room, cols, false});
    const float* words_of = reinterpret_cast<const float*>(room);
    sweep<true>(reinterpret_cast<float*>(row<T>(y, r)), 0, n * cols * Index(sizeof(T)) / 4,
                [=](Index i, auto tag)
                    __attribute__((always_inline)) { return one(load(words_of + i, tag)); });
  }
  return true;
}
template <class T>
SI In from(In x, Index element) {
  return {row<T>(x, 0) + element, x.stride, x.ahead};
}
template <class T>
SI Out from(Out y, Index element, bool stream) {
  return {row<T>(y, 0) + element, y.stride, stream};
}

// R rows of an input tile, and the lines to ask for while they are worked on.
template <class T, int R>
struct Rows {
  const T* at[R];
  Index ahead;
  SI Rows(In x, Index r) : ahead(x.ahead) {
    for (int j = 0; j < R; ++j) at[j] = row<T>(x, r + j);
  }
  template <class Tag>
  SI Vec<Compute<T>> load(int j, Index i, Tag tag) const {
    if (ahead != 0) prefetch(at[j] + i + ahead);
    return NORMCORE_ISA::load(at[j] + i, tag);
  }
};

// Calls f(i, j, tag) over [i, n), with j in 0..3 naming one of four independent accumulators; i is
// a multiple of four vectors. kAnyOrder: nothing else runs along the elements, which two
// neighbouring vectors may then share out as is cheapest to load.
template <class C, bool kAnyOrder, class F>
SI void four_from(Index i, F f) {
  constexpr Index N = kLanes<C>;
  auto four = [&](auto first, auto second) __attribute__((always_inline)) {
    f(i, 0, first);
    f(i + N, 1, second);
    f(i + 2 * N, 2, first);
    f(i + 3 * N, 3, second);
  };
  if constexpr (kAnyOrder) {
    four(FirstOfTwo{}, SecondOfTwo{});
  } else {
    four(Full{}, Full{});
  }
}
template <class C, bool kAnyOrder = false, class F>
SI void fold_from(Index i, Index n, F f) {
  constexpr Index N = kLanes<C>;
  for (; i + 4 * N <= n; i += 4 * N) four_from<C, kAnyOrder>(i, f);
  if (i + N <= n) f(i, 0, Full{}), i += N;
  if (i + N <= n) f(i, 1, Full{}), i += N;
  if (i + N <= n) f(i, 2, Full{}), i += N;
  if (i < n) f(i, 3, Part{int(n - i)});
}
template <class C, bool kAnyOrder = false, class F>
SI void fold(Index n, F f) {
  fold_from<C, kAnyOrder>(0, n, f);
}
template <class C>
SI Vec<C> join(const Vec<C> (&acc)[4]) {
  return (acc[0] + acc[1]) + (acc[2] + acc[3]);
}
template <class C>
SI C total(const Vec<C> (&acc)[4]) {
  return hsum<C>(join<C>(acc));
}

// Rows of up to four vectors are reduced four rows at a time. Calls f.template operator()<J, R>(r,
// tag) for J vectors, the last of them covered by tag, of rows r .. r + R - 1.
template <class C, class F>
SI void short_rows(Index rows, Index cols, F f) {
  constexpr Index N = kLanes<C>;
  auto run = [&]<int J>(auto tag) __attribute__((always_inline)) {
    Index r = 0;
    for (; r + 4 <= rows; r += 4) f.template operator()<J, 4>(r, tag);
    for (; r < rows; ++r) f.template operator()<J, 1>(r, tag);
  };
  const Part last{int(cols % N)};
  switch ((cols + N - 1) / N) {
    case 1:
      return last.lanes ? run.template operator()<1>(last) : run.template operator()<1>(Full{});
    case 2:
      return last.lanes ? run.template operator()<2>(last) : run.template operator()<2>(Full{});
    case 3:
      return last.lanes ? run.template operator()<3>(last) : run.template operator()<3>(Full{});
    default:
      return last.lanes ? run.template operator()<4>(last) : run.template operator()<4>(Full{});
  }
}
// Calls f(j, i, tag) for each of J vectors, and adds up what it gives.
template <int J, class C, class Tag, class F>
SI Vec<C> add_vectors(Tag last, F f) {
  constexpr Index N = kLanes<C>;
  Vec<C> v[4] = {};
  for (int j = 0; j < J - 1; ++j) v[j] = f(j, j * N, Full{});
  v[J - 1] = f(J - 1, (J - 1) * N, last);
  return join<C>(v);
}
template <class C, int R>
SI void sum_rows(const Vec<C> (&v)[R], C (&out)[R]) {
  if constexpr (R == 4) {
    hsum4<C>(v, out);
  } else {
    for (int r = 0; r < R; ++r) out[r] = hsum<C>(v[r]);
  }
}

// Long rows are taken strip by strip, several rows each, where parameters run along them: these
// then stay in the nearest cache. A page of each row, which is as far as prefetchers look.
template <class C>
constexpr Index kRowStrip = 4096 / Index(sizeof(C));
// Layer norm forward from so many on: rows of 4096 floats 0.84 of the time, of 3072 0.92; 2048
// would take 1.05.
constexpr Index kManyStrips = 3;

// Columns per call of a kernel that keeps sums per column: their arrays live on the stack.
constexpr Index kStrip = 512;

// Calls f(i, tag) over [0, n) in vectors from the first element on.
template <class C, class F>
SI void sweep_from_start(Index n, F f) {
  constexpr Index N = kLanes<C>;
  Index i = 0;
  for (; i + N <= n; i += N) f(i, Full{});
  if (i < n) f(i, Part{int(n - i)});
}

// Calls block.template operator()<R>(r) for eight rows at a time, and for what is left.
template <class F>
SI void in_eights(Index rows, F block) {
  Index r = 0;
  for (; r + 8 <= rows; r += 8) block.template operator()<8>(r);
  for (; r < rows; ++r) block.template operator()<1>(r);
}

// Calls f.template operator()<R>(r, i, tag): eight rows at a time over each vector of a strip of
// columns, so that memory is read in streams along the rows.
template <class C, class F>
SI void row_blocks(Index rows, Index cols, F f) {
  in_eights(rows, [&]<int R>(Index r) __attribute__((always_inline)) {
    sweep_from_start<C>(cols, [&](Index i, auto tag) __attribute__((always_inline)) {
      f.template operator()<R>(r, i, tag);
    });
  });
}

// Whether rows lie in the same places of the nearest cache.
template <class T>
SI bool share_places(In x) {
  return x.stride * Index(sizeof(T)) % 4096 == 0;
}

// Calls f.template operator()<R, J, kRolled>(r, i, tag) for R rows and J vectors of columns from i
// on: many vectors where rows are short or the caller wants them `together`, as one vector of each
// row at a time would be more streams than a core follows, or evict its own lines. Rows are then
// taken in a loop (kRolled), and so is what is left of a row: to find the addresses of all would be
// as much work as what they hold.
template <class C, class F>
SI void row_groups(bool together, Index rows, Index cols, F f) {
  constexpr Index N = kLanes<C>;
  constexpr int kMost = kBytes == 64 ? 8 : 4;
  together |= cols <= kMost * N;
  in_eights(rows, [&]<int R>(Index r) __attribute__((always_inline)) {
    Index i = 0;
    auto take = [&]<int J, bool kRolled>() __attribute__((always_inline)) {
      for (; i + J * N <= cols; i += J * N) f.template operator()<R, J, kRolled>(r, i, Full{});
    };
    if constexpr (R > 1) {
      if (together) {
        take.template operator()<kMost, true>();
        take.template operator()<kMost / 2, true>();
        if constexpr (kMost > 4) take.template operator()<kMost / 4, true>();
        if (i + N <= cols) {
          f.template operator()<R, 1, true>(r, i, Full{});
          i += N;
        }
      }
    }
    take.template operator()<1, false>();
    if (i < cols) f.template operator()<R, 1, true>(r, i, Part{int(cols - i)});
  });
}
// f(k) for R rows, in a loop that stays one if kRolled.
template <int R, bool kRolled, class F>
SI void each_row(F f) {
  if constexpr (kRolled) {
#pragma GCC unroll 1
    for (int k = 0; k < R; ++k) f(k);
  } else {
    for (int k = 0; k < R; ++k) f(k);
  }
}

// A coefficient of the tile over rows r .. r + R - 1: one number per row, or a vector along them.
template <Orientation kCells, int R, class C>
struct Coefficient {
  const C* values;
  Vec<C> in_row[R];
  SI Coefficient(const C* v, Index r) : values(v) {
    if constexpr (kCells == kRows) {
      for (int j = 0; j < R; ++j) in_row[j] = splat(v[r + j]);
    }
  }
  // At row r + j; `along` is what along(i, tag) gave for these columns.
  template <class Tag>
  SI Vec<C> along(Index i, Tag tag) const {
    if constexpr (kCells == kRows) {
      return Vec<C>{};
    } else {
      return load(values + i, tag);
    }
  }
  SI Vec<C> at(int j, Vec<C> along) const {
    if constexpr (kCells == kRows) {
      return in_row[j];
    } else {
      return along;
    }
  }
};
// Elementwise parameters run the other way: along the columns where cells are rows.
template <Orientation kCells, int R, class C>
using Parameter = Coefficient<kCells == kRows ? kCols : kRows, R, C>;

// Rows that an apply kernel takes together: what runs along columns is worth sharing.
template <Orientation kCells>
constexpr int kGroup = kCells == kCols ? 4 : 1;
template <Orientation kCells>
constexpr int kShortGroup = kCells == kCols || kBytes == 64 ? 4 : 2;

}  // namespace
}  // namespace normcore::cpu::NORMCORE_ISA
