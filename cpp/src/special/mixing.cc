// A tile of pixels is worked on in buffers of the compute type, in the core's own cache. Float
// pixels of which something leaves the safe range are done again in double, which no float can
// overflow.
#include "special/mixing.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

#include "cpu/arrays.h"
#include "cpu/dispatch.h"
#include "cpu/explain.h"
#include "cpu/parallel.h"
#include "cpu/running_call.h"
#include "cuda/special.h"
#include "plan/tuning.h"
#include "plan/with_compute.h"
#include "special/pixels.h"

namespace normcore {
namespace {

using cpu::Workspace;
using Scope = Workspace::Scope;

template <class C>
const cpu::MixingKernels<C>& mixing_kernels() {
  if constexpr (sizeof(C) == 8) {
    return cpu::kernels().mixing64;
  } else {
    return cpu::kernels().mixing32;
  }
}

// Logarithms to base 2 of the least and the greatest |v| that is not 0; 0 where all are.
struct Magnitudes {
  double least = 0, most = 0;
  template <class C>
  Magnitudes(const C* values, Index n) {
    double low = std::numeric_limits<double>::infinity(), high = 0;
    for (Index i = 0; i < n; ++i) {
      const double size = std::abs(double(values[i]));
      if (size > 0) low = std::min(low, size);
      high = std::max(high, size);
    }
    if (high > 0) least = std::log2(low), most = std::log2(high);
  }
};

// Where in float |x|^a, g |x|^p and D^e all stay clear of 2^-126 and 2^128.
template <class C>
cpu::MixingRange range_of(const MixingCall& call, const C* gain, const C* weights) {
  const Index n = call.channels();
  const Magnitudes g(gain, n), w(weights, n * n);
  cpu::MixingRange range;
  const double most = std::min(110 / call.a, (110 - std::max(g.most, 0.0)) / call.p);
  double least = (-110 - std::min(g.least, 0.0)) / call.p;
  // A power that vanishes counts where a weight makes it large again, and where its slope is it.
  if (w.most > 0 || (call.a != 1 && call.a != 2)) least = std::max(least, -125 / call.a);
  const double d = std::min(100.0, 100 / std::abs(call.e));
  auto power = [](double exponent) { return float(std::exp2(exponent)); };
  range.most_x = power(most);
  range.least_x = least < -149 ? 0 : power(least);
  range.most_d = power(d);
  range.least_d = power(-d);
  range.least_gain = float(g.least);
  range.most_gain = float(g.most);
  range.most_weight = float(w.most);
  return range;
}

// The parameters as the kernels want them, in memory of the scope, by blocks of so many rows.
template <class C>
cpu::Mixture<C> pack(const MixingCall& call, bool backward, Index stride, Index block,
                     Scope& scope) {
  const Index n = call.channels();
  const Index rows = round_up(n, block);
  auto per_channel = [&](const ConstTensor& t, double power) {
    C* out = scope.take_filled<C>(rows, C(1));
    if (!t) return out;
    double* values = scope.take<double>(t.size());
    read_array(t, whole_walk(t), scope, values);
    for (Index i = 0; i < n; ++i) {
      const double v = values[t.size() == 1 ? 0 : i];
      out[i] = C(power == 1 ? v : std::pow(v, power));
    }
    return out;
  };
  C* w = scope.take<C>(n * n);
  read_array(call.weights, whole_walk(call.weights), scope, w);
  const C* offset = per_channel(call.offset, call.offset_power);
  const C* gain = per_channel(call.gain, 1);
  // Element (row, column) of W or its transpose.
  auto blocks = [&](Index row_step, Index column_step) {
    C* packed = scope.take_filled<C>(rows * n, C(0));
    for (Index i = 0; i < n; ++i) {
      C* to = packed + i / block * block * n + i % block;
      for (Index k = 0; k < n; ++k) to[k * block] = w[i * row_step + k * column_step];
    }
    return packed;
  };
  return {n,
          rows,
          stride,
          blocks(n, 1),
          backward ? blocks(1, n) : nullptr,
          offset,
          gain,
          C(call.a),
          C(call.p),
          C(call.e),
          range_of(call, gain, w)};
}

// As kernels want them that work on channels as rows.
template <class C>
cpu::Mixture<C> pack(const MixingCall& call, bool backward, Index stride, Scope& scope) {
  return pack<C>(call, backward, stride, mixing_kernels<C>().block, scope);
}

// Buffers of a task, [rows][stride] and [rows][pixels].
template <class C>
struct Buffers {
  C *x, *dy, *u, *d, *scratch;
  Buffers(Index rows, Index stride, bool backward, Scope& scope) {
    const Index n = rows * mixing_kernels<C>().pixels;
    x = scope.take_filled<C>(rows * stride, C(1));
    dy = backward ? scope.take_filled<C>(rows * stride, C(0)) : nullptr;
    u = scope.take<C>(n);
    d = scope.take<C>(n);
    scratch = scope.take<C>(std::max(n, 4 * rows));
  }
  // From a pixel of x and dy on.
  Buffers from(Index pixel) const {
    Buffers b = *this;
    b.x += pixel;
    if (dy) b.dy += pixel;
    return b;
  }
};

// ---- pixels of which something leaves the range of float

// The chosen pixels of a float buffer in double, for one half of them at a time: tiles of double
// have half as many. The other pixels, and rows beyond the channels, are `pad`.
void widen(const float* from, Index stride, const bool* chosen, Index rows, Index first, double pad,
           double* to) {
  const Index half = mixing_kernels<double>().pixels;
  for (Index r = 0; r < rows; ++r) {
    for (Index p = 0; p < half; ++p) {
      to[r * half + p] = chosen[first + p] ? double(from[r * stride + first + p]) : pad;
    }
  }
}
// To a buffer that is as wide as the float tile.
void narrow(const double* from, Index rows, Index first, float* to) {
  const Index all = mixing_kernels<float>().pixels, half = mixing_kernels<double>().pixels;
  for (Index r = 0; r < rows; ++r) {
    for (Index p = 0; p < half; ++p) to[r * all + first + p] = float(from[r * half + p]);
  }
}
// Calls f(the first pixel) for both halves.
template <class F>
void for_halves(const F& f) {
  f(0);
  f(mixing_kernels<double>().pixels);
}
// Chosen pixels of `to` become those of such a buffer.
void replace_pixels(float* to, Index stride, const bool* chosen, Index rows, const float* from) {
  const Index pixels = mixing_kernels<float>().pixels;
  for (Index r = 0; r < rows; ++r) {
    for (Index p = 0; p < pixels; ++p) {
      if (chosen[p]) to[r * stride + p] = from[r * pixels + p];
    }
  }
}
void fill_pixels(float* to, Index stride, const bool* chosen, Index rows, float number) {
  for (Index r = 0; r < rows; ++r) {
    for (Index p = 0; p < mixing_kernels<float>().pixels; ++p) {
      if (chosen[p]) to[r * stride + p] = number;
    }
  }
}

// No more pixels than a tile has whose rows are channels, in any format.
constexpr Index kMostPixels = 64;

template <class C>
void forward_tile(const MixingCall& call, const cpu::Mixture<C>& f, const Buffers<C>& b) {
  const auto& k = mixing_kernels<C>();
  bool outside[kMostPixels];
  const bool any = k.denominators(f, b.x, nullptr, b.u, b.d, outside);
  if constexpr (sizeof(C) == 4) {
    if (any) {
      Scope scope(Workspace::local());
      const cpu::Mixture<double> wide =
          pack<double>(call, false, mixing_kernels<double>().pixels, scope);
      const Buffers<double> w(wide.rows, wide.stride, false, scope);
      float* results = scope.take<float>(f.channels * k.pixels);
      for_halves([&](Index first) {
        widen(b.x, f.stride, outside, f.channels, first, 1, w.x);
        forward_tile(call, wide, w);
        narrow(w.x, f.channels, first, results);
      });
      k.divide(f, b.d, b.x);
      return replace_pixels(b.x, f.stride, outside, f.channels, results);
    }
  }
  k.divide(f, b.d, b.x);
}

// ---- forward

// Work on tiles [first, last) of the pixels.
struct Task {
  Index first, last;
};
struct Schedule {
  Index tiles, per_task;
  Index tasks() const { return ceil_div(tiles, per_task); }
  Task operator[](Index i) const { return {i * per_task, std::min(tiles, (i + 1) * per_task)}; }
};

// A multiplication for every pair of channels weighs more than the memory that is moved.
int threads_of(const Pixels& pixels, const Context& context) {
  const Index weight = 1 + pixels.channels() / 16;
  return cpu::threads_for(pixels.plan().bytes * weight, context.threads);
}
cpu::Deal deal(const Pixels& pixels) {
  return {.sticky = pixels.plan().bytes <= tuning::kStickyBytes};
}

// How many tiles are read and written together; but there should be work for many threads.
template <class C>
Index tiles_together(const MixingCall& call, Index most) {
  const Index tiles = call.x.size() / (call.channels() * mixing_kernels<C>().pixels);
  return std::clamp<Index>(tiles / tuning::kMixingTasks, 1, most);
}

// Pixels of a tile in which they are rows: whole blocks.
template <class C>
Index pixels_across(const MixingCall& call) {
  const auto& k = mixing_kernels<C>();
  const Index row_bytes = round_up(call.channels(), k.pixels) * Index(sizeof(C));
  const Index most = tuning::kMixingTileBytes / (4 * row_bytes);
  const Index share = call.x.size() / (call.channels() * tuning::kMixingTasks);
  return std::max<Index>(1, std::min(most, share) / k.block) * k.block;
}

// A tile of which something left the range of float, from its buffer to y; f as forward_tile wants
// it.
template <class C>
void mix_again(const MixingCall& call, const cpu::Mixture<C>& f, const Pixels& pixels,
               const cpu::MixingTile<C>& tile, Index width, const cpu::Out& y) {
  const auto& k = mixing_kernels<C>();
  const auto& from = cpu::kernel_set<C>(cpu::kernels(), DTypeOf<C>::value).pixels;
  const auto& to = cpu::kernel_set<C>(cpu::kernels(), call.x.dtype()).pixels;
  const int o = pixels.orientation();
  const Index element = static_cast<Index>(size_of(call.x.dtype()));
  const Index step = pixels.rows() ? 1 : width, y_step = pixels.rows() ? 1 : y.stride;
  Scope scope(Workspace::local());
  const Buffers<C> b(f.rows, k.pixels, false, scope);
  for (Index p = 0; p < tile.count; p += k.pixels) {
    const Index n = std::min(k.pixels, tile.count - p);
    from.load[o]({tile.x + p * step, width, 0}, f.channels, n, C(1), b.x, k.pixels, b.scratch);
    forward_tile(call, f, b);
    char* here = static_cast<char*>(y.data) + p * y_step * element;
    to.store[o](b.x, k.pixels, {here, y.stride, y.stream}, f.channels, n, b.scratch);
  }
}

// Whether a tile of y whose pixels are rows is stored past the caches as a whole: without a gap
// between these, and with blocks of channels that do not begin on lines.
bool streams_by_room(const cpu::Out& y, Index row_bytes, Index channels) {
  const auto address = reinterpret_cast<std::uintptr_t>(y.data);
  const bool lines = (address | static_cast<std::uintptr_t>(row_bytes)) % 64 == 0;
  return y.stream && y.stride == channels && !lines && address % sizeof(float) == 0;
}

// Tile by tile, each of them read while the one before is mixed: the cores do not wait for memory
// alone, but where a tile has to be gathered.
template <class C>
void forward_in_one_loop(const MixingCall& call, const Pixels& pixels, const Tensor& y,
                         const Context& context) {
  const auto& k = mixing_kernels<C>();
  const DType dtype = call.x.dtype();
  const auto mix = cpu::kernel_set<C>(cpu::kernels(), dtype).pixels.mix[pixels.orientation()];
  const int threads = threads_of(pixels, context);
  explain(call.op, pixels.plan(), threads);
  Scope scope(Workspace::local());
  const cpu::Mixture<C> f =
      pack<C>(call, false, k.pixels, pixels.rows() ? k.block : k.pixels, scope);
  const Index element = static_cast<Index>(size_of(dtype)), tile_bytes = pixels.scratch() * element;
  const Schedule schedule{pixels.tiles(), std::max<Index>(1, tuning::kUnitBytes / tile_bytes)};
  const Index width = pixels.rows() ? k.pixels : f.rows;
  const Index size = width * (pixels.rows() ? f.rows : round_up(pixels.most(), k.block));
  cpu::parallel_for(schedule.tasks(), threads, deal(pixels), [&](Index i) {
    Scope task_scope(Workspace::local());
    auto take = [&] {
      C *x = task_scope.take<C>(size), *u = task_scope.take<C>(size);
      return cpu::MixingTile<C>{0, x, u, task_scope.take<C>(2 * k.lanes)};
    };
    cpu::MixingTile<C> now = take(), next = take();
    void* x_scratch = task_scope.take<char>(tile_bytes);
    void* y_scratch = task_scope.take<char>(tile_bytes);
    std::optional<cpu::Mixture<C>> by_rows;  // packed once, where it is wanted
    if (pixels.rows()) by_rows = f;
    Pixels::Tile at{};
    const Task task = schedule[i];
    for (Index j = task.first; j <= task.last; ++j) {
      cpu::RunningCall::check();  // of thousands of channels a task takes seconds
      const Pixels::Tile coming = j < task.last ? pixels.tile(j) : Pixels::Tile{at.first, 0};
      next.count = coming.count;
      if (!pixels.rows()) {  // what a last block has no pixels for is multiplied as well
        const Index missing = round_up(next.count, k.block) - next.count;
        std::fill_n(next.u + next.count * width, missing * width, C(1));
      }
      const cpu::Out tile = pixels.out(kY, y.data(), dtype, at, y_scratch);
      const bool by_room =
          !pixels.rows() && streams_by_room(tile, f.channels * element, f.channels);
      const cpu::Out out = by_room ? cpu::Out{y_scratch, tile.stride, false} : tile;
      const cpu::In in =
          coming.count > 0 ? pixels.in(kX, call.x.data(), dtype, coming, x_scratch) : cpu::In{};
      if (mix(f, now, out, next, in)) {
        if (!by_rows) by_rows = pack<C>(call, false, k.pixels, task_scope);
        mix_again(call, *by_rows, pixels, now, width, out);
      }
      if (by_room) {
        const auto bytes = static_cast<std::size_t>(at.count * f.channels * element);
        cpu::kernels().copy(y_scratch, tile.data, bytes, /*stream=*/true);
      } else if (at.count > 0) {
        pixels.commit(kY, y.data(), dtype, at, out);
      }
      std::swap(now, next);
      at = coming;
    }
  });
}

template <class C>
void forward(const MixingCall& call, const Tensor& y, const Context& context) {
  const auto& k = mixing_kernels<C>();
  const ConstTensor y_view = y;
  const DType dtype = call.x.dtype();
  {
    Pixels pixels({&call.x, &y_view}, call.channel_axis, k.pixels, pixels_across<C>(call), k.block);
    const bool in_one_loop =
        pixels.rows() ? pixels.rows_in_place(2) && pixels.begin_on_lines(kY, y.data(), dtype)
                      : 3 * round_up(call.channels(), k.pixels) <= 4 * call.channels();
    if (in_one_loop) return forward_in_one_loop<C>(call, pixels, y, context);
  }
  const Pixels pixels({&call.x, &y_view}, call.channel_axis,
                      k.pixels * tiles_together<C>(call, tuning::kMixingTilesForward), k.pixels);
  const Index stride = pixels.most();
  const auto& transfer = cpu::kernel_set<C>(cpu::kernels(), dtype).pixels;
  const int o = pixels.orientation(), threads = threads_of(pixels, context);
  explain(call.op, pixels.plan(), threads);
  Scope scope(Workspace::local());
  const cpu::Mixture<C> f = pack<C>(call, false, stride, scope);
  const Index element = static_cast<Index>(size_of(dtype));
  const Index tile_bytes = pixels.scratch() * element;
  const Schedule schedule{pixels.tiles(), std::max<Index>(1, tuning::kUnitBytes / tile_bytes)};
  cpu::parallel_for(schedule.tasks(), threads, deal(pixels), [&](Index i) {
    Scope task_scope(Workspace::local());
    const Buffers<C> b(f.rows, stride, false, task_scope);
    void* x_scratch = task_scope.take<char>(tile_bytes);
    void* y_scratch = task_scope.take<char>(tile_bytes);
    const Task task = schedule[i];
    for (Index j = task.first; j < task.last; ++j) {
      cpu::RunningCall::check();  // of thousands of channels a task takes seconds
      const Pixels::Tile t = pixels.tile(j);
      transfer.load[o](pixels.in(kX, call.x.data(), dtype, t, x_scratch), f.channels, t.count, C(1),
                       b.x, stride, b.scratch);
      for (Index p = 0; p < t.count; p += k.pixels) forward_tile(call, f, b.from(p));
      const cpu::Out out = pixels.out(kY, y.data(), dtype, t, y_scratch);
      transfer.store[o](b.x, stride, out, f.channels, t.count, b.scratch);
      pixels.commit(kY, y.data(), dtype, t, out);
    }
  });
}

// ---- backward

// Rows of blocks of dW, as outer_product leaves them in the compute type, move on to doubles
// [channels][channels] and begin again.
template <class C>
void move_products(const cpu::Mixture<C>& f, Index first, Index last, C* from, double* to) {
  const auto& k = mixing_kernels<C>();
  const Index columns = ceil_div(f.rows, k.pixels);
  from += first * columns * k.pixels;
  for (Index i = first; i < last; i += k.block) {
    for (Index j = 0; j < columns * k.pixels; j += k.pixels) {
      const Index width = std::clamp<Index>(f.channels - j, 0, k.pixels);
      for (Index r = i; r < i + k.block; ++r, from += k.pixels) {
        double* out = to + r * f.channels + j;
        for (Index c = 0; r < f.channels && c < width; ++c) out[c] += double(from[c]);
        std::fill_n(from, k.pixels, C(0));
      }
    }
  }
}
template <class C>
Index products_size(const cpu::Mixture<C>& f) {
  const Index pixels = mixing_kernels<C>().pixels;
  return f.rows * round_up(f.rows, pixels);
}
template <class C>
Index turned_size(const cpu::Mixture<C>& f) {
  const Index pixels = mixing_kernels<C>().pixels;
  return (f.rows + round_up(f.rows, pixels)) * pixels;
}

// What the gradients of the parameters are summed in over a run of tiles: numbers of the compute
// type, and every so many pixels doubles.
template <class C>
class Sums {
 public:
  // `turned`: products are only made ready, there.
  Sums(const cpu::Mixture<C>& f, const MixingGradients& wanted, Scope& scope, C* turned = nullptr)
      : k_(mixing_kernels<C>()), f_(f), turned_(turned) {
    const Index n = f.rows * k_.lanes;
    auto take = [&](const double* w) { return w ? scope.take_filled<C>(n, C(0)) : nullptr; };
    rows_ = {take(wanted.offset), take(wanted.gain), take(wanted.a), take(wanted.e)};
    if (turned || !wanted.weights) return;
    weights_ = scope.take_filled<C>(products_size(f), C(0));
    turned_ = scope.take<C>(turned_size(f));
  }
  const cpu::MixingSums<C>& rows() const { return rows_; }

