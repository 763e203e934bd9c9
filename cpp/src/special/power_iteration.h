// Power iteration: the products of a matrix with two vectors in turn, until these are its first
// singular vectors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "special/matrix.h"

namespace normcore::special {

template <class C>
class PowerIteration {
 public:
  using Scope = Workspace::Scope;

  // An iteration starts from the vector p of side `start`: q = A' p / |A' p|, p = A q / |A q|.
  PowerIteration(const Matrix<C>& matrix, const void* data, Side start, Scope& scope)
      : matrix_(matrix), data_(data), start_(start) {
    for (const Side s : {kRowSide, kColSide}) {
      vector_[s] = scope.template take_filled<C>(matrix.length(s), 0);
      product_[s] = scope.template take<double>(matrix.length(s));
    }
  }

  struct Goal {
    Index most;             // iterations
    bool residual = false;  // costs the product of one half more
    double tol = -1;        // the residual, over sigma, that ends it earlier
  };

  C* vector(Side s) const { return vector_[s]; }
  double sigma() const { return sigma_; }        // |A q|
  double residual() const { return residual_; }  // |A' p - sigma q|
  Index iterations() const { return count_; }

  // False where |A' p| is less than eps (times the largest |element|, where that is below 1): such
  // a p tells nothing of A. It is left as it is.
  bool run(const Goal& goal, double eps) {
    Side from = start_;
    count_ = 0;
    sigma_ = residual_ = 0;
    for (;;) {
      cpu::RunningCall::check();
      const Side to = other(from);
      const bool renews_q = from == start_;
      const Index left = goal.most - count_;  // iterations that are not complete
      const bool both =
          from == matrix_.fused_side() && (renews_q ? left > 0 : left > 1 || goal.residual);
      matrix_.multiply(data_, from, vector_[from], product_[to], both ? product_[from] : nullptr,
                       reverse_);
      reverse_ = !reverse_;
      const double norm = norm_of(to);
      if (renews_q) {
        if (count_ > 0) {
          if (done(goal, distance(to, 1))) return true;
        } else if (norm == 0 || (norm < eps && norm < least_norm(eps, largest()))) {
          return false;
        }
        take(to, norm);
        if (!both) {
          from = to;
          continue;
        }
        const double next = norm_of(from);
        complete(from, next, next / norm);
        if (!goal.residual && count_ == goal.most) return true;
      } else {
        complete(to, norm, norm);
        if (!goal.residual && count_ == goal.most) return true;
        if (!both) {
          from = to;
          continue;
        }
        if (done(goal, distance(from, 1 / norm))) return true;
        take(from, norm_of(from));
      }
    }
  }

  // sigma = y^T A x of the vectors as they are, by the product with that of the given side.
  void evaluate(Side from) {
    const Side to = other(from);
    matrix_.multiply(data_, from, vector_[from], product_[to], nullptr, false);
    sigma_ = 0;
    for (Index i = 0; i < matrix_.length(to); ++i) {
      sigma_ += product_[to][i] * double(vector_[to][i]);
    }
  }

  // Of length 1.
  void set_pseudo_random(Side s, std::uint64_t seed) {
    for (Index i = 0; i < matrix_.length(s); ++i) product_[s][i] = pseudo_random(seed, i);
    take(s, norm_of(s));
  }

  // max |A|; as large as any product with a unit vector of one entry.
  double largest() const {
    const typename Matrix<C>::Cut cut = matrix_.cut(/*gathered=*/true);
    Scope scope(Workspace::local());
    double* tops = scope.template take<double>(cut.count);
    matrix_.for_panels(cut, false, [&](const Panel& p, Index number) {
      Scope inner(Workspace::local());
      double* of_rows = inner.template take<double>(p.rn);
      const C* zeros = inner.template take_filled<C>(p.rn, 0);
      const C* ones = inner.template take_filled<C>(p.rn, 1);
      void* scratch = inner.template take<double>(p.rn * p.cn);
      const In tile = matrix_.tiles().in(kX, data_, matrix_.range(p), scratch);
      matrix_.kernels().peak[cpu::kRows](tile, p.rn, p.cn, {zeros, zeros, ones, ones, ones, C(1)},
                                         of_rows);
      tops[number] = *std::max_element(of_rows, of_rows + p.rn);
    });
    return *std::max_element(tops, tops + cut.count);
  }

 private:
  double norm_of(Side s) const {
    double mean, squares;
    cpu::kernels().f64.squares[cpu::kRows]({product_[s], 0}, 1, matrix_.length(s), &mean, &squares);
    return std::sqrt(squares);
  }
  void take(Side s, double norm) {
    for (Index i = 0; i < matrix_.length(s); ++i) vector_[s][i] = C(product_[s][i] / norm);
  }
  void complete(Side s, double norm, double sigma) {
    take(s, norm);
    sigma_ = sigma;
    ++count_;
  }
  // |scale * product - sigma * vector|
  double distance(Side s, double scale) const {
    double sum[4] = {};
    const Index n = matrix_.length(s);
    for (Index i = 0; i < n; ++i) {
      const double d = (scale * product_[s][i] - sigma_ * double(vector_[s][i])) / sigma_;
      sum[i % 4] += d * d;
    }
    return std::sqrt((sum[0] + sum[1]) + (sum[2] + sum[3])) * sigma_;
  }
  bool done(const Goal& goal, double residual) {
    residual_ = residual;
    return count_ >= goal.most || ends_iterations(residual, goal.tol, sigma_);
  }

  const Matrix<C>& matrix_;
  const void* data_;
  Side start_;
  C* vector_[2];
  double* product_[2];
  double sigma_ = 0, residual_ = 0;
  Index count_ = 0;
  bool reverse_ = false;
};

}  // namespace normcore::special
