#include "cpu/running_call.h"

#include <chrono>
#include <ctime>
#include <string>

#include "normcore/errors.h"

namespace normcore::cpu {
namespace {

constexpr std::int64_t kInterval = 100;  // ms: an answer within a second, and next to no cost

// Read for every task: a clock that ticks a few hundred times a second and costs a few ns.
std::int64_t milliseconds() {
#if defined(CLOCK_MONOTONIC_COARSE)
  timespec now;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return std::int64_t(now.tv_sec) * 1000 + now.tv_nsec / 1'000'000;
#else
  using namespace std::chrono;
  return duration_cast<std::chrono::milliseconds>(steady_clock::now().time_since_epoch()).count();
#endif
}

}  // namespace

void RunningCall::ask_at_times() {
  const std::int64_t now = milliseconds();
  if (next_ == 0) next_ = now + kInterval;
  if (now < next_) return;
  interrupt_->check();
  next_ = milliseconds() + kInterval;
}

void RunningCall::refuse(int threads) {
  throw value_error("context.threads is " + std::to_string(threads) + ", expected 0 to " +
                    std::to_string(kMostThreads));
}

}  // namespace normcore::cpu
