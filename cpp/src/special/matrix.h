// A weight as a matrix W[out, rest], and its products with vectors. The matrix is taken as it lies
// in memory: A[rows, cols], unit stride along a row, which is W, or W^T where the kept axis is the
// innermost one; other strides are gathered block by block.
//
// A sweep reads A once. Taken in blocks of rows, a block gives y = A x for its rows and, while it
// is in cache, its share of A^T y; in blocks of columns it gives x = A^T y and its share of A x. So
// two products cost one read, if the first of them is the one that blocks complete.
//
// Blocks and tasks are cut without regard to the number of threads, and shares are added in the
// order of the tasks.
#pragma once

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/tiles.h"
#include "plan/plan.h"
#include "plan/tuning.h"
#include "special/spectral_formulas.h"

namespace normcore::special {

using cpu::In;
using cpu::Out;
using cpu::TileRange;
using cpu::Workspace;

// Some rows and columns of A.
struct Panel {
  Index r0, rn, c0, cn;
};

// f(start, length) for [0, n) in steps, or against the order.
template <class F>
void in_steps(Index n, Index step, bool reverse, F&& f) {
  const Index count = ceil_div(n, step);
  for (Index i = 0; i < count; ++i) {
    const Index at = (reverse ? count - 1 - i : i) * step;
    f(at, std::min(step, n - at));
  }
}

// C is the compute type of the element type. The plan's first operand is the matrix.
template <class C>
class Matrix {
 public:
  Matrix(const Plan& plan, DType dtype, int threads)
      : plan_(plan),
        set_(cpu::kernel_set<C>(cpu::kernels(), dtype)),
        tiles_(plan, dtype),
        element_(static_cast<Index>(size_of(dtype))),
        threads_(cpu::threads_for(plan.bytes, threads)),
        rows_(transposed() ? plan.count : plan.cells),
        cols_(transposed() ? plan.cells : plan.count),
        chunk_((element_ == 8 ? tuning::kRowChunk / 2 : tuning::kRowChunk)),
        by_columns_(rows_ <= tuning::kFewRows) {
    // In the direction in which tasks follow each other, the other side, and how many tasks may
    // have a share of the other side's product.
    const Index length = by_columns_ ? cols_ : rows_, across = by_columns_ ? rows_ : cols_;
    const Index fit = tuning::kMatrixBlockBytes / (across * element_);
    const Index least = by_columns_ ? 64 : plan.access[kX].direct ? 8 : 1;
    block_ = std::max(least, fit < 8 ? fit : fit / 8 * 8);
    if (by_columns_) block_ = std::min(block_, chunk_);
    const Index wanted = rows_ * cols_ * element_ / tuning::kMatrixTaskBytes;
    const Index most = std::clamp<Index>(length / 64, 1, tuning::kMatrixTasks);
    task_ = ceil_div(ceil_div(length, std::clamp<Index>(wanted, 1, most)), 64) * 64;
    tasks_ = ceil_div(length, task_);
  }

  bool transposed() const { return plan_.layout == Layout::columns; }
  Index length(Side s) const { return s == kRowSide ? rows_ : cols_; }
  int threads() const { return threads_; }
  const cpu::KernelSet<C>& kernels() const { return set_; }
  // From a vector of this side a sweep gives both products.
  Side fused_side() const { return by_columns_ ? kRowSide : kColSide; }

  // to = A x or A^T y, the product with a vector of the given side, and unless it is null
  // back = the product of A with that: one read of A. Every second sweep goes backwards, so that
  // it starts with what is still in cache.
  void multiply(const void* data, Side from, const C* vector, double* to, double* back,
                bool reverse) const {
    Workspace::Scope scope(Workspace::local());
    const bool complete = from == fused_side();  // blocks give entries of `to`, not shares
    double* summed = complete ? back : to;
    const Index n = summed ? length(complete ? from : other(from)) : 0;
    double* shares = tasks_ == 1 ? summed : scope.template take<double>(tasks_ * n);
    const Job job{data, vector, complete ? to : nullptr, reverse};
    cpu::parallel_for(tasks_, threads_, deal(reverse), [&](Index task) {
      const Index at = task * task_;
      double* share = summed ? shares + task * n : nullptr;
      std::fill_n(share, n, 0.0);
      if (by_columns_) {
        columns({0, rows_, at, std::min(task_, cols_ - at)}, job, share);
      } else {
        rows({at, std::min(task_, rows_ - at), 0, cols_}, job, share);
      }
    });
    if (tasks_ == 1 || !summed) return;
    std::copy_n(shares, n, summed);
    for (Index task = 1; task < tasks_; ++task) {
      const double* share = shares + task * n;
      for (Index i = 0; i < n; ++i) summed[i] += share[i];
    }
  }

  // Parts of a few rows or of one, small enough for a task and, where an operand is gathered, for
  // its tile. `f(part, number)`
  struct Cut {
    Index row_step, col_step, across, count;
  };
  Cut cut(bool gathered) const {
    const Index col_step = std::min(cols_, gathered ? tuning::kPackElements : 4 * chunk_);
    const Index most = gathered ? tuning::kPackElements : tuning::kUnitBytes / element_;
    const Index row_step = std::clamp<Index>(most / col_step, 1, rows_);
    const Index across = ceil_div(cols_, col_step);
    return {row_step, col_step, across, across * ceil_div(rows_, row_step)};
  }
  template <class F>
  void for_panels(const Cut& c, bool reverse, F&& f) const {
    cpu::parallel_for(c.count, threads_, deal(reverse), [&](Index number) {
      const Index r = number / c.across * c.row_step, col = number % c.across * c.col_step;
      f(Panel{r, std::min(c.row_step, rows_ - r), col, std::min(c.col_step, cols_ - col)}, number);
    });
  }

