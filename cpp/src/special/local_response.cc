// Local response normalization: every element over a power of what its window's squares sum up to.
//
// A task walks over rows of one slice, in bands: it squares the rows that a band's windows reach,
// sums them along all windowed axes but the last one, which the final kernel sums itself, and keeps
// what the next band needs of them. So x is read as it is needed and may be overwritten, and
// scratch memory is that of a band. Backward does the same with a second set of rows, the terms
// that a window's elements get back; their windows are the mirrored ones.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <type_traits>

#include "cpu/arrays.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/running_call.h"
#include "cuda/special.h"
#include "normcore/local.h"
#include "ops/checks.h"
#include "plan/plan.h"
#include "plan/steps.h"
#include "plan/tuning.h"
#include "special/local_plan.h"
#include "special/response_formulas.h"

namespace normcore {
namespace {

using cpu::In;
using cpu::Out;
using cpu::Window;
using Scope = cpu::Workspace::Scope;

// Scratch rows of a task that stay in a core's own cache beside what they are made of.
constexpr Index kBandBytes = Index(1) << 17;
// Lanes of a strip are a multiple of these.
constexpr Index kStripUnit = 64;
// Rows that overlap between two tasks are at most this part of their work.
constexpr Index kOverlapShare = 8;

struct Call {
  WindowPlan plan;
  DType dtype;
  int operands;
  const void* inputs[2] = {};
  void* output;
  double k, scale, beta;
  double limit;  // of squares in float, see largest_safe_square
  Index ahead;   // elements of x from a strip to the next one
  Index bytes;
  bool overwrites;                                    // the output lies over an input
  Index before[kMaxDims] = {}, after[kMaxDims] = {};  // of the window, along each axis of x

  int last() const { return operands - 1; }
  bool backward() const { return operands == 3; }
};

// Squares up to which all that is computed in float stays in its range; negative where nothing
// does.
double largest_safe_square(const Call& call) {
  const double orders = 30 / (std::abs(call.beta) + 1);
  const double top = std::pow(10, orders);
  if (call.k > top || call.k < std::max(1 / top, call.scale * 1e-30)) return -1;
  double elements = double(call.plan.row.window()) * double(call.plan.run.window());
  for (int m = 0; m < call.plan.mids; ++m) elements *= double(call.plan.mid[m].window());
  return std::min(1e36, top / std::max(call.scale, 1e-30)) / elements;
}

// Rows [r0, r1) of a slice.
struct SliceRows {
  Index r0, r1;
  Index offset[WindowAxis::kOperands];  // of the first row
};

// What comes of a task: the output; or its elements held back in the order of the blocks, for a
// choice among two; or for each of them whether an element out of range has a part in it.
enum class Result { kOutput, kHeld, kMarks };

// The work on parts of `rows` rows at most and, where a run has no window, `width` of its elements,
// in the compute type C; `wide` where that is double but the elements are not.
template <class C>
class Task {
 public:
  Task(const Call& call, Index rows, Index width, Result result = Result::kOutput)
      : call_(call),
        result_(result),
        plan_(call.plan),
        width_(width),
        table_(cpu::kernels()),
        wide_(sizeof(C) == 8 && call.dtype != DType::kFloat64),
        set_(cpu::kernel_set<C>(table_, call.dtype)),
        scope_(cpu::Workspace::local()),
        limit_(sizeof(C) == 8 ? HUGE_VAL : call.limit) {
    run_ = plan_.run.windowed() ? plan_.run.padded() * plan_.lanes.size : width;
    cols_ = plan_.run.size * width;
    pitch_ = run_;
    for (int m = plan_.mids - 1; m >= 0; --m) {
      mid_pitch_[m] = pitch_;
      pitch_ *= plan_.mid[m].padded();
    }
    // The last axis summed: the rows, or where they have no window the run.
    const bool across = plan_.row.windowed();
    last_ = across ? plan_.row.window() : plan_.run.window();
    step_ = across ? pitch_ : width;
    overlap_ = plan_.row.window() - 1;
    inner_ = across ? plan_.mids + plan_.run.windowed() : 0;
    // A band is of at least as many rows as it shares with the next one.
    const Index size = result == Result::kOutput ? sizeof(C) : sizeof(double);
    band_ = kBandBytes / (pitch_ * size) - overlap_;
    band_ = std::min(std::max(band_, overlap_ + 1), rows);
    const Index reach = call.backward() ? 2 * overlap_ : overlap_;
    rows_ = band_ + reach;
    squares_ = scope_.template take<C>(rows_ * pitch_);
    if (inner_ > 0 || last_ > cpu::kDirectWindow) {
      spare_ = scope_.template take<C>(rows_ * pitch_);
    }
    if (last_ > cpu::kDirectWindow) sums_ = scope_.template take<C>(rows_ * pitch_);
    if (call.backward()) {
      direct_ = scope_.template take<C>((band_ + overlap_) * pitch_);
      terms_ = scope_.template take<C>((band_ + overlap_) * pitch_);
    }
    for (int i = 0; i < call.operands; ++i) buffers_[i] = take_buffer(i);
    if (wide_) narrow_ = scope_.template take<float>(buffered_);
    const Index room = band_ * dense() * Index(size_of(call.dtype));
    if (result != Result::kOutput) held_ = scope_.template take<char>(room);
  }
  Index band() const { return band_; }

