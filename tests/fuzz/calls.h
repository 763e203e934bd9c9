// Calls of the C interface: each function with arguments that fit together, chosen by a fuzzer's
// bytes. c_api_fuzz.cc spoils some of them, makes the call, and looks at what it did.
#pragma once

#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "operand.h"

namespace fuzz {

// A number among the arguments that may be spoilt.
struct Number {
  const char* name;
  double* real = nullptr;
  int64_t* whole = nullptr;
  int32_t* small = nullptr;
  bool is_eps = false;
  bool takes_long = false;  // a huge one is valid and takes for ever
};

struct Call {
  const char* function = "";
  std::deque<Operand> operands;  // their addresses stay
  std::vector<Number> numbers;
  std::function<normcore_status(const normcore_context*)> run;
  // Must succeed unless something is spoilt. Left false where that depends on more than we know,
  // as for channels of a single value.
  bool valid = true;
  bool null_options = false;

  Operand* x = nullptr;
  Operand* y = nullptr;  // has x's shape and dtype
  Operand* h = nullptr;
  Operand* residual = nullptr;
  bool h_is_needed = false;  // residual and h: both or neither
  std::vector<Operand*> required;

  // Options and lists live here: `run` points to them.
  normcore_layer_norm_options layer_norm;
  normcore_rms_norm_options rms_norm;
  normcore_normalize_options normalize;
  normcore_channel_options channel;
  normcore_weight_norm_options weight_norm;
  normcore_spectral_norm_options spectral_norm;
  normcore_divisive_norm_options divisive_norm;
  normcore_gdn_options gdn;
  normcore_local_response_norm_options local_response_norm;
  normcore_local_divisive_norm_options local_divisive_norm;
  std::vector<int32_t> axes;
  std::vector<int64_t> summation_window, suppression_window;
  int32_t* axis_count = nullptr;  // n_axes in the options of this call
  const int32_t** axis_values = nullptr;
  int64_t count = 0;  // num_groups, k, size
  double p = 0;
  double sigma = 0;

  Call() = default;
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  Operand* add(const char* name, std::vector<int64_t> shape, Decoder& in,
               Numbers numbers = Numbers::kReal);
  std::string text() const;
};

// The names of all functions that make_call chooses among, for statistics.
int function_count();
const char* function_name(int i);

// A valid call of function i.
void make_call(int i, Decoder& in, Call* call);

}  // namespace fuzz
