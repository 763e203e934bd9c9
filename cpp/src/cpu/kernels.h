// The table of kernels: what the pipeline may ask of an instruction set. One table per ISA, filled
// by kernels.inl. Every kernel works on one tile, `rows` x `cols` elements with unit stride along a
// row, and knows no norm. Kernels come in pairs: a cell of the statistics table lies along a row
// (kRows: its coefficients are indexed by row) or down a column (kCols: indexed by column).
// Kernels never allocate and never throw.
#pragma once

#include <cstddef>
#include <cstdint>

namespace normcore::cpu {

using Index = std::int64_t;

enum Orientation : int { kRows = 0, kCols = 1 };

struct In {
  const void* data;
  Index stride;     // elements from row to row
  Index ahead = 0;  // elements from here to what is wanted next, 0: nothing to ask for
};
struct Out {
  void* data;
  Index stride;
  bool stream;  // write past the caches
};

// Centred element: u = (x - center) * unit, with `unit` a power of two that brings u near 1, so
// that products neither overflow nor underflow for data of any magnitude.
template <class C>
struct Centering {
  const C* center;
  const C* unit;
};

// y = a * (x - center) + b, per cell.
template <class C>
struct Affine {
  const C* a;
  const C* center;
  const C* b;
};

// dx = p * dy + q * u + r, per cell; with elementwise weights p * (weight * dy - r) + q * u.
template <class C>
struct Gradient {
  const C* p;
  const C* q;
  const C* r;
  Centering<C> x;
};

// Spread that is no variance: u = (x - center - low) * unit, per cell, with center + low the mean.
// Of order p, or by the largest: those with |u| > threshold count whole, those at it by `tie`. Its
// slope is h(u) = sgn(u) * |u|^(p - 1), or sgn(u) * (1, tie or 0).
template <class C>
struct Spread {
  const C* center;
  const C* low;
  const C* unit;
  const C* threshold;
  const C* tie;
  C order;  // p; 0: by the largest
};
// What `tally` sums over a cell: |u|^p and h(u); or of those beyond the threshold their number, |u|
// and sgn(u), and of those at it their number and sgn(u).
inline constexpr int kOrderSums = 2, kLargestSums = 5;

// Products of a matrix with vectors. Vectors are narrow for the kernels and wide between them.
template <class C>
struct MatrixKernels {
  // y[r] += sum of a[r, c] * x[c]
  void (*dot)(In a, Index rows, Index cols, const C* x, double* y);
  // x[c] += sum of y[r] * a[r, c]
  void (*accumulate)(In a, Index rows, Index cols, const C* y, C* x);
  // to = from / s, with s a power of two near the largest |from|; returns s.
  double (*narrow)(const double* from, Index n, C* to);
  // to += scale * from, and from = 0
  void (*drain)(C* from, Index n, double scale, double* to);
  // y[r, c] = x[r, c] * p * q + left[r] * right[c]; without left the first term alone.
  void (*add_rank_one)(In x, Out y, Index rows, Index cols, C p, C q, const C* left,
                       const C* right);
};

// Channel mixing: of every pixel y_i = g_i sgn(x_i) |x_i|^p D_i^(-e), with the denominators
// D_i = b_i + sum_j W_ij |x_j|^a over its channels. It works on `pixels` at a time, in buffers
// [rows][pixels] of the compute type: a row for every channel, and more of them, holding 1 (0 for
// dy), up to a multiple of `block`. Those of x, y, dy and dx may be wider, and hold more pixels.
//
// What of float leaves the range in which nothing is lost is another's work, in double. Bounds of
// |x|, unless it is 0, and of D; logarithms to base 2, also of what bounds the gradients beside.
struct MixingRange {
  float least_x = 0, most_x = 0x1p110f, least_d = 0x1p-100f, most_d = 0x1p100f;
  float least_gain = 0, most_gain = 0, most_weight = 0;
};
template <class C>
struct Mixture {
  Index channels, rows;
  Index stride;  // from row to row of x, y, dy and dx
  // W and its transpose, packed by blocks of rows: [rows / block][channels][block]. For pixels that
  // are rows (`mix`) a block is `pixels` wide, and so is what `rows` is a multiple of.
  const C* weights;
  const C* transposed;  // backward alone
  const C* offset;      // b, g: [rows], 1 beyond the channels
  const C* gain;
  C a, p, e;
  MixingRange range{};
};
// What backward adds to, [rows][lanes]: sums over the pixels of dL/dD, of dy y / g, and the terms
// of dL/da and dL/de. Absent ones are null.
template <class C>
struct MixingSums {
  C* offset;
  C* gain;
  C* a;
  C* e;
};
template <class C>
struct MixingKernels {
  Index block, lanes, pixels;
  // u = |x|^a and the denominators d. True, and which pixels, where something left the range in
  // which the compute type loses nothing: of y, or with dy of the gradients.
  bool (*denominators)(const Mixture<C>& f, const C* x, const C* dy, C* u, C* d, bool* outside);
  // x becomes y.
  void (*divide)(const Mixture<C>& f, const C* d, C* x);
  // dy becomes dx, d becomes t = dL/dD.
  void (*gradient)(const Mixture<C>& f, const C* x, const C* u, C* d, C* dy, C* scratch,
                   const MixingSums<C>& sums);
  // dw += t u^T, summed over the pixels, of rows [first, last), which are whole blocks: in blocks
  // [rows / block][columns][block][pixels], with columns = ceil(rows / pixels). `turn` first puts t
  // and u beside each other for it, in (rows + columns * pixels) * pixels.
  void (*turn)(const C* t, const C* u, Index rows, C* turned);
  void (*outer_product)(const C* turned, Index rows, Index first, Index last, C* dw);
};
// A tile of `count` pixels in the compute type: x and u, [rows][pixels] or [count][rows] where
// pixels are rows, and the ends of x, [2][lanes]. None: count 0.
template <class C>
struct MixingTile {
  Index count = 0;
  C* x;
  C* u;
  C* ends;
};
// Between a tile of pixels and such a buffer, `stride` wide: the tile's rows are channels (kRows)
// or pixels, which pass through a scratch of 4 * rows. The last `pixels` are filled up with `pad`.
template <class C>
struct PixelKernels {
  void (*load[2])(In x, Index channels, Index pixels, C pad, C* buffer, Index stride, C* scratch);
  void (*store[2])(const C* buffer, Index stride, Out y, Index channels, Index pixels, C* scratch);
  // In one loop y of a tile, and `next`, which is read from x: products are enough to wait for
  // both. True where something of y left the range: it is to be done again. Of pixels that are rows
  // the buffers have room for whole blocks of them, and u of those that are missing is to be
  // filled.
  bool (*mix[2])(const Mixture<C>& f, const MixingTile<C>& tile, Out y, const MixingTile<C>& next,
                 In x);
};

// ---- windows: sums over neighbours, and what divides by them

// Windows of up to this many elements are added up one by one; longer ones in halves, which takes
// scratch memory.
inline constexpr Index kDirectWindow = 8;

// At element i of row r, the elements at r * stride + i + step * (0 .. n - 1) of an array in the
// compute type; n is at most kDirectWindow.
struct Window {
  Index stride, step, n;
};

// y = x * (k + scale * sum)^-beta, with the sum of a window of squares.
template <class C>
struct Response {
  C k, scale, beta;
};

// y = weight * u / sqrt((sigma * unit)^2 + variance), u = (x - center) * unit - rest; the first
// four per cell, the others run across it. `unit`, a power of two, keeps all of it near 1.
template <class C>
struct Divisor {
  const C* center;
  const C* rest;
  const C* unit;
  const C* variance;
  const C* sigma;
  const C* weight;
};
// Gradients of what runs across the cells.
struct ChannelSums {
  double* dsigma;
  double* dweight;
  double* dbias;
};

template <class C>
struct WindowKernels {
  // out[r * stride + i] = x^2; the largest.
  C (*squares)(In x, Index rows, Index cols, C* out, Index stride);
  // out[t] = a[t] + a[t + step] + ..., n terms of any number. Beyond kDirectWindow it uses up a.
  void (*sums)(C* a, C* out, Index count, Index step, Index n);
  void (*response)(In x, Out y, Index rows, Index cols, const C* squares, Window w, Response<C> f);
  // direct = dy * s^-beta and terms = direct * x / s, both as far apart as the squares are, with
  // s = k + scale * sum.
  void (*response_terms)(In dy, In x, Index rows, Index cols, const C* squares, Window w,
                         Response<C> f, C* direct, C* terms);
  // dx = direct - scale * x * the window's sum of terms
  void (*response_grad)(In x, Out dx, Index rows, Index cols, const C* direct, const C* terms,
                        Window w, C scale);
  void (*divide[2])(In x, Out y, Index rows, Index cols, Divisor<C> f, const C* bias);
  // Per cell, with g = weight * dy and r = 1 / sqrt(...): direct = sum g * r and slope = sum g * u
  // * r^3. Added to `sums`, per row or column: -sigma * unit^2 * g * u * r^3, dy * u * r, and dy;
  // of at most a few hundred cells.
  void (*divided_sums[2])(In dy, In x, Index rows, Index cols, Divisor<C> f, double* direct,
                          double* slope, ChannelSums sums);
  // dx = unit * g * r + q * u + shift, the last two per cell
  void (*divided_grad[2])(In dy, In x, Out dx, Index rows, Index cols, Divisor<C> f, const C* q,
                          const C* shift);
};

template <class C>
struct KernelSet {
  // Mean and sum of squared deviations, or (squares) sum of squares, per cell of the tile.
  void (*moments[2])(In x, Index rows, Index cols, double* mean, double* m2);
  void (*squares[2])(In x, Index rows, Index cols, double* mean, double* m2);
  // Of the elements that count, by weights >= 0 in the compute type: sum of weights, mean and sum
  // of squared deviations per cell. What has no weight may hold anything.
  void (*masked_moments[2])(In x, In mask, Index rows, Index cols, double* weight, double* mean,
                            double* m2);
  void (*affine[2])(In x, Out y, Index rows, Index cols, Affine<C> f);
  // y = weight * (a * (x - center) + b) + bias; weight and bias run across the cell.
  void (*weighted_affine[2])(In x, Out y, Index rows, Index cols, Affine<C> f, const C* weight,
                             const C* bias);
  // The same (weight and bias null, or both given) of the rows of a tile, and in the same loop the
  // moments, or (true) the sums of squares, of as many rows of another: [weighted][squares].
  void (*affine_moments[2][2])(In x, Out y, Index rows, Index cols, Affine<C> f, const C* weight,
                               const C* bias, In next, double* mean, double* m2);
  // sum dy * u and sum dy per cell; `weighted_sums` with weight * dy, weight running across it.
  void (*sums[2])(In dy, In x, Index rows, Index cols, Centering<C> f, double* dy_u, double* dy_1);
  void (*weighted_sums[2])(In dy, In x, Index rows, Index cols, Centering<C> f, const C* weight,
                           double* dy_u, double* dy_1);
  // weighted_sums and parameter_sums of the same elements.
  void (*sums_and_parameters[2])(In dy, In x, Index rows, Index cols, Centering<C> f,
                                 const C* weight, double* dy_u, double* dy_1, Affine<C> xhat,
                                 C* dweight, C* dbias);
  void (*grad[2])(In dy, In x, Out dx, Index rows, Index cols, Gradient<C> f);
  // dx = p * dy + mask * (q * u + r)
  void (*masked_grad[2])(In dy, In x, In mask, Out dx, Index rows, Index cols, Gradient<C> f);
  // dx = p * (weight * dy - r) + q * u, and + dh unless its data is null.
  void (*weighted_grad[2])(In dy, In x, In dh, Out dx, Index rows, Index cols, Gradient<C> f,
                           const C* weight);
  // dweight += sum dy * (a * (x - center) + b) and dbias += sum dy, summed over the cells.
  void (*parameter_sums[2])(In dy, In x, Index rows, Index cols, Affine<C> xhat, C* dweight,
                            C* dbias);
  void (*tally[2])(In x, Index rows, Index cols, Spread<C> f, double* const* sums);
  // max |u| per cell
  void (*peak[2])(In x, Index rows, Index cols, Spread<C> f, double* largest);
  // The elements whose |u| reaches the threshold, which is above 0: u and the cell of each. Returns
  // their number, or one more than there is room for.
  Index (*outliers[2])(In x, Index rows, Index cols, Spread<C> f, C* u, Index* cell, Index room);
  // dx = p * dy + q * h(u) + r; the centring of f is not used.
  void (*slope_grad[2])(In dy, In x, Out dx, Index rows, Index cols, Gradient<C> f, Spread<C> s);
  void (*add)(In x, In residual, Out h, Index rows, Index cols);
  // Of cells of several columns: the value of each, as often as it has columns. What follows in
  // `to`, up to a vector, is written too.
  void (*repeat)(const C* values, Index cells, Index columns, C* to);
  void (*load)(const void* src, C* dst, Index n);
  void (*store)(const C* src, void* dst, Index n);
  MatrixKernels<C> matrix;
  PixelKernels<C> pixels;
  WindowKernels<C> windows;
};

struct KernelTable {
  const char* isa;
  Index vector_bytes;
  KernelSet<float> f32, bf16, f16;
  KernelSet<double> f64;
  // Chan's merge of n pairs of moments of uniform counts: a <- a + b.
  void (*merge)(Index n, double count_a, double* mean_a, double* m2_a, double count_b,
                const double* mean_b, const double* m2_b);
  // Of cells of several columns: what their columns have, each of `count` elements, as their own.
  void (*join_moments)(Index cells, Index columns, double count, const double* mean,
                       const double* m2, double* to_mean, double* to_m2);
  void (*join_sums)(Index cells, Index columns, const double* sums, double* to);
  void (*copy)(const void* src, void* dst, std::size_t bytes, bool stream);
  MixingKernels<float> mixing32;
  MixingKernels<double> mixing64;
};

}  // namespace normcore::cpu
