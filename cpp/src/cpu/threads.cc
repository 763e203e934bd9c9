// The threads of a call: how many, how they are had where some are missing, and what they do.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <string>
#include <thread>

#include "cpu/crew.h"
#include "cpu/openmp.h"
#include "cpu/parallel.h"
#include "normcore/context.h"
#include "normcore/errors.h"
#include "plan/tuning.h"
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace normcore {
namespace cpu {
namespace {

std::atomic<int> thread_setting{0};

// The tasks of a call, shared by a team. Each thread has a stretch of neighbouring tasks, the same
// on every call, so that it finds its next task where prefetching went, and what it left in its own
// cache. It takes them in pieces from the front; who has no more helps others, from the back.
class Region {
 public:
  Region(RunningCall& call, const Tasks& tasks, Deal deal)
      : call_(call), tasks_(tasks), deal_(deal) {}

  void run(int team, const OpenMP* omp) noexcept {
    team_ = team;
    if (!omp) return Crew::of_process().run(team - 1, work, this);
    struct Both {
      Region* region;
      const OpenMP* omp;
    } both{this, omp};
    omp->parallel(
        [](void* data) {
          const Both& b = *static_cast<Both*>(data);
          work(b.region, b.omp->thread_num());
        },
        &both, static_cast<unsigned>(team), 0);
  }

  void finish() {
    if (!error_) return;
    call_.go_on();
    std::rethrow_exception(error_);
  }

 private:
  // What each thread of the team does, all with an index of their own.
  static void work(void* region, int index) noexcept {
    Region& r = *static_cast<Region*>(region);
    const RunningCall::Helper helper(r.call_);
    // Also where no task comes this time: a later call must find it. Who lacks memory and gets a
    // task will tell.
    try {
      Workspace::local().warm();
    } catch (const std::bad_alloc&) {
    }
    int home = index % r.team_;
    if (r.deal_.backwards) home = r.team_ - 1 - home;
    while (r.take(home, kFromFront)) {
    }
    for (int i = 1; i < r.team_; ++i) {
      while (r.take((home + i) % r.team_, kFromBack)) {
      }
    }
  }

  // Runs the next piece of a stretch, if there is one.
  bool take(int stretch, std::uint32_t side) noexcept {
    const Index first = begin(stretch), size = begin(stretch + 1) - first;
    const Index pieces = std::min<Index>(size, deal_.sticky ? 1 : 8);
    std::atomic<std::uint32_t>& taken = taken_[static_cast<std::size_t>(stretch)];
    auto left = [=](std::uint32_t t) { return t % kFromBack + t / kFromBack < pieces; };
    // Many threads look at what has long been taken: they only read.
    if (!left(taken.load(std::memory_order_relaxed))) return false;
    const std::uint32_t before = taken.fetch_add(side, std::memory_order_relaxed);
    if (!left(before)) return false;
    const Index piece = side == kFromFront ? before % kFromBack : pieces - 1 - before / kFromBack;
    const Index end = first + size * (piece + 1) / pieces;
    for (Index i = first + size * piece / pieces; i < end; ++i) guarded(task(i));
    return true;
  }
  Index begin(int stretch) const { return tasks_.count * stretch / team_; }
  Index task(Index i) const { return deal_.backwards ? tasks_.count - 1 - i : i; }

  void guarded(Index task) noexcept {
    if (call_.stopped()) return;
    try {
      RunningCall::check();
      tasks_.run(tasks_.f, task);
    } catch (...) {
      fail(std::current_exception());
    }
  }

  // The first error is the call's.
  void fail(std::exception_ptr error) noexcept {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::move(error);
    call_.stop();
  }

  RunningCall& call_;
  const Tasks& tasks_;
  const Deal deal_;
  int team_ = 1;
  // Pieces of each stretch that are taken from either side, or were asked for when none was left.
  static constexpr std::uint32_t kFromFront = 1, kFromBack = 1 << 16;
  std::array<std::atomic<std::uint32_t>, kMostThreads> taken_{};
  std::mutex mutex_;
  std::exception_ptr error_;
};

#if defined(__unix__) || defined(__APPLE__)

// As many threads of `team` as can be had: OpenMP's runtime ends the process where it lacks one,
// and so does the C library where a new thread lacks memory for its thread_local data. The runtime
// keeps the threads of a team for the next one, so this is asked when a team grows: by starting as
// many at the same time, each with the memory that it will need.
int startable(int team) {
  static thread_local int started = 1;
  if (team > started) {
    struct Trial {
      std::mutex gate;
      std::atomic<int> good{1}, tried{1};
      static void* run(void* trial) {
        auto& t = *static_cast<Trial*>(trial);
        void* scratch = std::malloc(Workspace::kFirstChunk + Workspace::kAlignment);
        void* data = std::malloc(std::size_t(1) << 16);
        if (scratch && data) ++t.good;
        ++t.tried;
        t.gate.lock();
        t.gate.unlock();
        std::free(data);
        std::free(scratch);
        return nullptr;
      }
    } trial;
    // What the runtime asks for beside stacks.
    void* room = std::malloc(std::size_t(team) * 1024 + (std::size_t(1) << 16));
    auto* threads = room ? new (std::nothrow) pthread_t[std::size_t(team)] : nullptr;
    int n = 1;
    if (threads) {
      trial.gate.lock();
      while (n < team && pthread_create(threads + n, nullptr, Trial::run, &trial) == 0) ++n;
      while (trial.tried < n) std::this_thread::yield();
      trial.gate.unlock();
      for (int i = 1; i < n; ++i) pthread_join(threads[i], nullptr);
      delete[] threads;
    }
    std::free(room);
    // At the limit others need something, too.
    const int good = trial.good;
    team = good < team ? std::max(1, good - 1 - good / 8) : team;
  }
  return started = team;
}

// In a forked child OpenMP's runtime waits for ever for the threads that the forking thread had, be
// it for normcore or for another user of the same runtime.
thread_local bool forked = false;  // the thread is the one that was
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

#else
int startable(int team) { return team; }
constexpr bool forked = false;
#endif

// Of processes without an OpenMP runtime: as these would have it.
int own_threads() {
  if (const char* text = std::getenv("OMP_NUM_THREADS")) {
    const long n = std::strtol(text, nullptr, 10);  // the first of a list
    if (n > 0) return static_cast<int>(std::min<long>(n, kMostThreads));
  }
#if defined(__linux__)
  cpu_set_t cores;  // that this process may use
  if (sched_getaffinity(0, sizeof cores, &cores) == 0) return CPU_COUNT(&cores);
#endif
  return static_cast<int>(std::thread::hardware_concurrency());  // 0: not known
}

void run_alone(const Tasks& tasks, Deal deal) {
  for (Index i = 0; i < tasks.count; ++i) {
    RunningCall::check();
    tasks.run(tasks.f, deal.backwards ? tasks.count - 1 - i : i);
  }
}

}  // namespace

void run_in_team(const Tasks& tasks, int threads, Deal deal) {
  RunningCall* call = RunningCall::current();
  if (!call) {
    const RunningCall own{Context{}};
    return run_in_team(tasks, threads, deal);
  }
  call->ask();  // in the team the calling thread may come too late for any task
  const int team = startable(static_cast<int>(std::min<Index>(threads, tasks.count)));
  if (team <= 1) return run_alone(tasks, deal);
  Region region(*call, tasks, deal);
  region.run(team, forked ? nullptr : OpenMP::find());
  region.finish();
}

int threads_for(Index bytes, int wanted) {
  if (bytes < tuning::kSerialBytes) return 1;
  return wanted > 0 ? wanted : get_num_threads();
}

}  // namespace cpu

int get_num_threads() {
  const int set = cpu::thread_setting.load(std::memory_order_relaxed);
  if (set > 0) return set;
  if (const auto* omp = cpu::OpenMP::find()) return std::clamp(omp->max_threads(), 1, kMostThreads);
  static const int own = std::clamp(cpu::own_threads(), 1, kMostThreads);
  return own;
}

void set_num_threads(int n) {
  if (n < 1 || n > kMostThreads) {
    throw value_error("n is " + std::to_string(n) + ", expected 1 to " +
                      std::to_string(kMostThreads));
  }
  cpu::thread_setting = n;
}

bool has_openmp() { return cpu::OpenMP::find() != nullptr; }

}  // namespace normcore