  // Whether it was all done; where not, x was out of range and nothing has been written over it.
  bool run(const SliceRows& part) {
    begin(part);
    // What has been overwritten cannot be read again.
    if (call_.overwrites && part_.r1 - part_.r0 > band_ && !in_range()) return false;
    return for_steps(part_.r0, part_.r1, band_, [&](Index b0, Index b1) { return step(b0, b1); });
  }

  // By hand: band after band of a part. Of rows that `step` has seen only [b0, b1) may be written.
  void begin(const SliceRows& part) {
    part_ = part;
    kept_squares_ = kept_terms_ = 0;
  }
  bool step(Index b0, Index b1) {
    held_bytes_ = 0;
    return call_.backward() ? backward(b0, b1) : forward(b0, b1);
  }

  // Writes what a step has held back, or the other task where there is a mark.
  void choose(Index b0, Index b1, const Task<double>& other, const Task& marks) {
    Index at = 0;
    each_block(b0, b1, 0, [&](const Block& b) {
      with_storage(call_.dtype, [&]<class E>(std::type_identity<E>) {
        auto* near = static_cast<E*>(static_cast<void*>(held_)) + at;
        auto* far = static_cast<const E*>(static_cast<const void*>(other.held_)) + at;
        for (Index i = 0; i < b.rows * cols_; ++i) near[i] = marks.held_[at + i] ? far[i] : near[i];
        copy(call_.last(), b, place(b), near, /*gather=*/false);
      });
      at += b.rows * cols_;
    });
  }

 private:
  // A kernel's call: rows at `slab` of the scratch rows, and of each operand.
  struct Block {
    Index slab, rows, pitch;
    Index offset[WindowAxis::kOperands], stride[WindowAxis::kOperands];
  };

  bool forward(Index b0, Index b1) {
    const Index kept = kept_squares_, from = b0 - plan_.row.before + kept;
    if (!load_squares(from, b1 + plan_.row.after, squares_ + kept * pitch_)) return false;
    const C* squares;
    const Window w = last_sums(squares_, b1 - b0, &squares);
    each_block(b0, b1, 0, [&](const Block& b) {
      if (result_ == Result::kMarks) return hold_marks(b, squares + b.slab, at(w, b));
      Out y = out(b);
      In x = in(kX, b);
      // While this strip is in the caches, the next one is on its way.
      if (direct(kX)) x.ahead = call_.ahead;
      set_.windows.response(x, y, b.rows, cols_, squares + b.slab, at(w, b), response());
      commit(b, y);
    });
    kept_squares_ = keep(squares_, b1 - b0);
    return true;
  }

