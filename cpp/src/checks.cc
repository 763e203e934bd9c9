#include "checks.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>

#include "normcore/errors.h"

namespace normcore {
namespace {

std::string number(double v) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", v);
  return text;
}

struct Dim {
  Index size, stride;
};

// Dimensions of more than one element with positive strides, longest first.
int normalized_dims(const ConstTensor& t, Dim* dims) {
  int n = 0;
  for (int i = 0; i < t.ndim(); ++i) {
    if (t.shape(i) != 1) dims[n++] = {t.shape(i), t.stride(i) < 0 ? -t.stride(i) : t.stride(i)};
  }
  std::sort(dims, dims + n, [](const Dim& a, const Dim& b) { return a.stride > b.stride; });
  return n;
}

Index span(const Dim* dims, int n) {
  Index last = 0;
  for (int i = 0; i < n; ++i) last += (dims[i].size - 1) * dims[i].stride;
  return last + 1;
}

// The bytes from the first element of a tensor to the end of the last; none where it is empty.
struct Bytes {
  std::intptr_t first, end;
};
Bytes bytes_of(const ConstTensor& t) {
  const auto size = static_cast<std::intptr_t>(size_of(t.dtype()));
  std::intptr_t first = reinterpret_cast<std::intptr_t>(t.data()), end = first + size;
  for (int i = 0; i < t.ndim(); ++i) {
    if (t.shape(i) == 0) return {first, first};
    const std::intptr_t reach = (t.shape(i) - 1) * t.stride(i) * size;
    (reach < 0 ? first : end) += reach;
  }
  return {first, end};
}

// Two boxes with the same strides, the second `distance` elements on: is there a place where
// distance = sum (i_d - j_d) * stride_d with every index in its range?
bool boxes_meet(const Dim* a, const Dim* b, int n, Index distance) {
  if (n == 0) return distance == 0;
  const Index stride = a[0].stride;
  if (stride == 0) return boxes_meet(a + 1, b + 1, n - 1, distance);
  const Index low = static_cast<Index>(std::floor(double(distance) / double(stride)));
  for (Index steps = low; steps <= low + 1; ++steps) {
    if (steps > a[0].size - 1 || steps < 1 - b[0].size) continue;
    if (boxes_meet(a + 1, b + 1, n - 1, distance - steps * stride)) return true;
  }
  return false;
}

}  // namespace

std::string shape_text(const Index* shape, int ndim) {
  std::string s = "(";
  for (int i = 0; i < ndim; ++i) {
    s += std::to_string(shape[i]);
    if (i + 1 < ndim) s += ", ";
  }
  return s + (ndim == 1 ? ",)" : ")");
}

void check_shape(const char* name, const ConstTensor& t, const ExpectedShape& expected) {
  bool same = t.ndim() == expected.ndim;
  for (int i = 0; same && i < t.ndim(); ++i) same = t.shape(i) == expected.shape[i];
  if (same) return;
  throw value_error(std::string(name) + " has shape " + shape_text(t) + ", expected " +
                    shape_text(expected.shape, expected.ndim) + ": " + expected.rule_text());
}

void check_like(const char* name, const ConstTensor& t, const ConstTensor& x, const char* x_name) {
  if (t.dtype() != x.dtype()) {
    throw type_error(std::string(name) + " has dtype " + name_of(t.dtype()) + ", expected " +
                     name_of(x.dtype()) + ": " + x_name + "'s");
  }
  if (!same_shape(t, x)) {
    throw value_error(std::string(name) + " has shape " + shape_text(t) + ", expected " +
                      shape_text(x) + ": " + x_name + "'s");
  }
}

void check_output(const char* name, const Tensor& out, const ConstTensor& x, bool may_be_x,
                  const char* x_name) {
  if (!same_shape(out, x)) {
    throw value_error(std::string(name) + " has shape " + shape_text(out) + ", expected " +
                      shape_text(x) + ": " + x_name + "'s");
  }
  if (out.dtype() != x.dtype()) {
    throw value_error(std::string(name) + " has dtype " + name_of(out.dtype()) + ", expected " +
                      name_of(x.dtype()) + ": " + x_name + "'s");
  }
  if (out.size() == 0) return;
  for (int i = 0; i < out.ndim(); ++i) {
    if (out.stride(i) == 0 && out.shape(i) > 1) {
      throw value_error(std::string(name) + " is broadcast along axis " + std::to_string(i) +
                        ", expected memory of its own for every element");
    }
  }
  if (overlap(out, x) && !(may_be_x && same_memory(out, x))) {
    throw value_error(std::string(name) + " overlaps " + x_name + " in memory, expected " +
                      (may_be_x ? std::string(x_name) + " itself or " : "") + "memory of its own");
  }
}