  cpu::Deal deal(bool reverse) const {
    return {.sticky = plan_.bytes <= tuning::kStickyBytes, .backwards = reverse};
  }

  TileRange range(const Panel& p) const {
    return transposed() ? TileRange{0, p.c0, p.cn, p.r0, p.rn}
                        : TileRange{0, p.r0, p.rn, p.c0, p.cn};
  }
  const cpu::TileAccess& tiles() const { return tiles_; }

 private:
  struct Job {
    const void* data;
    const C* vector;
    double* complete;  // the product that blocks complete, or null where the vector is of its side
    bool reverse;
  };

  // Tiles of a block. A gathered block is kept for its second product, if it fits.
  class Block {
   public:
    Block(const Matrix& m, const void* data, Index most, Workspace::Scope& scope)
        : m_(m), data_(data), direct_(m.plan_.access[kX].direct) {
      if (direct_) return;
      whole_ = most * m.element_ <= 2 * tuning::kMatrixBlockBytes;
      scratch_ = scope.template take<char>((whole_ ? most : 8 * m.chunk_) * m.element_);
    }
    void begin() { used_ = 0; }
    // The tiles of a block are asked for in the same order each time.
    In tile(const Panel& p, bool again) {
      if (direct_) return m_.tiles_.in(kX, data_, m_.range(p), nullptr);
      char* at = scratch_ + used_ * m_.element_;
      if (whole_) used_ += p.rn * p.cn;
      if (whole_ && again) return {at, p.cn};
      return m_.tiles_.in(kX, data_, m_.range(p), at);
    }

   private:
    const Matrix& m_;
    const void* data_;
    bool direct_, whole_ = false;
    char* scratch_ = nullptr;
    Index used_ = 0;
  };

  // A task of whole rows: y = A x where the vector is an x, and the share in A^T y.
  void rows(const Panel& task, const Job& job, double* share) const {
    Workspace::Scope scope(Workspace::local());
    const auto& k = set_.matrix;
    const Index step = std::min(block_, task.rn);
    C* narrow = scope.template take<C>(step);
    C* sum = scope.template take_filled<C>(std::min(chunk_, cols_), 0);
    Block block(*this, job.data, step * cols_, scope);
    in_steps(task.rn, step, job.reverse, [&](Index at, Index rn) {
      const Index r = task.r0 + at;
      const C* y = job.vector + r;
      double scale = 1;
      if (job.complete) {
        block.begin();
        std::fill_n(job.complete + r, rn, 0.0);
        in_steps(cols_, chunk_, false, [&](Index c, Index cn) {
          k.dot(block.tile({r, rn, c, cn}, false), rn, cn, job.vector + c, job.complete + r);
        });
        if (!share) return;
        scale = k.narrow(job.complete + r, rn, narrow);
        y = narrow;
      }
      block.begin();
      in_steps(cols_, chunk_, false, [&](Index c, Index cn) {
        const In tile = block.tile({r, rn, c, cn}, job.complete != nullptr);
        // Sums in the compute type over a few rows only.
        in_steps(rn, tuning::kColChunk, false, [&](Index j, Index jn) {
          const In part{static_cast<const char*>(tile.data) + j * tile.stride * element_,
                        tile.stride};
          k.accumulate(part, jn, cn, y + j, sum);
          k.drain(sum, cn, scale, share + c);
        });
      });
    });
  }

  // A task of whole columns, of which there are few rows: the same with A^T for A.
  void columns(const Panel& task, const Job& job, double* share) const {
    Workspace::Scope scope(Workspace::local());
    const auto& k = set_.matrix;
    const Index step = std::min(block_, task.cn);
    C* sum = scope.template take_filled<C>(step, 0);
    double* dots = scope.template take<double>(rows_);
    Block block(*this, job.data, rows_ * step, scope);
    in_steps(task.cn, step, job.reverse, [&](Index at, Index cn) {
      const Index c = task.c0 + at;
      const C* x = job.vector + c;
      double scale = 1;
      if (job.complete) {
        block.begin();
        std::fill_n(job.complete + c, cn, 0.0);
        in_steps(rows_, tuning::kColChunk, false, [&](Index r, Index rn) {
          k.accumulate(block.tile({r, rn, c, cn}, false), rn, cn, job.vector + r, sum);
          k.drain(sum, cn, 1, job.complete + c);
        });
        if (!share) return;
        scale = k.narrow(job.complete + c, cn, sum);
        x = sum;
      }
      block.begin();
      std::fill_n(dots, rows_, 0.0);
      in_steps(rows_, tuning::kColChunk, false, [&](Index r, Index rn) {
        k.dot(block.tile({r, rn, c, cn}, job.complete != nullptr), rn, cn, x, dots + r);
      });
      for (Index r = 0; r < rows_; ++r) share[r] += scale * dots[r];
      if (job.complete) std::fill_n(sum, cn, C(0));
    });
  }

  const Plan& plan_;
  const cpu::KernelSet<C>& set_;
  cpu::TileAccess tiles_;
  Index element_;
  int threads_;
  Index rows_, cols_;
  Index chunk_;      // columns of a dot product in the compute type
  bool by_columns_;  // blocks of columns
  Index block_, task_, tasks_;
};

}  // namespace normcore::special
