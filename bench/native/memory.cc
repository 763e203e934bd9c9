#include "memory.h"

#include <algorithm>
#include <cstdlib>

#include "cpu/dispatch.h"

namespace normcore::bench {
namespace {

template <class C>
void fill(char* to, Index elements, DType dtype) {
  // A period of no power of two, so that rows differ.
  std::vector<C> numbers(4099);
  for (C& v : numbers) v = C(std::rand()) / C(RAND_MAX) + C(0.5);
  const auto& set = cpu::kernel_set<C>(cpu::kernels(), dtype);
  const Index period = Index(numbers.size());
  for (Index i = 0; i < elements; i += period) {
    set.store(numbers.data(), to + i * Index(size_of(dtype)), std::min(period, elements - i));
  }
}

}  // namespace

Memory::Memory(Index elements, DType dtype)
    : data_(std::aligned_alloc(64, std::size_t(elements * Index(size_of(dtype)) + 191) / 64 * 64),
            std::free) {
  if (!data_) throw std::bad_alloc();
  if (dtype == DType::kFloat64) {
    fill<double>(get(), elements, dtype);
  } else {
    fill<float>(get(), elements, dtype);
  }
}

Tensor view(void* data, DType dtype, const std::vector<Index>& shape) {
  Tensor t(data, dtype, int(shape.size()));
  for (int i = 0; i < int(shape.size()); ++i) t.set_dim(i, shape[std::size_t(i)], 0);
  t.set_contiguous();
  return t;
}

Index count(const std::vector<Index>& shape) {
  Index n = 1;
  for (const Index s : shape) n *= s;
  return n;
}

}  // namespace normcore::bench
