// The results of a call: arrays of x's library, new ones or the caller's.
#pragma once

#include "bind.h"
#include "shapes.h"

namespace normcore::python {

// Where results go: `out`, or a new array like x.
struct Output {
  Result result;
  Tensor tensor;

  Output(py::handle out, const Array& x) {
    if (out.is_none()) {
      result = x.new_like(&tensor);
    } else {
      array_ = Array::writable(out, "out");
      tensor = array_.tensor();
      result = Result(py::reinterpret_borrow<py::object>(out));
    }
  }
  const Array& array() const { return array_; }  // absent where the array is new

 private:
  Array array_;
};

// A parameter's gradient: a new array like the parameter, or None.
struct ParameterGradient {
  Result result;
  Tensor tensor;

  explicit ParameterGradient(const Array& parameter) {
    if (parameter) {
      result = parameter.new_contiguous(parameter.tensor(), parameter.tensor().dtype(), &tensor);
    }
  }
};

// Pairs of mean and variance for the backward call alone: float64, of NumPy or memory on x's
// device, which no library narrows. `shape` is that of one value of each pair.
inline py::object new_pairs(const Array& x, const ConstTensor& shape, Tensor* view) {
  ConstTensor pairs = pairs_of(shape);
  pairs.set_contiguous();
  if (x.where().device == Device::kCuda && !x.numpy()) {
    return x.new_contiguous(pairs, DType::kFloat64, view).take_memory();
  }
  Index strides[kMaxDims];
  for (int i = 0; i < pairs.ndim(); ++i) strides[i] = pairs.stride(i);
  py::object array = new_numpy(pairs, numpy_dtype(DType::kFloat64), strides, sizeof(double));
  *view = Tensor(py::detail::array_proxy(array.ptr())->data, DType::kFloat64, pairs.ndim());
  for (int i = 0; i < pairs.ndim(); ++i) view->set_dim(i, pairs.shape(i), strides[i]);
  return array;
}

// Arrays for the statistics of a call: mean and rstd of x's library, and the pairs.
struct Statistics {
  enum Field : unsigned { kMean = 1, kRstd = 2, kPooled = 4 };

  Result mean, rstd, pooled, given;
  StatsOut out;

  Statistics(bool wanted, const Array& x, const ConstTensor& shape, unsigned fields)
      : wanted_(wanted) {
    if (!wanted) return;
    const DType dtype = statistics_dtype(x.tensor().dtype());
    if (fields & kMean) mean = x.new_contiguous(shape, dtype, &out.mean);
    if (fields & kRstd) rstd = x.new_contiguous(shape, dtype, &out.rstd);
    if (fields & kPooled) pooled = Result(new_pairs(x, shape, &out.pooled));
  }
  // (C,)
  void add_given(const Array& x, const ConstTensor& shape) {
    if (wanted_) given = Result(new_pairs(x, shape, &out.given));
  }
  py::object tuple() {
    return py::make_tuple(mean.take(), rstd.take(), pooled.take(), given.take());
  }

 private:
  bool wanted_;
};

}  // namespace normcore::python
