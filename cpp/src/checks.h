// Argument checks shared by the operations. Each throws an error that names the argument, what it
// is and what it should be.
#pragma once

#include <string>

#include "normcore/ops.h"

namespace normcore {

std::string shape_text(const Index* shape, int ndim);
template <bool kConst>
std::string shape_text(const BasicTensor<kConst>& t) {
  Index shape[kMaxDims];
  for (int i = 0; i < t.ndim(); ++i) shape[i] = t.shape(i);
  return shape_text(shape, t.ndim());
}

// A shape that an argument must have, and where it comes from.
struct ExpectedShape {
  Index shape[kMaxDims];
  int ndim = 0;
  // Put together for a message alone: calls that succeed allocate nothing.
  const char* rule = "";
  bool has_axis = false;
  int given_axis = 0;  // as the caller gave it; ends the rule
  std::string rule_text() const {
    return has_axis ? rule + std::to_string(given_axis) + "]" : std::string(rule);
  }
  ExpectedShape() {}  // and so ExpectedShape{} clears no array
  void append(Index n) { shape[ndim++] = n; }
};

void check_shape(const char* name, const ConstTensor& t, const ExpectedShape& expected);
void check_like(const char* name, const ConstTensor& t, const ConstTensor& x,
                const char* x_name = "x");
// `out` must have x's shape and dtype, be no broadcast, and share no memory with x except all of
// it.
void check_output(const char* name, const Tensor& out, const ConstTensor& x, bool may_be_x,
                  const char* x_name = "x");
void check_disjoint(const char* name, const Tensor& out, const char* other_name,
                    const ConstTensor& other);
void check_eps(double eps, bool positive);
void check_finite(const char* name, double value);
void check_at_least(const char* name, Index value, Index least);
void check_at_least(const char* name, double value, double least);  // and finite
void check_device(const Context& context);
// Of operations that have no CUDA kernels.
void check_on_cpu(const char* op, const Context& context);

// The axis as 0 .. ndim - 1.
int check_axis(const char* name, int axis, int ndim);
// The same of the channels, which are not the batch.
int check_channel_axis(const ConstTensor& x, int axis);
// Marks the axes; throws for one out of range or named twice.
void check_axes(const Axes& axes, int ndim, bool (&normalized)[kMaxDims]);

// Whether two views share an element, decided exactly for slices of one array and otherwise by
// the span of memory that they cover.
bool overlap(const ConstTensor& a, const ConstTensor& b);
bool same_memory(const ConstTensor& a, const ConstTensor& b);

}  // namespace normcore
