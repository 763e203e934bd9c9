// The fuzzer of the C interface. Bytes become a call whose arguments fit together; most often
// nothing or one thing is spoilt then: a size, a stride, a pointer, a dtype, a number, the memory
// that two arguments share. Arrays lie against forbidden pages. Whatever was asked:
//
//   - a call succeeds, or is refused with a message; valid calls succeed, and those of which we
//     know that no answer is right are refused;
//   - a refused call has written nothing;
//   - a call that succeeded has written each element of its outputs, and nothing else;
//   - in place it gives the bits that it gives elsewhere.
//
// The same function is libFuzzer's target and is called by main.cc with random bytes.
#include <algorithm>
#include <array>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>

#include "calls.h"
#include "report.h"

namespace fuzz {

char current_call[4096] = "";
std::array<Tally, 32> tallies;

namespace {

struct Checked {
  Call call;
  normcore_context context{};
  bool null_context = true;
  std::string spoilt;  // what, for messages

  void spoil(const char* what, const char* whose) {
    spoilt += std::string(spoilt.empty() ? "" : " and ") + what + " of " + whose;
    call.valid = false;
  }
};

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "\nc_api_fuzz: %s\n", what.c_str());
  print_current_call();
  std::abort();
}

// ---- what is spoilt

int64_t huge(Decoder& in) {
  return in.pick<int64_t>({INT64_MAX, INT64_MIN, INT64_MAX / 2, int64_t(1) << 62, int64_t(1) << 40,
                           int64_t(1) << 31, -1, -(int64_t(1) << 62)});
}

// What was spoilt before may stand at an end of its type: there it goes on at the other end.
template <class Int>
Int moved(Int value, int by) {
  using Bits = std::make_unsigned_t<Int>;
  return static_cast<Int>(static_cast<Bits>(value) + static_cast<Bits>(by));
}

void spoil_size(Operand& t, Decoder& in) {
  if (t.shape.empty()) return t.set_shape({in.pick<int64_t>({1, 2, 0, INT64_MAX})});
  int64_t& n = t.shape[static_cast<std::size_t>(in.below(static_cast<int>(t.shape.size())))];
  switch (in.below(5)) {
    case 0:
      n = moved(n, 1);
      break;
    case 1:
      n = moved(n, -1);
      break;
    case 2:
      n = in.below(2);
      break;
    default:
      n = huge(in);
  }
  if (t.null_strides) t.make_contiguous();
}

void spoil_strides(Operand& t, Decoder& in) {
  if (t.shape.empty()) return;
  t.null_strides = false;
  int64_t& s = t.strides[static_cast<std::size_t>(in.below(static_cast<int>(t.shape.size())))];
  switch (in.below(4)) {
    case 0:
      s = 0;
      break;
    case 1:
      s = in.below(9) - 4;
      break;
    case 2:
      s = moved(~s, 1);  // -s
      break;
    default:  // of no element but the first can there be an address
      s = in.pick<int64_t>({INT64_MAX, INT64_MIN, int64_t(1) << 62, -(int64_t(1) << 62)});
  }
}

void spoil_axes(Operand& t, Decoder& in) {
  const auto n = t.ndim;
  t.ndim = in.pick<int32_t>({moved(n, 1), moved(n, -1), 0, -1, 32, 33, 64, INT_MAX, INT_MIN});
  // The arrays hold what is said, up to numbers that must be refused before they are read.
  const auto sizes = static_cast<std::size_t>(std::clamp(t.ndim, 0, 64));
  t.shape.resize(sizes, in.pick<int64_t>({1, 1, 2, 3}));
  t.strides.resize(sizes, 1);
  t.make_contiguous();
}