  // dx of row j needs terms of the rows whose windows reach it, j - after .. j + before; those of a
  // row need squares of its own window.
  bool backward(Index b0, Index b1) {
    const Index before = plan_.row.before, after = plan_.row.after;
    const Index t0 = b0 - after + kept_terms_, t1 = b1 + before;  // new rows of terms
    C* squares_to = squares_ + kept_squares_ * pitch_;
    if (!load_squares(t0 - before + kept_squares_, t1 + after, squares_to)) return false;
    load_terms(t0, t1, kept_terms_);
    kept_squares_ = keep(squares_, t1 - t0);
    const C* terms;
    const Window w = last_sums(terms_, b1 - b0, &terms);
    const C* direct = direct_ + after * pitch_;
    each_block(b0, b1, 0, [&](const Block& b) {
      if (result_ == Result::kMarks) return hold_marks(b, terms + b.slab, at(w, b));
      Out dx = out(b);
      set_.windows.response_grad(in(kX, b), dx, b.rows, cols_, direct + b.slab, terms + b.slab,
                                 at(w, b), C(2 * call_.beta * call_.scale));
      commit(b, dx);
    });
    kept_terms_ = keep(terms_, b1 - b0);
    keep(direct_, b1 - b0);
    return true;
  }

  // ---- marks: 1 for a square out of range, then for a window with such a one in it

  void mark_squares(const Block& b, C* squares) const {
    for (Index r = 0; r < b.rows; ++r) {
      C* row = squares + r * b.pitch;
      for (Index i = 0; i < cols_; ++i) row[i] = double(row[i]) > call_.limit;
    }
  }
  // f(element of the block, element of a row with padding, whether there is a mark in its window)
  template <class F>
  void each_mark(const Block& b, const C* marks, const Window& w, F f) const {
    for (Index r = 0; r < b.rows; ++r) {
      for (Index i = 0; i < cols_; ++i) {
        const Index at = r * b.pitch + i;
        C sum = 0;
        for (Index n = 0; n < w.n; ++n) sum += marks[at + n * w.step];
        f(r * cols_ + i, at, sum > 0);
      }
    }
  }
  void hold_marks(const Block& b, const C* marks, const Window& w) {
    char* to = held_ + held_bytes_;
    each_mark(b, marks, w, [&](Index i, Index, bool mark) { to[i] = mark; });
    held_bytes_ += b.rows * cols_;
  }

  // Squares of rows [from, to), zeros beyond the edges, summed along the inner axes.
  bool load_squares(Index from, Index to, C* dest) {
    cpu::RunningCall::check();  // in place a task may be all there is
    C largest = 0;
    fill_rows(from, to, dest, /*mirrored=*/false, [&](const Block& b, C* rows) {
      const C top = set_.windows.squares(in(kX, b), b.rows, cols_, rows + b.slab, b.pitch);
      largest = std::max(largest, top);
      if (result_ == Result::kMarks) mark_squares(b, rows + b.slab);
    });
    return result_ != Result::kOutput || double(largest) <= limit_;
  }

  // Terms of rows [from, to) behind `kept` others, from the squares of their windows.
  void load_terms(Index from, Index to, Index kept) {
    const C* squares;
    const Window w = last_sums(squares_, to - from, &squares);
    fill_rows(from, to, terms_ + kept * pitch_, /*mirrored=*/true, [&](const Block& b, C* rows) {
      const Index bare = b.slab - padding(/*mirrored=*/true);
      if (result_ == Result::kMarks) {
        C* marks = rows + b.slab;
        return each_mark(b, squares + bare, at(w, b),
                         [=](Index, Index i, bool mark) { marks[i] = mark; });
      }
      C* direct = direct_ + kept * pitch_ + bare;
      set_.windows.response_terms(in(kDy, b), in(kX, b), b.rows, cols_, squares + bare, at(w, b),
                                  response(), direct, rows + b.slab);
    });
  }