  void add_products(const C* t, const C* u) {
    if (turned_) k_.turn(t, u, f_.rows, turned_);
    if (weights_) k_.outer_product(turned_, f_.rows, 0, f_.rows, weights_);
  }
  // Moves on to doubles, and begins again.
  void flush(const MixingGradients& to) {
    auto move = [&](C* from, double* out, Index step) {
      if (!from) return;
      for (Index r = 0; r < f_.rows; ++r) {
        for (Index l = 0; l < k_.lanes; ++l) {
          C& value = from[r * k_.lanes + l];
          if (r < f_.channels) out[r * step] += double(value);
          value = 0;
        }
      }
    };
    move(rows_.offset, to.offset, 1);
    move(rows_.gain, to.gain, 1);
    move(rows_.a, to.a, 0);
    move(rows_.e, to.e, 0);
    if (weights_) move_products(f_, 0, f_.rows, weights_, to.weights);
  }

 private:
  const cpu::MixingKernels<C>& k_;
  const cpu::Mixture<C>& f_;
  cpu::MixingSums<C> rows_;
  C* weights_ = nullptr;
  C* turned_;
};

// `totals`(): where pixels that are done in double leave their gradients of the parameters.
template <class C, class Totals>
void backward_tile(const MixingCall& call, const cpu::Mixture<C>& f, const Buffers<C>& b,
                   Sums<C>& sums, const Totals& totals) {
  const auto& k = mixing_kernels<C>();
  bool outside[kMostPixels];
  const bool any = k.denominators(f, b.x, b.dy, b.u, b.d, outside);
  auto run = [&] {
    k.gradient(f, b.x, b.u, b.d, b.dy, b.scratch, sums.rows());
    sums.add_products(b.d, b.u);
  };
  if constexpr (sizeof(C) == 4) {
    if (any) {
      Scope scope(Workspace::local());
      const cpu::Mixture<double> wide =
          pack<double>(call, true, mixing_kernels<double>().pixels, scope);
      const Buffers<double> w(wide.rows, wide.stride, true, scope);
      const MixingGradients to = totals();
      Sums<double> wide_sums(wide, to, scope);
      float* results = scope.take<float>(f.channels * k.pixels);
      for_halves([&](Index first) {
        widen(b.x, f.stride, outside, f.channels, first, 1, w.x);
        widen(b.dy, f.stride, outside, f.channels, first, 0, w.dy);
        backward_tile(call, wide, w, wide_sums, totals);
        narrow(w.dy, f.channels, first, results);
      });
      wide_sums.flush(to);
      // In their place stands what has no gradient, and no value that could spoil a sum.
      fill_pixels(b.x, f.stride, outside, f.channels, 1);
      fill_pixels(b.dy, f.stride, outside, f.channels, 0);
      fill_pixels(b.u, k.pixels, outside, f.channels, 1);
      fill_pixels(b.d, k.pixels, outside, f.channels, 1);
      run();
      return replace_pixels(b.dy, f.stride, outside, f.channels, results);
    }
  }
  run();
}

// What a task of backward needs to read a tile, do it, and write its dx.
template <class C>
class BackwardTask {
 public:
  BackwardTask(const MixingCall& call, const cpu::Mixture<C>& f, const Pixels& pixels,
               const ConstTensor& dy, const Tensor& dx, Scope& scope)
      : call_(call),
        f_(f),
        pixels_(pixels),
        dy_(dy),
        dx_(dx),
        b_(f.rows, f.stride, true, scope),
        x_scratch_(scope.take<char>(scratch_bytes())),
        dy_scratch_(scope.take<char>(scratch_bytes())) {}

