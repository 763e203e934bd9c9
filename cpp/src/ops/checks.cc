#include "ops/checks.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "normcore/errors.h"

namespace normcore {
namespace {

template <bool kConst>
void check_given(const char* name, const BasicTensor<kConst>& t) {
  if (!t) throw value_error(std::string(name) + " is None, expected an array");
  check_view(name, t);
}

std::string number(double v) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", v);
  return text;
}

// The bytes from the first element of a tensor to the end of the last; none where it is empty.
struct Bytes {
  std::intptr_t first, end;
};
// f(size, stride) sees every axis.
template <bool kConst, class F>
Bytes bytes_of(const BasicTensor<kConst>& t, F f) {
  // Unsigned: a view that has not been checked yet may reach anywhere.
  const auto size = static_cast<std::uintptr_t>(size_of(t.dtype()));
  const auto data = reinterpret_cast<std::uintptr_t>(t.data());
  std::uintptr_t below = 0, above = 1;
  bool empty = false;
  for (int i = 0; i < t.ndim(); ++i) {
    const Index n = t.shape(i), stride = t.stride(i);
    f(n, stride);
    const auto reach = static_cast<std::uintptr_t>(n - 1) * static_cast<std::uintptr_t>(stride);
    (stride < 0 ? below : above) += reach;
    empty = empty || n == 0;
  }
  if (empty) below = above = 0;
  return {static_cast<std::intptr_t>(data + below * size),
          static_cast<std::intptr_t>(data + above * size)};
}
template <bool kConst>
Bytes bytes_of(const BasicTensor<kConst>& t) {
  return bytes_of(t, [](Index, Index) {});
}

// A place in memory is a sum of such terms: c * stride with c in [low, high].
struct Term {
  Index stride, low, high;
};

Index floor_div(Index a, Index b) { return a / b - (a % b < 0); }

// Whether the sum of the terms, longest strides first, can be `distance`. Strides of slices leave
// next to no choice; a search through others ends after `steps` with a yes.
bool can_be(const Term* t, int n, Index distance, int& steps) {
  if (n == 0) return distance == 0;
  if (--steps < 0) return true;
  Index low = 0, high = 0;  // of what the others sum up to
  for (int i = 1; i < n; ++i) {
    low += t[i].low * t[i].stride;
    high += t[i].high * t[i].stride;
  }
  const Index least = std::max(t->low, -floor_div(high - distance, t->stride));
  const Index most = std::min(t->high, floor_div(distance - low, t->stride));
  for (Index c = least; c <= most; ++c) {
    if (can_be(t + 1, n - 1, distance - c * t->stride, steps)) return true;
  }
  return false;
}
constexpr int kMostSteps = 10'000;

void sort_terms(Term* terms, int n) {
  std::sort(terms, terms + n, [](const Term& a, const Term& b) { return a.stride > b.stride; });
}

// Whether two elements of a view lie in one place, of a view without strides of 0.
bool overlaps_itself(const ConstTensor& t) {
  Term terms[kMaxDims];
  int n = 0;
  for (int i = 0; i < t.ndim(); ++i) {
    if (t.shape(i) == 1) continue;
    terms[n++] = {std::abs(t.stride(i)), 1 - t.shape(i), t.shape(i) - 1};
  }
  sort_terms(terms, n);
  int steps = kMostSteps;
  // Two places whose indices differ first, and upwards, along one of the axes.
  for (int i = 0; i < n; ++i) {
    terms[i].low = 1;
    if (can_be(terms + i, n - i, 0, steps)) return true;
  }
  return false;
}

template <bool kConst>
void check_own_memory(const char* name, const BasicTensor<kConst>& t) {
  // Nearly always every axis steps over all that lies behind it.
  Index reach = 0;
  int i = t.ndim() - 1;
  for (; i >= 0; --i) {
    if (t.shape(i) == 1) continue;
    const Index stride = std::abs(t.stride(i));
    if (stride <= reach) break;
    reach += (t.shape(i) - 1) * stride;
  }
  if (i < 0 || t.size() == 0) return;
  for (int a = 0; a < t.ndim(); ++a) {
    if (t.stride(a) != 0 || t.shape(a) == 1) continue;
    throw value_error(std::string(name) + " is broadcast along axis " + std::to_string(a) +
                      ", expected memory of its own for every element");
  }
  if (!overlaps_itself(t)) return;
  throw value_error(std::string(name) +
                    " has elements that overlap in memory, expected memory of its own for every "
                    "element");
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
  check_given(name, t);
  bool same = t.ndim() == expected.ndim;
  for (int i = 0; same && i < t.ndim(); ++i) same = t.shape(i) == expected.shape[i];
  if (same) return;
  throw value_error(std::string(name) + " has shape " + shape_text(t) + ", expected " +
                    shape_text(expected.shape, expected.ndim) + ": " + expected.rule_text());
}

void check_like(const char* name, const ConstTensor& t, const ConstTensor& x, const char* x_name) {
  check_given(name, t);
  if (t.dtype() != x.dtype()) {
    throw type_error(std::string(name) + " has dtype " + name_of(t.dtype()) + ", expected " +
                     name_of(x.dtype()) + ": " + x_name + "'s");
  }
  if (!same_shape(t, x)) {
    throw value_error(std::string(name) + " has shape " + shape_text(t) + ", expected " +
                      shape_text(x) + ": " + x_name + "'s");
  }
}

void check_output(const char* name, const Tensor& out, const ConstTensor& x, const char* x_name) {
  check_given(name, out);
  if (!same_shape(out, x)) {
    throw value_error(std::string(name) + " has shape " + shape_text(out) + ", expected " +
                      shape_text(x) + ": " + x_name + "'s");
  }
  if (out.dtype() != x.dtype()) {
    throw value_error(std::string(name) + " has dtype " + name_of(out.dtype()) + ", expected " +
                      name_of(x.dtype()) + ": " + x_name + "'s");
  }
}

void check_finite(const char* name, double value) {
  if (std::isfinite(value)) return;
  throw value_error(std::string(name) + " is " + number(value) + ", expected a finite number");
}

void refuse_out_of_bounds(const char* name, double value, const Bounds& bounds, bool training) {
  if (bounds.norm) {
    throw value_error(std::string(name) + " is " + std::to_string(value) +
                      ", expected 1, 2 or infinity");
  }
  const bool above = bounds.above && training;
  std::string rule = bounds.infinite ? "a number" : "a finite number";
  if (std::isfinite(bounds.most)) {
    rule += " from " + number(bounds.least) + " to " + number(bounds.most);
  } else if (std::isfinite(bounds.least)) {
    rule += (above ? " > " : " >= ") + number(bounds.least);
  }
  if (above) rule += " when training";
  if (bounds.infinite) rule += " or infinity";
  throw value_error(std::string(name) + " is " + number(value) + ", expected " + rule);
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
  // Where byte e of an element of a, at a sum of steps, is byte f of one of b. From the first byte
  // of each on all steps go up.
  const Index size_a = static_cast<Index>(size_of(a.dtype()));
  const Index size_b = static_cast<Index>(size_of(b.dtype()));
  Term terms[2 * kMaxDims + 1];
  terms[0] = {1, 1 - size_b, size_a - 1};  // e - f
  int n = 1;
  for (int i = 0; i < a.ndim(); ++i) {
    if (a.shape(i) == 1 || a.stride(i) == 0) continue;
    terms[n++] = {std::abs(a.stride(i)) * size_a, 0, a.shape(i) - 1};
  }
  const int from_a = n;
  for (int i = 0; i < b.ndim(); ++i) {
    if (b.shape(i) == 1 || b.stride(i) == 0) continue;
    const Index stride = std::abs(b.stride(i)) * size_b;
    int same = 1;
    while (same < from_a && (terms[same].stride != stride || terms[same].low != 0)) ++same;
    if (same == from_a) {
      same = n++;
      terms[same] = {stride, 0, 0};
    }
    terms[same].low = 1 - b.shape(i);
  }
  sort_terms(terms, n);
  int steps = kMostSteps;
  return can_be(terms, n, of_b.first - of_a.first, steps);
}

template <bool kConst>
Operands::Operand& Operands::add(const char* name, const BasicTensor<kConst>& t) {
  if (count_ == kMost) throw value_error("a call has more operands than kMost");
  Index* word = key_.take(2 + 2 * t.ndim());
  *word++ = CallKey::word(name);
  *word++ = static_cast<Index>(t.dtype()) + (Index{t.ndim()} << 8);
  const Bytes bytes = bytes_of(t, [&](Index n, Index stride) {
    *word++ = n;
    *word++ = stride;
  });
  Operand& o = operands_[count_++];
  o.name = name;
  o.first = bytes.first;
  o.end = bytes.end;
  o.addressable = aligned(t.data(), t.dtype()) && 0 < o.first && o.first < o.end;
  o.in = nullptr;
  o.out = nullptr;
  o.written = false;
  o.over_count = 0;
  return o;
}
template Operands::Operand& Operands::add(const char*, const ConstTensor&);
template Operands::Operand& Operands::add(const char*, const Tensor&);

bool Operands::Operand::may_be(const Operand& other) const {
  return std::find(over, over + over_count, other.in) != over + over_count;
}

void Operands::check_pair(const Operand& written, const Operand& other) const {
  const bool may_be = !other.written && written.may_be(other);
  const ConstTensor view = written.view(), other_view = other.view();
  if (may_be && same_memory(view, other_view)) return;
  if (!overlap(view, other_view)) return;
  throw value_error(std::string(written.name) + " overlaps " + other.name +
                    " in memory, expected " +
                    (may_be ? std::string(other.name) + " itself or " : "") + "memory of its own");
}

void Operands::check() const {
  for (int i = 0; i < count_; ++i) {
    const Operand& o = operands_[i];
    if (!o.written) continue;
    if (o.out) {
      check_own_memory(o.name, *o.out);
    } else {
      check_own_memory(o.name, *o.in);
    }
    check_pairs(o);
  }
}

bool Operands::check_addresses() const {
  for (int i = 0; i < count_; ++i) {
    if (!operands_[i].addressable) return false;
  }
  for (int i = 0; i < count_; ++i) {
    if (operands_[i].written) check_pairs(operands_[i]);
  }
  return true;
}

void Operands::check_pairs(const Operand& o) const {
  for (int j = 0; j < count_; ++j) {
    const Operand& other = operands_[j];
    // Most lie apart. A pair that is written is looked at once.
    if (o.end <= other.first || other.end <= o.first || &o == &other) continue;
    if (!other.written || &other < &o) check_pair(o, other);
  }
}

}  // namespace normcore