  // f(block, rows) for rows [from, to) within the slice, to be written with their padding around
  // them; everything else is zero. Then sums along the inner axes; the result is in dest.
  template <class F>
  void fill_rows(Index from, Index to, C* dest, bool mirrored, F f) {
    // [from, to) may begin or end beyond either edge, or lie beyond it: r0 and r1 stay within it.
    const Index r0 = std::clamp<Index>(0, from, to);
    const Index r1 = std::clamp<Index>(plan_.row.size, r0, to);
    C* raw = inner_ % 2 ? spare_ : dest;
    if (pitch_ > dense()) {
      std::fill_n(raw, (to - from) * pitch_, C(0));
    } else {
      std::fill_n(raw, (r0 - from) * pitch_, C(0));
      std::fill_n(raw + (r1 - from) * pitch_, (to - r1) * pitch_, C(0));
    }
    each_block(r0, r1, (r0 - from) * pitch_ + padding(mirrored),
               [&](const Block& b) { f(b, raw); });
    if (inner_ > 0) inner_sums(raw, raw == dest ? spare_ : dest, (to - from) * pitch_);
  }

  void inner_sums(C* a, C* b, Index count) {
    auto along = [&](const WindowAxis& axis, Index step) {
      if (!axis.windowed()) return;
      count -= (axis.window() - 1) * step;
      set_.windows.sums(a, b, count, step, axis.window());
      std::swap(a, b);
    };
    along(plan_.run, width_);
    for (int m = plan_.mids - 1; m >= 0; --m) along(plan_.mid[m], mid_pitch_[m]);
  }

  // The sums along the last axis of `rows` windows that begin at a: what is left of them for a
  // kernel to add up, and where.
  Window last_sums(C* a, Index rows, const C** sums) {
    *sums = a;
    if (last_ <= cpu::kDirectWindow) return {0, step_, last_};
    Index count = rows * pitch_;
    C* from = a;
    if (plan_.row.windowed()) {
      // Its rows are needed again.
      from = spare_;
      std::copy_n(a, (rows + overlap_) * pitch_, from);
    } else {
      count -= (last_ - 1) * step_;
    }
    set_.windows.sums(from, sums_, count, step_, last_);
    *sums = sums_;
    return {0, 0, 1};
  }

  // Moves the rows that the next band shares to the front.
  Index keep(C* rows, Index done) {
    std::memmove(rows, rows + done * pitch_, std::size_t(overlap_ * pitch_) * sizeof(C));
    return overlap_;
  }

  // Of all rows that the part reads.
  bool in_range() {
    const Index first = std::max<Index>(part_.r0 - plan_.row.before, 0);
    const Index last = std::min(part_.r1 + plan_.row.after, plan_.row.size);
    return for_steps(first, last, band_,
                     [&](Index b0, Index b1) { return load_squares(b0, b1, squares_); });
  }

  cpu::Response<C> response() const { return {C(call_.k), C(call_.scale), C(call_.beta)}; }

  // Elements of a row without its padding, and the first one's place with it.
  Index dense() const {
    Index n = cols_;
    for (int m = 0; m < plan_.mids; ++m) n *= plan_.mid[m].size;
    return n;
  }
  Index padding(bool mirrored) const {
    auto pad = [&](const WindowAxis& a) { return mirrored ? a.after : a.before; };
    Index at = pad(plan_.run) * width_;
    for (int m = 0; m < plan_.mids; ++m) at += pad(plan_.mid[m]) * mid_pitch_[m];
    return at;
  }

  static Window at(Window w, const Block& b) { return {b.pitch, w.step, w.n}; }

  // f(block) for rows [r0, r1), which lie at `slab` of the scratch rows.
  template <class F>
  void each_block(Index r0, Index r1, Index slab, F f) {
    Block b;
    b.slab = slab;
    for (int i = 0; i < call_.operands; ++i) {
      b.offset[i] = part_.offset[i] + (r0 - part_.r0) * plan_.row.stride[i];
    }
    blocks_of(0, plan_.row, pitch_, r1 - r0, b, f);
  }
  template <class F>
  void blocks_of(int depth, const WindowAxis& axis, Index pitch, Index n, Block b, F& f) {
    const bool innermost = depth == plan_.mids;
    const Index at_once = innermost ? std::min(n, group_) : 1;
    for (Index i = 0; i < n; i += at_once) {
      if (innermost) {
        b.rows = std::min(at_once, n - i);
        b.pitch = pitch;
        std::copy_n(axis.stride, call_.operands, b.stride);
        f(b);
      } else {
        const WindowAxis& next = plan_.mid[depth];
        blocks_of(depth + 1, next, mid_pitch_[depth], next.size, b, f);
      }
      b.slab += at_once * pitch;
      for (int o = 0; o < call_.operands; ++o) b.offset[o] += at_once * axis.stride[o];
    }
  }