  template <class Totals>
  void run(const Pixels::Tile& t, Sums<C>& sums, const Totals& totals) const {
    const DType dtype = call_.x.dtype();
    const auto& transfer = cpu::kernel_set<C>(cpu::kernels(), dtype).pixels;
    const int o = pixels_.orientation();
    transfer.load[o](pixels_.in(kX, call_.x.data(), dtype, t, x_scratch_), f_.channels, t.count,
                     C(1), b_.x, f_.stride, b_.scratch);
    transfer.load[o](pixels_.in(kDy, dy_.data(), dtype, t, dy_scratch_), f_.channels, t.count, C(0),
                     b_.dy, f_.stride, b_.scratch);
    for (Index p = 0; p < t.count; p += mixing_kernels<C>().pixels) {
      backward_tile(call_, f_, b_.from(p), sums, totals);
    }
    const cpu::Out out = pixels_.out(kDx, dx_.data(), dtype, t, x_scratch_);
    transfer.store[o](b_.dy, f_.stride, out, f_.channels, t.count, b_.scratch);
    pixels_.commit(kDx, dx_.data(), dtype, t, out);
  }

 private:
  Index scratch_bytes() const {
    return pixels_.scratch() * static_cast<Index>(size_of(call_.x.dtype()));
  }

  const MixingCall& call_;
  const cpu::Mixture<C>& f_;
  const Pixels& pixels_;
  const ConstTensor& dy_;
  const Tensor& dx_;
  const Buffers<C> b_;
  void *x_scratch_, *dy_scratch_;
};

// Gradients of a run, or of the call.
MixingGradients take_gradients(const MixingGradients& wanted, Index channels, Index runs,
                               Scope& scope) {
  auto take = [&](const double* w, Index n) {
    return w ? scope.take_filled<double>(runs * n, 0.0) : nullptr;
  };
  return {take(wanted.weights, channels * channels), take(wanted.offset, channels),
          take(wanted.gain, channels), take(wanted.a, 1), take(wanted.e, 1)};
}
MixingGradients of_run(const MixingGradients& all, Index channels, Index run) {
  auto at = [&](double* p, Index n) { return p ? p + run * n : nullptr; };
  return {at(all.weights, channels * channels), at(all.offset, channels), at(all.gain, channels),
          at(all.a, 1), at(all.e, 1)};
}

// Tiles of so many pixels whose sums the compute type holds before they move on to double.
Index tiles_until_flush(Index pixels) {
  return std::max<Index>(1, tuning::kParameterFlushCells / pixels);
}

// In the order of the runs, whoever worked on them.
void add_runs(double* to, const double* from, Index runs, Index size) {
  if (!to) return;
  std::fill_n(to, size, 0.0);
  for (Index r = 0; r < runs; ++r) {
    for (Index i = 0; i < size; ++i) to[i] += from[r * size + i];
  }
}
void add_vectors(const MixingGradients& parts, Index runs, Index channels,
                 const MixingGradients& to) {
  add_runs(to.offset, parts.offset, runs, channels);
  add_runs(to.gain, parts.gain, runs, channels);
  add_runs(to.a, parts.a, runs, 1);
  add_runs(to.e, parts.e, runs, 1);
}

// Of too few pixels for runs with a dW of their own: in waves of tiles, each of which has a place
// for its part of the products, so that all threads work on the tiles of a wave, and then on the
// rows of dW.
template <class C>
void backward_in_waves(const MixingCall& call, const ConstTensor& dy, const Tensor& dx,
                       const MixingGradients& gradients, const Context& context) {
  const auto& k = mixing_kernels<C>();
  const ConstTensor dx_view = dx;
  const Pixels pixels({&call.x, &dy, &dx_view}, call.channel_axis, k.pixels, k.pixels);
  const int threads = threads_of(pixels, context);
  explain(call.op, pixels.plan(), threads);
  const Index n = call.channels(), flush = tiles_until_flush(k.pixels);
  const Index places = std::min(pixels.tiles(), tuning::kMixingWave);
  Scope scope(Workspace::local());
  const cpu::Mixture<C> f = pack<C>(call, true, k.pixels, scope);
  const bool wanted = gradients.weights != nullptr;
  C* turned = wanted ? scope.take<C>(places * turned_size(f)) : nullptr;
  C* products = wanted ? scope.take_filled<C>(products_size(f), C(0)) : nullptr;
  MixingGradients vectors = gradients;
  vectors.weights = nullptr;
  const MixingGradients parts = take_gradients(vectors, n, places, scope);
  if (wanted) std::fill_n(gradients.weights, n * n, 0.0);
  // Of pixels that are done in double, in the order of their tiles.
  std::vector<std::vector<double>> wide(static_cast<std::size_t>(places));
  for (Index first = 0; first < pixels.tiles(); first += places) {
    const Index tiles = std::min(places, pixels.tiles() - first);
    cpu::parallel_for(tiles, threads, deal(pixels), [&](Index i) {
      Scope task_scope(Workspace::local());
      MixingGradients part = of_run(parts, n, i);
      Sums<C> sums(f, part, task_scope, wanted ? turned + i * turned_size(f) : nullptr);
      const BackwardTask<C> task(call, f, pixels, dy, dx, task_scope);
      task.run(pixels.tile(first + i), sums, [&] {
        if (!wanted) return part;
        auto& own = wide[static_cast<std::size_t>(i)];
        own.resize(static_cast<std::size_t>(n * n));
        part.weights = own.data();
        return part;
      });
      sums.flush(part);
    });
    if (!wanted) continue;
    cpu::parallel_for(f.rows / k.block, threads, deal(pixels), [&](Index block) {
      const Index row = block * k.block;
      for (Index i = 0; i < tiles; ++i) {
        k.outer_product(turned + i * turned_size(f), f.rows, row, row + k.block, products);
        if ((i + 1) % flush == 0 || i + 1 == tiles) {
          move_products(f, row, row + k.block, products, gradients.weights);
        }
      }
    });
  }
  for (const auto& own : wide) {
    for (std::size_t i = 0; i < own.size(); ++i) gradients.weights[i] += own[i];
  }
  add_vectors(parts, places, n, gradients);
}

template <class C>
void backward(const MixingCall& call, const ConstTensor& dy, const Tensor& dx,
              const MixingGradients& gradients, const Context& context) {
  const auto& k = mixing_kernels<C>();
  const ConstTensor dx_view = dx;
  const Pixels pixels({&call.x, &dy, &dx_view}, call.channel_axis,
                      k.pixels * tiles_together<C>(call, tuning::kMixingTilesBackward), k.pixels);
  const Index stride = pixels.most();
  const Index n = call.channels();
  // The sums of all runs together are kept far smaller than the tensor.
  const Index runs =
      std::min(pixels.count() / (tuning::kMixingRunPixels * n), tuning::kParameterTasks);
  if (runs < tuning::kMixingFewestRuns) {
    return backward_in_waves<C>(call, dy, dx, gradients, context);
  }
  const int threads = threads_of(pixels, context);
  explain(call.op, pixels.plan(), threads);
  const Schedule schedule{pixels.tiles(), ceil_div(pixels.tiles(), runs)};
  const Index flush = tiles_until_flush(stride);
  Scope scope(Workspace::local());
  const cpu::Mixture<C> f = pack<C>(call, true, stride, scope);
  const MixingGradients parts = take_gradients(gradients, n, schedule.tasks(), scope);
  cpu::parallel_for(schedule.tasks(), threads, deal(pixels), [&](Index i) {
    Scope task_scope(Workspace::local());
    Sums<C> sums(f, gradients, task_scope);
    const MixingGradients part = of_run(parts, n, i);
    const BackwardTask<C> of_task(call, f, pixels, dy, dx, task_scope);
    const Task task = schedule[i];
    for (Index j = task.first; j < task.last; ++j) {
      cpu::RunningCall::check();  // of thousands of channels a task takes seconds
      of_task.run(pixels.tile(j), sums, [&] { return part; });
      if ((j - task.first + 1) % flush == 0) sums.flush(part);
    }
    sums.flush(part);
  });
  add_runs(gradients.weights, parts.weights, schedule.tasks(), n * n);
  add_vectors(parts, schedule.tasks(), n, gradients);
}

}  // namespace

void mix_forward(const MixingCall& call, const Tensor& y, const Context& context) {
  if (context.device == Device::kCuda) return cuda::mix_forward(call, y, context);
  with_compute(call.x.dtype(),
               [&]<class C>(std::type_identity<C>) { forward<C>(call, y, context); });
}

void mix_backward(const MixingCall& call, const ConstTensor& dy, const Tensor& dx,
                  const MixingGradients& gradients, const Context& context) {
  with_compute(call.x.dtype(), [&]<class C>(std::type_identity<C>) {
    backward<C>(call, dy, dx, gradients, context);
  });
}

}  // namespace normcore