void spoil_operand(Checked* c, Operand& t, Decoder& in) {
  switch (in.below(12)) {
    case 0:
      c->spoil("presence", t.name);
      t.given = !t.given;
      return;
    case 1:
      c->spoil("data", t.name);
      t.null_data = true;
      return;
    case 2:
      c->spoil("dtype", t.name);
      t.dtype = in.pick<int32_t>({-1, 4, INT_MAX, 0, 1, 2, 3, INT_MIN});
      return;
    case 3:
      c->spoil("ndim", t.name);
      return spoil_axes(t, in);
    case 4:
      c->spoil("shape", t.name);
      t.null_shape = true;
      return;
    case 5:
    case 6:
      c->spoil("size", t.name);
      return spoil_size(t, in);
    case 7:
    case 8:
      c->spoil("strides", t.name);
      return spoil_strides(t, in);
    case 9:
      c->spoil("alignment", t.name);
      t.misaligned = 1 + in.below(static_cast<int>(std::max<int64_t>(2, t.item())) - 1);
      return;
    case 10:
      c->spoil("numbers", t.name);
      t.numbers = Numbers::kBits;
      return;
    default: {
      Operand& other = c->call.operands[static_cast<std::size_t>(
          in.below(static_cast<int>(c->call.operands.size())))];
      if (&other == &t) return;
      c->spoil("memory", t.name);
      t.memory_of = &other;
      t.shift = in.below(2) ? in.below(64) - 32 : 0;
    }
  }
}

void spoil_number(Checked* c, Decoder& in) {
  Call& call = c->call;
  if (call.numbers.empty()) return;
  const Number& n =
      call.numbers[static_cast<std::size_t>(in.below(static_cast<int>(call.numbers.size())))];
  c->spoil("value", n.name);
  if (n.real) {
    constexpr double kInf = std::numeric_limits<double>::infinity();
    *n.real = in.pick({double(NAN), kInf, -kInf, -1.0, 0.0, 1e300, 5e-324, -0.0, 1e-30});
  } else if (n.whole) {
    *n.whole = n.takes_long  ? in.pick<int64_t>({-1, INT64_MIN, 3})
               : in.below(2) ? in.below(20)
                             : huge(in);
  } else {
    *n.small = in.pick<int32_t>({0, 1, -1, 2, 3, 5, -5, 32, INT_MAX, INT_MIN});
  }
}

void spoil_axis_list(Checked* c, Decoder& in) {
  Call& call = c->call;
  if (!call.axis_count) return;
  c->spoil("list", "axes");
  switch (in.below(4)) {
    case 0:
      *call.axis_values = nullptr;
      *call.axis_count = in.pick<int32_t>({1, 2, 0});
      return;
    case 1:
      *call.axis_count = in.pick<int32_t>({-1, INT_MAX, INT_MIN, 33, 34});
      return;
    default:
      call.axes.push_back(in.pick<int32_t>({0, 1, -1, 31, 32, INT_MAX, INT_MIN}));
      *call.axis_values = call.axes.data();
      *call.axis_count = static_cast<int32_t>(call.axes.size());
  }
}

void choose_context(Checked* c, Decoder& in) {
  c->null_context = in.below(2) == 0;
  c->context.threads = in.below(4);
  if (!in.one_in(40)) return;
  c->null_context = false;
  c->spoil("value", "context");
  switch (in.below(3)) {
    case 0:
      c->context.threads = in.pick<int32_t>({-1, INT_MIN, INT_MAX, 1 << 20, 100000});
      return;
    case 1:
      c->context.device = in.pick<int32_t>({-1, 2, INT_MAX, NORMCORE_CUDA});
      return;
    default:
      c->context.device_index = in.pick<int32_t>({-1, 1, INT_MAX});
      c->context.workspace = &c->context;
      c->context.workspace_bytes = in.pick<std::size_t>({0, 1, SIZE_MAX});
  }
}

void spoil_something(Checked* c, Decoder& in) {
  Call& call = c->call;
  switch (in.below(10)) {
    case 0:
    case 1:
      return spoil_number(c, in);
    case 2:
      return spoil_axis_list(c, in);
    case 3:  // in place, as it should be
      if (call.y->memory_of || call.y->misaligned || call.y->shape != call.x->shape) return;
      call.y->memory_of = call.x;
      call.y->strides = call.x->strides;
      call.y->null_strides = call.x->null_strides;
      return;
    case 4:
      if (!call.h || !call.h->given) return;
      call.h->memory_of = in.below(2) ? call.x : call.residual;
      if (call.h->shape != call.h->memory_of->shape) {
        call.h->memory_of = nullptr;
        return;
      }
      call.h->strides = call.h->memory_of->strides;
      call.h->null_strides = call.h->memory_of->null_strides;
      return;
    default:
      return spoil_operand(
          c,
          call.operands[static_cast<std::size_t>(in.below(static_cast<int>(call.operands.size())))],
          in);
  }
}

