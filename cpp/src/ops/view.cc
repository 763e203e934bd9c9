#include "ops/view.h"

#include <string>

#include "normcore/errors.h"
#include "ops/checks.h"

namespace normcore {
namespace {

std::string part(ViewName name, const char* of) { return std::string(name.name) + name.dot + of; }

std::string strides_text(const ConstTensor& t) {
  Index strides[kMaxDims];
  for (int i = 0; i < t.ndim(); ++i) strides[i] = t.stride(i);
  return shape_text(strides, t.ndim());
}

}  // namespace

void refuse_ndim(ViewName name, Index ndim) {
  throw value_error(part(name, "ndim is ") + std::to_string(ndim) + ", expected 0 to " +
                    std::to_string(kMaxDims - 1));
}

void refuse_shape(ViewName name) {
  throw value_error(part(name, "shape is null, expected ndim sizes"));
}

void refuse_alignment(ViewName name, DType dtype) {
  throw value_error(std::string(name.name) +
                    " is not aligned to its elements, expected an address and strides that are " +
                    "multiples of " + std::to_string(size_of(dtype)) + " bytes");
}

void refuse_view(ViewName name, const ConstTensor& t) {
  if (t.ndim() < 0) throw type_error(std::string(name.name) + " is None, expected an array");
  double size = 1;
  bool empty = false;
  for (int i = 0; i < t.ndim(); ++i) {
    if (t.shape(i) < 0) {
      throw value_error(part(name, "shape[") + std::to_string(i) + "] is " +
                        std::to_string(t.shape(i)) + ", expected a number >= 0");
    }
    size *= t.shape(i) == 0 ? 1 : double(t.shape(i));
    empty = empty || t.shape(i) == 0;
  }
  if (!(size <= kMaxElements)) {
    throw value_error(part(name, "shape") +
                      " has more elements than memory can hold: " + shape_text(t));
  }
  if (!empty && !t.data()) {
    throw value_error(part(name, "data is null, expected memory for shape ") + shape_text(t));
  }
  if (!empty && !aligned(t.data(), t.dtype())) refuse_alignment(name, t.dtype());
  throw value_error(part(name, "strides") + " reach further than memory does: " + strides_text(t) +
                    " elements with shape " + shape_text(t));
}

}  // namespace normcore
