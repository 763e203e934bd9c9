// What the fuzzer's driver is told while it runs, and after a crash.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace fuzz {

extern char current_call[4096];
void print_current_call();
bool verbose();  // NORMCORE_FUZZ_VERBOSE: each call is printed before it is made

struct Tally {
  std::uint64_t ok = 0, refused = 0;
};
extern std::array<Tally, 32> tallies;  // by function

}  // namespace fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