void check_disjoint(const char* name, const Tensor& out, const char* other_name,
                    const ConstTensor& other) {
  if (!out || !other || !overlap(out, other)) return;
  throw value_error(std::string(name) + " overlaps " + other_name +
                    " in memory, expected memory of its own");
}

void check_eps(double eps, bool positive) {
  if (std::isfinite(eps) && (positive ? eps > 0 : eps >= 0)) return;
  throw value_error("eps is " + number(eps) + ", expected a finite number " +
                    (positive ? "> 0 when training" : ">= 0"));
}

void check_finite(const char* name, double value) {
  if (std::isfinite(value)) return;
  throw value_error(std::string(name) + " is " + number(value) + ", expected a finite number");
}

void check_at_least(const char* name, Index value, Index least) {
  if (value >= least) return;
  throw value_error(std::string(name) + " is " + std::to_string(value) + ", expected at least " +
                    std::to_string(least));
}

void check_at_least(const char* name, double value, double least) {
  if (std::isfinite(value) && value >= least) return;
  throw value_error(std::string(name) + " is " + number(value) +
                    ", expected a finite number >= " + number(least));
}

void check_on_cpu(const char* op, const Context& context) {
  check_device(context);
  if (context.device == Device::kCpu) return;
  throw value_error(std::string("context.device is CUDA, expected the CPU: ") + op +
                    " has no CUDA kernels");
}

void check_device(const Context& context) {
  if (context.device == Device::kCpu || cuda::is_built()) return;
  throw value_error("context.device is CUDA, expected the CPU: this build has no CUDA backend");
}

// The last one is for pairs of statistics.
void check_axis_count(int ndim) {
  if (ndim < kMaxDims) return;
  throw value_error("x has " + std::to_string(ndim) + " axes, expected at most " +
                    std::to_string(kMaxDims - 1));
}

int check_channel_axis(const ConstTensor& x, int axis) {
  check_axis_count(x.ndim());
  if (x.ndim() < 2) {
    throw value_error("x has shape " + shape_text(x) + ", expected at least two axes");
  }
  const int channel_axis = check_axis("channel_axis", axis, x.ndim());
  if (channel_axis != 0) return channel_axis;
  throw value_error("channel_axis is " + std::to_string(axis) +
                    ", expected another axis than 0, the batch");
}

int check_axis(const char* name, int axis, int ndim) {
  if (axis >= -ndim && axis < ndim) return axis < 0 ? axis + ndim : axis;
  throw value_error(std::string(name) + " is " + std::to_string(axis) + ", expected " +
                    std::to_string(-ndim) + " to " + std::to_string(ndim - 1) + " for x with " +
                    std::to_string(ndim) + " axes");
}

void check_axes(const Axes& axes, int ndim, bool (&normalized)[kMaxDims]) {
  if (axes.count == 0) throw value_error("axis is (), expected at least one axis");
  check_axis_count(ndim);
  for (int i = 0; i < ndim; ++i) normalized[i] = false;
  for (int i = 0; i < axes.count; ++i) {
    const int a = check_axis("axis", axes.values[i], ndim);
    if (normalized[a]) {
      throw value_error("axis names " + std::to_string(axes.values[i]) +
                        " twice, expected distinct axes");
    }
    normalized[a] = true;
  }
}

bool same_memory(const ConstTensor& a, const ConstTensor& b) {
  if (a.data() != b.data() || a.dtype() != b.dtype() || !same_shape(a, b)) return false;
  for (int i = 0; i < a.ndim(); ++i) {
    if (a.shape(i) > 1 && a.stride(i) != b.stride(i)) return false;
  }
  return true;
}

bool overlap(const ConstTensor& a, const ConstTensor& b) {
  const Bytes of_a = bytes_of(a), of_b = bytes_of(b);
  if (of_a.first == of_a.end || of_b.first == of_b.end) return false;
  if (of_a.end <= of_b.first || of_b.end <= of_a.first) return false;
  Dim da[kMaxDims], db[kMaxDims];
  const int na = normalized_dims(a, da), nb = normalized_dims(b, db);
  const Index size_a = static_cast<Index>(size_of(a.dtype()));
  const Index size_b = static_cast<Index>(size_of(b.dtype()));
  const Index distance = of_b.first - of_a.first;
  bool sliced_alike = na == nb && size_a == size_b && distance % size_a == 0;
  // Slices of one array: equal strides, each at least the span of all shorter ones.
  for (int i = 0; sliced_alike && i < na; ++i) {
    const Index inner = std::max(span(da + i + 1, na - i - 1), span(db + i + 1, na - i - 1));
    sliced_alike = da[i].stride == db[i].stride && (i + 1 == na || da[i].stride >= inner);
  }
  return !sliced_alike || boxes_meet(da, db, na, distance / size_a);
}

}  // namespace normcore
