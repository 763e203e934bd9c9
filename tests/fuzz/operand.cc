#include "operand.h"

#include <algorithm>
#include <cstring>

namespace fuzz {
namespace {

using Wide = __int128;  // products of sizes, strides and bytes fit

constexpr int64_t kItems[] = {4, 8, 2, 2};  // by dtype

bool known(int32_t dtype) { return dtype >= NORMCORE_FLOAT32 && dtype <= NORMCORE_FLOAT16; }

template <class T, class U>
T bits_as(U value) {
  static_assert(sizeof(T) == sizeof(U));
  T result;
  std::memcpy(&result, &value, sizeof(T));
  return result;
}

// A number of ordinary size, cut to the dtype.
void store(double value, int32_t dtype, Byte* to) {
  const auto single = bits_as<uint32_t>(static_cast<float>(value));
  if (dtype == NORMCORE_FLOAT32) {
    std::memcpy(to, &single, 4);
  } else if (dtype == NORMCORE_FLOAT64) {
    std::memcpy(to, &value, 8);
  } else if (dtype == NORMCORE_BFLOAT16) {
    const auto half = static_cast<uint16_t>(single >> 16);
    std::memcpy(to, &half, 2);
  } else {
    const int exponent = static_cast<int>(single >> 23 & 0xff) - 127 + 15;
    uint32_t half = single >> 16 & 0x8000;
    if (exponent > 0 && exponent < 31) {
      half |= static_cast<uint32_t>(exponent) << 10 | (single >> 13 & 0x3ff);
    }
    std::memcpy(to, &half, 2);
  }
}

}  // namespace

const Byte* poison(int32_t dtype) {
  static const uint32_t f32 = 0x7fa5a5a5;
  static const uint64_t f64 = 0x7ff4a5a5a5a5a5a5;
  static const uint16_t bf16 = 0x7fa5, f16 = 0x7da5;
  const void* const patterns[] = {&f32, &f64, &bf16, &f16};
  return static_cast<const Byte*>(patterns[dtype]);
}

bool is_nan(int32_t dtype, const Byte* p) {
  // The bits of infinity, without the sign: what is above them is a NaN.
  constexpr uint64_t kInfinity[] = {0x7f800000, 0x7ff0000000000000, 0x7f80, 0x7c00};
  const auto bytes = static_cast<std::size_t>(kItems[dtype]);
  uint64_t bits = 0;
  std::memcpy(&bits, p, bytes);  // little-endian
  return (bits & ~(uint64_t(1) << (8 * bytes - 1))) > kInfinity[dtype];
}

void Operand::make_contiguous() {
  Wide stride = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    strides[i] = static_cast<int64_t>(stride);
    stride = std::min<Wide>(stride * std::max<int64_t>(1, shape[i]), INT64_MAX);
  }
}

int64_t Operand::item() const { return known(dtype) ? kItems[dtype] : 1; }

bool Operand::described() const {
  if (!known(dtype) || ndim < 0 || ndim > 32 || (null_shape && ndim > 0)) return false;
  return std::all_of(shape.begin(), shape.begin() + ndim, [](int64_t n) { return n >= 0; });
}

bool Operand::empty() const {
  return std::any_of(shape.begin(), shape.begin() + ndim, [](int64_t n) { return n == 0; });
}

bool Operand::extent(int64_t* low, int64_t* high) const {
  const Wide limit = Slot::kCapacity;
  Wide first = 0, last = 0, size = 1;
  for (int i = 0; i < ndim; ++i) {
    const auto at = static_cast<std::size_t>(i);
    const Wide reach = (Wide(shape[at]) - 1) * strides[at];
    (reach < 0 ? first : last) += std::clamp<Wide>(reach, -2 * limit, 2 * limit);
    size = std::min(size * shape[at], Wide(1) << 62);
  }
  if (-first > limit || last > limit || size > limit || (last - first + 1) * item() + 16 > limit) {
    return false;
  }
  *low = static_cast<int64_t>(first) * item();
  *high = static_cast<int64_t>(last + 1) * item();
  return true;
}

std::vector<Byte*> Operand::addresses() const {
  std::vector<Byte*> all;
  if (empty()) return all;
  all.push_back(data);
  for (int i = 0; i < ndim; ++i) {
    const auto at = static_cast<std::size_t>(i);
    std::vector<Byte*> longer;
    longer.reserve(all.size() * static_cast<std::size_t>(shape[at]));
    for (Byte* p : all) {
      for (int64_t j = 0; j < shape[at]; ++j) longer.push_back(p + j * strides[at] * item());
    }
    all.swap(longer);
  }
  return all;
}

