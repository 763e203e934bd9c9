// The small arrays of a call, on its device: scratch, and the way between the caller's parameters,
// buffers and statistics, of any dtype and strides, and the pipeline's contiguous tables.
#pragma once

#include <exception>
#include <memory>
#include <numeric>

#include "cpu/arrays.h"
#include "normcore/context.h"
#include "pipeline/step.h"

namespace normcore {

class Memory {
 public:
  virtual ~Memory() = default;

  template <class T>
  T* take(Index n) {
    return static_cast<T*>(take_bytes(static_cast<std::size_t>(n) * sizeof(T)));
  }
  template <class C>
  C* take_filled(Index n, C value) {
    C* out = take<C>(n);
    fill(out, n, value);
    return out;
  }
  // The elements of t along w: t's own memory where that serves.
  template <class C>
  const C* load(const ConstTensor& t, const Walk& w) {
    if (w.contiguous() && t.dtype() == DTypeOf<C>::value) return static_cast<const C*>(t.data());
    C* out = take<C>(w.count());
    read(t, w, out);
    return out;
  }
  template <class C>
  const C* load_shifted(const ConstTensor& t, const Walk& w, double offset) {
    const C* values = load<C>(t, w);
    if (offset == 0) return values;
    C* shifted = take<C>(w.count());
    shift(values, w.count(), offset, shifted);
    return shifted;
  }
  // Writes values to the elements of t along w, each rounded once.
  virtual void store(const double* values, const Tensor& t, const Walk& w) = 0;
  // So many stores, of so many values together, will lack no memory of the host.
  virtual void prepare_stores(Index /*stores*/, Index /*values*/) {}
  // Repeats the first n of `total` values.
  virtual void repeat(double* values, Index n, Index total) = 0;
  virtual void scale(double* values, Index n, double factor) = 0;
  enum Transform { kSquare, kReciprocal };
  NORMCORE_HD static double transformed(Transform t, double v) {
    return t == kSquare ? v * v : 1 / v;
  }
  virtual void transform(Transform t, const double* values, Index n, double* out) = 0;
  // out[i] = sum over row i of values [rows, n]
  virtual void sum_each(const double* values, Index rows, Index n, double* out) = 0;
  // out[k] = (1 - momentum) * old[k] + momentum * mean over the rows of values [rows, n]; they are
  // variances of so much where they are to be `unbiased`. On a device old[k] where nothing counts.
  virtual void blend(const double* old, const double* values, Index rows, Index n, double momentum,
                     const Counted& counted, bool unbiased, double* out) = 0;

  // The end of a call that has not failed: what was put off is done.
  virtual void finish() {}

 protected:
  virtual void* take_bytes(std::size_t bytes) = 0;
  virtual void read(const ConstTensor& t, const Walk& w, float* out) = 0;
  virtual void read(const ConstTensor& t, const Walk& w, double* out) = 0;
  virtual void shift(const float* values, Index n, double offset, float* out) = 0;
  virtual void shift(const double* values, Index n, double offset, double* out) = 0;
  virtual void fill(float* out, Index n, float value) = 0;
  virtual void fill(double* out, Index n, double value) = 0;
};

class HostMemory final : public Memory {
 public:
  HostMemory() : scope_(cpu::Workspace::local()) {}

  void store(const double* values, const Tensor& t, const Walk& w) override {
    store_array(values, t, w, scope_);
  }
  void prepare_stores(Index stores, Index values) override {
    // Of each value a float and a half, each array with room for what surrounds it.
    constexpr Index kAround = 4 * Index(cpu::Workspace::kAlignment);
    cpu::Workspace::Scope(cpu::Workspace::local()).take<char>(values * 6 + stores * 2 * kAround);
  }
  void repeat(double* values, Index n, Index total) override {
    for (Index i = n; i < total; ++i) values[i] = values[i - n];
  }
  void scale(double* values, Index n, double factor) override {
    for (Index i = 0; i < n; ++i) values[i] *= factor;
  }
  void transform(Transform t, const double* values, Index n, double* out) override {
    for (Index i = 0; i < n; ++i) out[i] = transformed(t, values[i]);
  }
  void sum_each(const double* values, Index rows, Index n, double* out) override {
    for (Index i = 0; i < rows; ++i)
      out[i] = std::accumulate(values + i * n, values + (i + 1) * n, 0.0);
  }
  void blend(const double* old, const double* values, Index rows, Index n, double momentum,
             const Counted& counted, bool unbiased, double* out) override {
    const double factor = unbiased ? counted.here.bessel() : 1;
    for (Index k = 0; k < n; ++k) {
      double sum = 0;
      for (Index o = 0; o < rows; ++o) sum += values[o * n + k];
      out[k] = blended(old[k], sum / double(rows), momentum, factor);
    }
  }

 protected:
  void* take_bytes(std::size_t bytes) override {
    return scope_.take<char>(static_cast<Index>(bytes));
  }
  void read(const ConstTensor& t, const Walk& w, float* out) override {
    read_array(t, w, scope_, out);
  }
  void read(const ConstTensor& t, const Walk& w, double* out) override {
    read_array(t, w, scope_, out);
  }
  void shift(const float* values, Index n, double offset, float* out) override {
    for (Index i = 0; i < n; ++i) out[i] = float(double(values[i]) + offset);
  }
  void shift(const double* values, Index n, double offset, double* out) override {
    for (Index i = 0; i < n; ++i) out[i] = values[i] + offset;
  }
  void fill(float* out, Index n, float value) override { std::fill_n(out, n, value); }
  void fill(double* out, Index n, double value) override { std::fill_n(out, n, value); }

 private:
  cpu::Workspace::Scope scope_;
};

namespace cuda {
// Throws where there is no CUDA backend or no device.
std::unique_ptr<Memory> make_memory(const Context& context);
}  // namespace cuda

// The memory of the device of a call.
class CallMemory {
 public:
  explicit CallMemory(const Context& context) {
    if (context.device == Device::kCuda) device_ = cuda::make_memory(context);
  }
  // Throws what the last steps of a call throw, but not over what it has thrown already.
  ~CallMemory() noexcept(false) {
    if (device_ && std::uncaught_exceptions() == exceptions_) device_->finish();
  }
  CallMemory(const CallMemory&) = delete;
  CallMemory& operator=(const CallMemory&) = delete;
  Memory& get() { return device_ ? *device_ : static_cast<Memory&>(host_); }

 private:
  HostMemory host_;
  std::unique_ptr<Memory> device_;
  int exceptions_ = std::uncaught_exceptions();
};

}  // namespace normcore
