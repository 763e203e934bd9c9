// One call of a cell on memory of its own.
#pragma once

#include <list>

#include "memory.h"
#include "methods.h"

namespace normcore::bench {

class Call {
 public:
  Call(const Cell& cell, DType dtype, int threads);

  void forward() const { method_.forward(a_, {}); }
  void backward() const { method_.backward(a_); }
  void run(bool backward) const { backward ? this->backward() : forward(); }

  const Arguments& arguments() const { return a_; }
  // Least traffic of a pass, and the time of copying that much between x and the output.
  double traffic_bytes(bool backward) const;
  double copy_seconds(double bytes) const;
  // Floating-point operations of the products of the channels, where a method has them.
  double mixing_flops(bool backward) const;

 private:
  Tensor make(DType dtype, const std::vector<Index>& shape);
  void make_mask(const Tensor& x);
  void save_statistics(const std::vector<Index>& shape, int axis);
  Index bytes() const { return a_.x.size() * Index(size_of(a_.x.dtype())); }

  const Method& method_;
  Arguments a_;
  std::list<Memory> owned_;
};

}  // namespace normcore::bench
