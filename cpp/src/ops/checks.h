// Argument checks shared by the operations. Each throws an error that names the argument, what it
// is and what it should be.
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>

#include "normcore/ops.h"
#include "ops/kept_plan.h"
#include "ops/view.h"

namespace normcore {

std::string shape_text(const Index* shape, int ndim);
template <bool kConst>
std::string shape_text(const BasicTensor<kConst>& t) {
  Index shape[kMaxDims] = {};
  for (int i = 0; i < t.ndim(); ++i) shape[i] = t.shape(i);
  return shape_text(shape, t.ndim());
}

// What a number may be. A number that is `above` its least in training may be equal to it
// otherwise.
struct Bounds {
  double least = -std::numeric_limits<double>::infinity();
  double most = std::numeric_limits<double>::infinity();
  bool above = false;
  bool infinite = false;  // may be infinite
  bool norm = false;      // the order of a norm: 1, 2 or infinity

  bool allow(double value, bool training) const {
    if (norm && value != 1 && value != 2 && std::isfinite(value)) return false;
    return (above && training ? value > least : value >= least) && value <= most &&
           (infinite || std::isfinite(value));
  }
};
inline constexpr Bounds kAny{};  // any finite number
inline constexpr Bounds kNotNegative{0};
inline constexpr Bounds kAtLeastOne{1};
inline constexpr Bounds kPositiveInTraining{.least = 0, .above = true};
inline constexpr Bounds kFraction{0, 1};
inline constexpr Bounds kOrder{.least = 1, .infinite = true};
inline constexpr Bounds kNormOrder{.least = 1, .infinite = true, .norm = true};

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
// `out` must have x's shape and dtype.
void check_output(const char* name, const Tensor& out, const ConstTensor& x,
                  const char* x_name = "x");
void check_finite(const char* name, double value);
[[noreturn]] void refuse_out_of_bounds(const char* name, double value, const Bounds& bounds,
                                       bool training);
inline void check_bounds(const char* name, double value, const Bounds& bounds, bool training) {
  if (!bounds.allow(value, training)) refuse_out_of_bounds(name, value, bounds, training);
}
void check_at_least(const char* name, Index value, Index least);
void check_at_least(const char* name, double value, double least);  // and finite
void check_device(const Context& context);
// Of operations that have no CUDA kernels.
void check_on_cpu(const char* op, const Context& context);

// Runs f; an error of the device says what was asked for.
template <class F>
void on_device_of(const char* op, const Context& context, const ConstTensor& x, F&& f) {
  if (context.device == Device::kCpu) return f();
  try {
    f();
  } catch (const device_error& e) {
    throw device_error(std::string(op) + " on " + name_of(x.dtype()) + " " + shape_text(x) +
                       ", CUDA device " + std::to_string(context.device_index) + ": " + e.what());
  }
}
// The axis as 0 .. ndim - 1.
int check_axis(const char* name, int axis, int ndim);
// The same of the channels, which are not the batch.
int check_channel_axis(const ConstTensor& x, int axis);
// Marks the axes; throws for one out of range or named twice.
void check_axes(const Axes& axes, int ndim, bool (&normalized)[kMaxDims]);

// Whether two views share a byte, decided exactly (but for strides that no slice has: then a search
// may end with a cautious yes).
bool overlap(const ConstTensor& a, const ConstTensor& b);
bool same_memory(const ConstTensor& a, const ConstTensor& b);

// The memory of a call: what it reads and what it writes, under the names that messages use. Each
// operation declares all of its operands, absent ones too, and check() lets no element be written
// that something else needs: everything written has memory of its own for every element, and shares
// none with anything else, unless it is exactly an operand that it may be written over.
// Operands are remembered by address: they must outlive this.
class Operands {
 public:
  Operands() {}  // and so Operands{} clears no array
  // Of a call whose plan is kept: whose it is, and all that its checks and its plan follow from
  // beside its operands.
  explicit Operands(const char* op, std::initializer_list<Index> settings) {
    key_.add(CallKey::word(op));
    for (const Index s : settings) key_.add(s);
  }
  void is_with(Index setting) { key_.add(setting); }
  void reads(const char* name, const ConstTensor& t) {
    if (t) add(name, t).in = &t;
  }
  // `over`: operands that are read, each of which it may be, element by element.
  void writes(const char* name, const Tensor& t,
              std::initializer_list<const ConstTensor*> over = {}) {
    if (!t) return;
    Operand& o = add(name, t);
    o.out = &t;
    o.written = true;
    for (const ConstTensor* other : over) o.over[o.over_count++] = other;
  }
  // A running buffer, which is read before.
  void updates(const char* name, const ConstTensor& t) {
    if (!t) return;
    Operand& o = add(name, t);
    o.in = &t;
    o.written = true;
  }
  void check() const;

  // What the call is known by, and, where one that was alike has passed its checks, whether the
  // addresses of this one can be those of its operands. Throws where they overlap as check does.
  const CallKey& key() const { return key_; }
  bool check_addresses() const;

 private:
  static constexpr int kMost = 24, kMostOver = 3;
  struct Operand {
    const char* name;
    std::intptr_t first, end;  // bytes, from the first element to the end of the last
    bool addressable;          // and not empty
    const ConstTensor* in;
    const Tensor* out;
    bool written;
    int over_count;
    const ConstTensor* over[kMostOver];

    ConstTensor view() const { return in ? *in : ConstTensor(*out); }
    bool may_be(const Operand& other) const;
  };
  template <bool kConst>
  Operand& add(const char* name, const BasicTensor<kConst>& t);
  void check_pairs(const Operand& written) const;
  void check_pair(const Operand& written, const Operand& other) const;

  CallKey key_;
  int count_ = 0;
  Operand operands_[kMost];
};

}  // namespace normcore
