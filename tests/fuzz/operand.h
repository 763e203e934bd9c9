// An argument of a call: what the C interface is told of it, the memory that it really has, and
// what must be true of both before and after the call.
#pragma once

#include <string>
#include <vector>

#include "decoder.h"
#include "guarded.h"
#include "normcore/c_api.h"

namespace fuzz {

enum class Numbers { kReal, kPositive, kBits };  // about -2 to 2; 0.25 to 1.25; any pattern of bits

struct Operand {
  const char* name = "";
  bool written = false;
  bool in_options = false;  // not passed where the options are null
  Numbers numbers = Numbers::kReal;
  std::vector<int64_t> shape, strides;  // strides in elements
  int32_t dtype = NORMCORE_FLOAT32;
  int32_t ndim = 0;
  bool given = true;  // else a null struct
  bool null_data = false, null_shape = false, null_strides = true;
  int misaligned = 0;            // bytes
  Operand* memory_of = nullptr;  // lies in the memory of this one
  int64_t shift = 0;             // so many elements from there

  // What allocate() makes of it.
  Slot* slot = nullptr;
  Byte* data = nullptr;
  bool honest = true;  // all elements lie in memory of ours

  void set_shape(std::vector<int64_t> sizes) {
    shape = std::move(sizes);
    ndim = static_cast<int32_t>(shape.size());
    strides.assign(shape.size(), 0);
    make_contiguous();
  }
  void make_contiguous();

  int64_t item() const;                  // bytes of an element; 1 for an unknown dtype
  bool described() const;                // dtype, ndim and shape can be read and make sense
  bool empty() const;                    // of a described one: no elements
  std::vector<Byte*> addresses() const;  // of the elements, in C order; of an honest one
  bool same_view(const Operand& other) const;

  // Finds memory, fills it: numbers for what is read, a pattern that no result has for the rest.
  void allocate(Slot* own, Random& random, Decoder& in);
  // The views for a call: null where the operand is not given.
  const normcore_const_tensor* in();
  const normcore_tensor* out();

  std::string text() const;

 private:
  normcore_const_tensor in_{};
  normcore_tensor out_{};
  // Bytes from data to the lowest and past the highest element; false where no memory is so large.
  bool extent(int64_t* low, int64_t* high) const;
  void fill(Random& random);
};

// Whether two elements lie over each other: of one operand with strides, or of two.
bool overlaps_itself(const Operand& a);
bool overlap(const Operand& a, const Operand& b);

// A signalling NaN for each dtype: arithmetic never returns one, so no result looks like it.
const Byte* poison(int32_t dtype);
bool is_nan(int32_t dtype, const Byte* p);

}  // namespace fuzz