  // ---- the way of a block's elements: in place, or through a buffer

  bool direct(int operand) const { return !wide_ && plan_.lanes.stride[operand] == 1; }

  // Room for the rows of a block of an operand that is not used in place.
  void* take_buffer(int operand) {
    if (direct(operand)) return nullptr;
    group_ = std::max<Index>(1, tuning::kPackElements / cols_);
    buffered_ = group_ * cols_;
    return scope_.template take<char>(buffered_ * Index(wide_ ? sizeof(C) : size_of(call_.dtype)));
  }

  In in(int operand, const Block& b) {
    const char* p = static_cast<const char*>(call_.inputs[operand]) +
                    b.offset[operand] * Index(size_of(call_.dtype));
    if (direct(operand)) return {p, b.stride[operand]};
    if (!wide_) {
      copy(operand, b, const_cast<char*>(p), buffers_[operand], /*gather=*/true);
    } else {
      const Index n = b.rows * cols_;
      auto* values = static_cast<C*>(buffers_[operand]);
      void* packed = values + n - (n * Index(size_of(call_.dtype)) + 7) / 8;  // its last bytes
      copy(operand, b, const_cast<char*>(p), packed, /*gather=*/true);
      cpu::kernel_set<float>(table_, call_.dtype).load(packed, narrow_, n);
      for (Index i = 0; i < n; ++i) values[i] = C(narrow_[i]);
    }
    return {buffers_[operand], cols_};
  }
  Out out(const Block& b) {
    const int o = call_.last();
    if (holds() && !wide_) return {held_ + held_bytes_, cols_, false};
    if (direct(o)) return {place(b), b.stride[o], call_.bytes > tuning::kStreamBytes};
    return {buffers_[o], cols_, false};
  }
  void commit(const Block& b, const Out& tile) {
    const int o = call_.last();
    if (direct(o) && !holds()) return;
    if (wide_) {
      const Index n = b.rows * cols_;
      const C* values = static_cast<const C*>(tile.data);
      for (Index i = 0; i < n; ++i) narrow_[i] = float(values[i]);
      cpu::kernel_set<float>(table_, call_.dtype).store(narrow_, tile.data, n);
    }
    if (holds()) {
      const Index bytes = b.rows * cols_ * Index(size_of(call_.dtype));
      if (wide_) std::memcpy(held_ + held_bytes_, tile.data, std::size_t(bytes));
      held_bytes_ += bytes;
    } else {
      copy(o, b, place(b), tile.data, /*gather=*/false);
    }
  }
  bool holds() const { return result_ != Result::kOutput; }
  char* place(const Block& b) const {
    return static_cast<char*>(call_.output) + b.offset[call_.last()] * Index(size_of(call_.dtype));
  }

  // Between an operand and packed rows.
  void copy(int operand, const Block& b, void* there, void* packed, bool gather) const {
    auto move = [&]<class E>(std::type_identity<E>) {
      const Index step = plan_.lanes.stride[operand];
      for (Index r = 0; r < b.rows; ++r) {
        E* p = static_cast<E*>(there) + r * b.stride[operand];
        E* q = static_cast<E*>(packed) + r * cols_;
        if (gather) {
          for (Index i = 0; i < cols_; ++i) q[i] = p[i * step];
        } else {
          for (Index i = 0; i < cols_; ++i) p[i * step] = q[i];
        }
      }
    };
    with_storage(call_.dtype, move);
  }

  template <class>
  friend class Task;

  const Call& call_;
  const Result result_;
  const WindowPlan& plan_;
  SliceRows part_{};
  Index width_;
  const cpu::KernelTable& table_;
  bool wide_;
  const cpu::KernelSet<C>& set_;
  Scope scope_;
  double limit_;