// ---- what we know of the answer

// Why no answer can be right; empty where one may be.
std::string must_be_refused(const Call& call) {
  for (const Operand& t : call.operands) {
    if (!t.given) {
      if (std::count(call.required.begin(), call.required.end(), &t)) {
        return std::string(t.name) + " is missing";
      }
      continue;
    }
    const std::string name = t.name;
    if (!t.described()) return name + " has no such dtype, ndim or shape";
    if (t.empty()) continue;
    if (t.null_data) return name + " has no data";
    if (!t.honest) return name + " is larger than its memory";
    if (t.written && overlaps_itself(t)) return name + " overlaps itself";
  }
  const Operand& x = *call.x;
  for (const Operand* t : {call.y, call.residual, call.h}) {
    if (!t || !t->given) continue;
    if (t->dtype != x.dtype) return std::string(t->name) + " has another dtype than " + x.name;
    if (t->ndim != x.ndim ||
        !std::equal(t->shape.begin(), t->shape.begin() + t->ndim, x.shape.begin())) {
      return std::string(t->name) + " has another shape than " + x.name;
    }
  }
  if (call.h && call.h->given != call.residual->given) return "only one of residual and h is given";
  for (const Operand& written : call.operands) {
    if (!written.given || !written.written) continue;
    for (const Operand& other : call.operands) {
      if (&other == &written || !other.given || !overlap(written, other)) continue;
      const bool over_x = &other == call.x && written.same_view(other);
      const bool over_residual = &other == call.residual && written.same_view(other);
      if (over_x || over_residual) continue;
      return std::string(written.name) + " overlaps " + other.name;
    }
  }
  for (const Number& n : call.numbers) {
    if (n.is_eps && !call.null_options && !(*n.real >= 0 && std::isfinite(*n.real))) {
      return "eps is no number that could be added";
    }
  }
  return "";
}

// ---- memory, the call, and what it did

Slot* slot(std::size_t i) {
  static std::array<Slot, 16> slots;
  return &slots[i];
}

void allocate(Call* call, Random& random, Decoder& in) {
  for (Operand& t : call->operands) t.given = t.given && !(t.in_options && call->null_options);
  std::size_t next = 0;
  for (bool placed : {true, false}) {  // those in the memory of others come after them
    for (Operand& t : call->operands) {
      if ((t.memory_of == nullptr) == placed) {
        if (t.memory_of && t.memory_of->memory_of) t.memory_of = nullptr;
        t.allocate(slot(next++), random, in);
      }
    }
  }
}

void remember(Call* call) {
  for (Operand& t : call->operands) t.slot->remember();
}

// All that was to be written has been, or nothing at all where the call was refused.
void check_memory(Call* call, bool ok) {
  for (Operand& t : call->operands) {
    if (!ok || !t.written || !t.given) continue;
    // What a call reads there may be the poison, which an identity hands on: of x in the memory of
    // y local response norm with beta = 0 makes y = x.
    bool also_read = t.memory_of != nullptr;
    for (const Operand& other : call->operands) also_read |= other.memory_of == &t;
    const auto item = static_cast<std::size_t>(t.item());
    for (Byte* p : t.addresses()) {
      if (!also_read && std::memcmp(p, poison(t.dtype), item) == 0) {
        fail(std::string("an element of ") + t.name + " was not written, or is a signalling NaN");
      }
      std::memcpy(p, t.slot->before(p), item);
    }
  }
  for (Operand& t : call->operands) {
    if (t.slot->unchanged()) continue;
    fail(std::string(ok ? "a call" : "a refused call") +
         " has written to memory beside its outputs, " + "of " + t.name);
  }
}

// The bits of all elements; of a NaN no more than that it is one.
std::string values(const Operand& t) {
  std::string bytes;
  for (const Byte* p : t.addresses()) {
    const auto item = static_cast<std::size_t>(t.item());
    if (is_nan(t.dtype, p)) p = poison(t.dtype);
    bytes.append(reinterpret_cast<const char*>(p), item);
  }
  return bytes;
}

