// The fuzzer as a program of its own, for compilers without libFuzzer:
//
//   c_api_fuzz --seed 7 --seconds 60            random inputs, until the time is over
//   c_api_fuzz --seed 7 --start 1234 --count 1  one of them again
//   c_api_fuzz FILE...                          inputs that libFuzzer has saved
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "calls.h"
#include "report.h"

extern "C" void __sanitizer_set_death_callback(void (*)()) __attribute__((weak));

namespace {

unsigned long long seed = 1, iteration = 0;

void say_where() {
  std::fprintf(stderr, "c_api_fuzz: died at --seed %llu --start %llu --count 1\n", seed, iteration);
  fuzz::print_current_call();
}
void on_signal(int number) {
  say_where();
  signal(number, SIG_DFL);
  raise(number);
}

std::vector<uint8_t> random_input() {
  fuzz::Random random(seed * 0x9e3779b97f4a7c15u + iteration * 0xd1342543de82ef95u);
  std::vector<uint8_t> bytes(16 + random.next() % 300);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random.next() >> 32);
  return bytes;
}

void run(const std::vector<uint8_t>& bytes) {
  // Of the exact size, so that sanitizers watch the decoder too.
  LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
}

// Most calls must be valid: a fuzzer that is always refused finds nothing.
bool print_tallies() {
  bool enough = true;
  for (int i = 0; i < fuzz::function_count(); ++i) {
    const fuzz::Tally& t = fuzz::tallies[static_cast<std::size_t>(i)];
    std::printf("  %-22s %9llu ok %9llu refused\n", fuzz::function_name(i),
                static_cast<unsigned long long>(t.ok), static_cast<unsigned long long>(t.refused));
    enough = enough && t.ok >= t.refused / 2;
  }
  return enough;
}

}  // namespace

int main(int argc, char** argv) {
  double seconds = 10;
  unsigned long long start = 0, count = ~0ull;
  std::vector<std::string> files;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name.rfind("--", 0) != 0) {
      files.push_back(name);
      continue;
    }
    const char* value = i + 1 < argc ? argv[++i] : "";
    if (name == "--seed") {
      seed = std::strtoull(value, nullptr, 10);
    } else if (name == "--seconds") {
      seconds = std::strtod(value, nullptr);
    } else if (name == "--start") {
      start = std::strtoull(value, nullptr, 10);
    } else if (name == "--count") {
      count = std::strtoull(value, nullptr, 10);
    } else {
      std::fprintf(stderr, "c_api_fuzz: unknown option %s\n", name.c_str());
      return 2;
    }
  }
  if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(say_where);
  for (int number : {SIGABRT, SIGFPE, SIGILL}) signal(number, on_signal);
  if (!__sanitizer_set_death_callback) {
    for (int number : {SIGSEGV, SIGBUS}) signal(number, on_signal);
  }

  for (const std::string& file : files) {
    std::ifstream stream(file, std::ios::binary);
    run({std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()});
  }
  if (!files.empty()) return 0;

  const auto begin = std::chrono::steady_clock::now();
  const auto past = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  for (iteration = start; iteration - start < count && past() < seconds; ++iteration) {
    run(random_input());
  }
  std::printf("c_api_fuzz: %llu inputs, seed %llu, %.0f s\n", iteration - start, seed, past());
  if (count != ~0ull) return 0;
  if (!print_tallies()) {
    std::fprintf(stderr, "c_api_fuzz: too few calls were valid\n");
    return 1;
  }
  return 0;
}