  Index run_, cols_;  // elements of a run, with padding and without
  Index pitch_;       // of a row with all padding
  Index mid_pitch_[kMaxDims];
  Index last_, step_;  // elements of the last window, and how far they are apart
  Index overlap_;      // rows that two bands share
  int inner_;          // windowed axes before the last one
  Index band_, rows_;
  Index group_ = Index(1) << 62, buffered_ = 0;
  Index kept_squares_ = 0, kept_terms_ = 0;  // rows that the last band has left
  char* held_ = nullptr;                     // what is held back of a band, and how much
  Index held_bytes_ = 0;
  C *squares_, *spare_ = nullptr, *sums_ = nullptr, *direct_ = nullptr, *terms_ = nullptr;
  void* buffers_[WindowAxis::kOperands] = {};
  float* narrow_ = nullptr;
};

// ---- the cut into tasks, which does not depend on the number of threads

// Parts of `rows` rows and `width` lanes; those of neighbouring slices are worked on together where
// they are small.
struct Cut {
  Index rows, width;
  Index parts, strips, group;  // of slices

  explicit Cut(const Call& call) {
    const WindowPlan& plan = call.plan;
    const Index element = Index(size_of(call.dtype)), overlap = plan.row.window() - 1;
    width = plan.lanes.size;
    if (plan.row.windowed() && !plan.run.windowed() && plan.mids == 0) {
      // Lanes alone may be cut, but not so narrow that they are no streams of memory.
      const Index fits = kBandBytes / (Index(sizeof(float)) * (plan.row.size + 2 * overlap));
      const Index even = ceil_div(width, ceil_div(width, std::max(fits, kStripUnit)));
      width = std::min(width, ceil_div(even, kStripUnit) * kStripUnit);
    }
    Index row_bytes = plan.run.size * width * element;
    for (int m = 0; m < plan.mids; ++m) row_bytes *= plan.mid[m].size;
    rows = std::max(tuning::kUnitBytes / row_bytes, 1 + kOverlapShare * overlap);
    // One task after the other must not find written over what it shares with the one before.
    if (call.overwrites && overlap > 0) rows = plan.row.size;
    rows = std::min(rows, plan.row.size);
    parts = ceil_div(plan.row.size, rows);
    strips = ceil_div(plan.lanes.size, width);
    group = std::max<Index>(1, tuning::kBlockBytes / (row_bytes * rows));
  }
};

// A part with elements out of the range of float: those in whose result they have a share are of
// the computation in double, all others of the one in float, as if they had been alone.
void run_in_both(const Call& call, Index rows, Index width, const SliceRows& part) {
  Task<float> narrow(call, rows, width, Result::kHeld), marks(call, rows, width, Result::kMarks);
  Task<double> wide(call, rows, width, Result::kHeld);
  narrow.begin(part);
  marks.begin(part);
  wide.begin(part);
  for_steps(part.r0, part.r1, narrow.band(), [&](Index b0, Index b1) {
    narrow.step(b0, b1);
    marks.step(b0, b1);
    wide.step(b0, b1);
    narrow.choose(b0, b1, wide, marks);
    return true;
  });
}

void run_slices(const Call& call, const Cut& cut, Index part, Index strip, Index s0, Index s1) {
  const WindowPlan& plan = call.plan;
  const Index first = strip * cut.width, width = std::min(cut.width, plan.lanes.size - first);
  auto at = [&](Index slice) {
    SliceRows p{part * cut.rows, std::min((part + 1) * cut.rows, plan.row.size), {}};
    for (int o = 0; o < call.operands; ++o) {
      p.offset[o] = first * plan.lanes.stride[o] + p.r0 * plan.row.stride[o];
      Index rest = slice;
      for (int d = plan.slice_dims - 1; d >= 0; --d) {
        p.offset[o] += rest % plan.slice[d].size * plan.slice[d].stride[o];
        rest /= plan.slice[d].size;
      }
    }
    return p;
  };
  // Double, and only that, where the constants leave the range of float.
  if (call.dtype == DType::kFloat64 || call.limit < 0) {
    Task<double> task(call, cut.rows, width);
    for (Index s = s0; s < s1; ++s) task.run(at(s));
    return;
  }
  Task<float> task(call, cut.rows, width);
  for (Index s = s0; s < s1; ++s) {
    if (!task.run(at(s))) run_in_both(call, cut.rows, width, at(s));
  }
}

void run_call(Call& call, const ConstTensor& x, const ConstTensor& dy, const Tensor& output,
              const Context& context) {
  call.limit = largest_safe_square(call);
  if (context.device == Device::kCuda) {
    const ResponseFormula formula{call.k, call.scale, call.beta, call.limit};
    return cuda::local_response(x, dy, output, call.before, call.after, formula, context);
  }
  const Cut cut(call);
  call.ahead = cut.strips > 1 ? cut.width : 0;
  const Index groups = ceil_div(call.plan.slices, cut.group);
  cpu::parallel_for(groups * cut.parts * cut.strips, cpu::threads_for(call.bytes, context.threads),
                    {.sticky = call.bytes <= tuning::kStickyBytes}, [&](Index task) {
                      const Index group = task / cut.strips / cut.parts * cut.group;
                      run_slices(call, cut, task / cut.strips % cut.parts, task % cut.strips, group,
                                 std::min(group + cut.group, call.plan.slices));
                    });
}

// ---- arguments

// The operands are x, dy unless it is absent, and the output.
Call make_call(const ConstTensor& x, const ConstTensor& dy, const Tensor& output, Index size,
               const LocalResponseNormOptions& o, const Context& context) {
  check_device(context);
  check_view("x", x);
  const bool over_space = o.across == Across::kSpace;
  if (over_space && x.ndim() < 3) {
    throw value_error("x has shape " + shape_text(x) + ", expected at least 3 axes");
  }
  const int channel_axis = check_channel_axis(x, o.channel_axis);
  check_at_least("size", size, Index(1));
  check_at_least("alpha", o.alpha, 0.0);
  check_finite("beta", o.beta);
  check_at_least("k", o.k, 0.0);
  if (dy) check_like("dy", dy, x);
  check_output("out", output, x);
  Operands operands;
  operands.reads("x", x);
  operands.reads("dy", dy);
  operands.writes("out", output, {&x, &dy});
  operands.check();

  Call call;
  call.dtype = x.dtype();
  call.operands = dy ? 3 : 2;
  call.inputs[kX] = x.data();
  if (dy) call.inputs[kDy] = dy.data();
  call.output = output.data();
  call.overwrites = same_memory(output, x) || (dy && same_memory(output, dy));
  call.bytes = call.operands * x.size() * Index(size_of(call.dtype));
  call.k = o.k;
  call.beta = o.beta;
  call.scale = o.alpha;
  const Index shorter = (size - 1) / 2, longer = size - 1 - shorter;
  const bool torch = o.even_window == EvenWindow::kTorch;
  for (int a = 1; a < x.ndim(); ++a) {
    if ((a == channel_axis) == over_space) continue;
    call.scale /= double(size);
    call.before[a] = torch ? longer : shorter;
    call.after[a] = torch ? shorter : longer;
  }
  if (x.size() > 0) {
    const ConstTensor out(output);
    const ConstTensor* const operands[] = {&x, dy ? &dy : &out, dy ? &out : nullptr};
    make_window_plan(operands, call.before, call.after, &call.plan);
  }
  return call;
}

}  // namespace

void local_response_norm(const ConstTensor& x, Index size, const Tensor& y,
                         const LocalResponseNormOptions& o, const Context& context) {
  const cpu::RunningCall running(context);
  Call call = make_call(x, {}, y, size, o, context);
  if (x.size() > 0) run_call(call, x, {}, y, context);
}

void local_response_norm_backward(const ConstTensor& dy, const ConstTensor& x, Index size,
                                  const Tensor& dx, const LocalResponseNormOptions& o,
                                  const Context& context) {
  const cpu::RunningCall running(context);
  if (!dy) throw type_error("dy is None, expected an array");
  Call call = make_call(x, dy, dx, size, o, context);
  if (x.size() > 0) run_call(call, x, dy, dx, context);
}

}  // namespace normcore