void describe(const Checked& c, const std::string& reason) {
  std::string text = c.call.text();
  if (!c.null_context) {
    text += " device=" + std::to_string(c.context.device) +
            " threads=" + std::to_string(c.context.threads);
  }
  text += " isa=" + std::string(normcore_get_isa() ? normcore_get_isa() : "none");
  if (!c.spoilt.empty()) text += " [spoilt: " + c.spoilt + "]";
  if (!reason.empty()) text += " [must be refused: " + reason + "]";
  std::snprintf(current_call, sizeof(current_call), "%s", text.c_str());
}

normcore_status run(Checked* c) { return c->call.run(c->null_context ? nullptr : &c->context); }

void check_call(Checked* c, Tally* tally, Random& random, Decoder& in) {
  Call& call = c->call;
  allocate(&call, random, in);
  const std::string reason = must_be_refused(call);
  describe(*c, reason);
  if (verbose()) print_current_call();
  remember(&call);
  const normcore_status status = run(c);
  const bool ok = status == NORMCORE_OK;
  ++(ok ? tally->ok : tally->refused);
  if (ok && !reason.empty()) fail("a call that must be refused succeeded: " + reason);
  if (!ok && call.valid && reason.empty())
    fail(std::string("a valid call was refused: ") + normcore_last_error());
  if (!ok && status != NORMCORE_VALUE_ERROR && status != NORMCORE_TYPE_ERROR) {
    fail("status " + std::to_string(status) + ": " + normcore_last_error());
  }
  if (!ok && normcore_last_error()[0] == 0) fail("an error without a message");
  const bool in_place = ok && (call.y->memory_of || (call.h && call.h->memory_of));
  const std::string results = in_place ? values(*call.y) : "";
  check_memory(&call, ok);
  if (!in_place) return;
  // The same with memory of their own, in what the first call has not used.
  std::size_t next = 15;
  for (Operand* t : {call.y, call.h}) {
    if (!t || !t->memory_of) continue;
    t->memory_of = nullptr;
    t->allocate(slot(next--), random, in);
  }
  remember(&call);
  if (run(c) != NORMCORE_OK) fail("a call that succeeded in place was refused elsewhere");
  if (values(*call.y) != results) fail("in place a call gives other results than elsewhere");
  check_memory(&call, true);
}

// Functions that take no tensors. The instruction set and the number of threads stay for the calls
// that follow from the same bytes.
void settings(Decoder& in) {
  const char* const isas[] = {nullptr,     "v2",         "v3",         "v4", "generic",
                              "x86-64-v3", "x86-64-v22", "\xff\x01%s", ""};
  const char* isa = isas[in.below(9)];
  normcore_set_isa(isa);
  if (!normcore_get_isa()) fail("no instruction set");
  if (in.one_in(4)) {
    const auto n = in.pick<int32_t>({1, 2, 3, 0, -1, INT_MIN, INT_MAX, 1 << 20});
    const normcore_status status = normcore_set_num_threads(n);
    if (n < 1 && status == NORMCORE_OK) fail("set_num_threads took " + std::to_string(n));
    if (normcore_get_num_threads() < 1) fail("no threads");
  }
  if (!normcore_version() || !normcore_last_error()) fail("a null string");
}

}  // namespace

bool verbose() {
  static const bool set = std::getenv("NORMCORE_FUZZ_VERBOSE") != nullptr;
  return set;
}
void print_current_call() { std::fprintf(stderr, "call: %s\n", current_call); }

}  // namespace fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace fuzz;
  static const std::string first_isa = normcore_get_isa() ? normcore_get_isa() : "";
  normcore_set_isa(first_isa.c_str());
  normcore_set_num_threads(2);
  Decoder in(data, size);
  Random random(static_cast<uint64_t>(in.below(65536)));
  settings(in);
  Checked c;
  const int function = in.below(function_count());
  make_call(function, in, &c.call);
  choose_context(&c, in);
  for (int n = in.pick({0, 1, 1, 2, 0, 1, 1, 3}); n > 0; --n) spoil_something(&c, in);
  check_call(&c, &tallies[static_cast<std::size_t>(function)], random, in);
  return 0;
}