bool Operand::same_view(const Operand& other) const {
  if (data != other.data || dtype != other.dtype || ndim != other.ndim) return false;
  for (int i = 0; i < ndim; ++i) {
    const auto at = static_cast<std::size_t>(i);
    if (shape[at] != other.shape[at]) return false;
    if (shape[at] > 1 && strides[at] != other.strides[at]) return false;
  }
  return true;
}

void Operand::allocate(Slot* own, Random& random, Decoder& in) {
  int64_t low = 0, high = 1;
  const bool readable = described();
  honest = readable && (empty() || extent(&low, &high));
  if (!honest || empty()) {  // something to point at; no element may be touched
    low = 0;
    high = item();
  }
  if (memory_of && honest && memory_of->honest) {
    for (int64_t elements : {shift, -shift}) {
      Byte* p = memory_of->data + elements * item();
      const Slot* s = memory_of->slot;
      if (!s->watched(p + low, static_cast<std::size_t>(high - low))) continue;
      slot = memory_of->slot;
      data = p;
      misaligned = 0;
      return;
    }
  }
  memory_of = nullptr;
  slot = own;
  const auto bytes = static_cast<std::size_t>(high - low + misaligned);
  const bool at_end = !in.one_in(3);
  Byte* start = slot->place(bytes, at_end);
  data = start - low + misaligned;
  if (honest && !empty()) fill(random);
}

void Operand::fill(Random& random) {
  for (Byte* p : addresses()) {
    const auto size = static_cast<std::size_t>(item());
    if (written) {
      std::memcpy(p, poison(dtype), size);
    } else if (numbers == Numbers::kBits) {
      const uint64_t bits = random.next();
      std::memcpy(p, &bits, size);
    } else {
      const double u = random.uniform();
      store(numbers == Numbers::kReal ? 4 * u - 2 : u + 0.25, dtype, p);
    }
  }
}

const normcore_const_tensor* Operand::in() {
  if (!given) return nullptr;
  in_ = {null_data ? nullptr : data, dtype, ndim, null_shape ? nullptr : shape.data(),
         null_strides ? nullptr : strides.data()};
  return &in_;
}
const normcore_tensor* Operand::out() {
  if (!given) return nullptr;
  out_ = {null_data ? nullptr : data, dtype, ndim, null_shape ? nullptr : shape.data(),
          null_strides ? nullptr : strides.data()};
  return &out_;
}

std::string Operand::text() const {
  if (!given) return std::string(name) + "=null";
  auto list = [](const std::vector<int64_t>& values) {
    std::string s;
    for (int64_t v : values) s += (s.empty() ? "" : ",") + std::to_string(v);
    return "(" + s + ")";
  };
  static const char* const kNames[] = {"f32", "f64", "bf16", "f16"};
  std::string s = std::string(name) + "=" +
                  (known(dtype) ? kNames[dtype] : "dtype " + std::to_string(dtype)) + list(shape);
  if (static_cast<std::size_t>(ndim) != shape.size()) s += " ndim " + std::to_string(ndim);
  if (null_shape) s += " shape null";
  if (!null_strides) s += " strides " + list(strides);
  if (null_data) s += " data null";
  if (misaligned) s += " misaligned by " + std::to_string(misaligned);
  if (memory_of) {
    s += std::string(" at ") + memory_of->name + " + " +
         std::to_string((data - memory_of->data) / item()) + " elements";
  }
  return s;
}

bool overlaps_itself(const Operand& a) {
  if (a.null_strides) return false;
  std::vector<Byte*> all = a.addresses();
  std::sort(all.begin(), all.end());
  for (std::size_t i = 1; i < all.size(); ++i) {
    if (all[i] - all[i - 1] < a.item()) return true;
  }
  return false;
}

bool overlap(const Operand& a, const Operand& b) {
  if (a.slot != b.slot) return false;
  std::vector<Byte*> of_a = a.addresses(), of_b = b.addresses();
  std::sort(of_a.begin(), of_a.end());
  std::sort(of_b.begin(), of_b.end());
  for (std::size_t i = 0, j = 0; i < of_a.size() && j < of_b.size();) {
    if (of_a[i] + a.item() <= of_b[j]) {
      ++i;
    } else if (of_b[j] + b.item() <= of_a[i]) {
      ++j;
    } else {
      return true;
    }
  }
  return false;
}

}  // namespace fuzz
