// The threads of a call: how many, how they are had where some are missing, and what they do.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <string>
#include <system_error>
#include <thread>

#include "cpu/parallel.h"
#include "normcore/context.h"
#include "normcore/errors.h"
#include "plan/tuning.h"
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace normcore {
namespace cpu {
namespace {

std::atomic<int> thread_setting{0};

#ifdef _OPENMP

// The tasks of a call, shared by a team.
class Region {
 public:
  Region(RunningCall& call, const Tasks& tasks, bool sticky)
      : call_(call), tasks_(tasks), sticky_(sticky) {}

  void run(int team) noexcept {
    // Runs of neighbouring tasks, so that a thread finds its next task where prefetching went.
    const Index even = (tasks_.count + team - 1) / team;
    const Index run = sticky_ ? even : even / 8 > 1 ? even / 8 : 1;
#pragma omp parallel num_threads(team)
    {
      const RunningCall::Helper helper(call_);
      if (sticky_) {
#pragma omp for schedule(static, run)
        for (Index task = 0; task < tasks_.count; ++task) guarded(task);
      } else {
        // Also in threads that get no task this time: a later call must find it. Who lacks memory
        // and gets a task will tell.
        try {
          Workspace::local().warm();
        } catch (const std::bad_alloc&) {
        }
#pragma omp for schedule(dynamic, run)
        for (Index task = 0; task < tasks_.count; ++task) guarded(task);
      }
    }
  }

  // The first error is the call's.
  void fail(std::exception_ptr error) noexcept {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::move(error);
    call_.stop();
  }
  RunningCall& call() { return call_; }

  void finish() {
    if (!error_) return;
    call_.go_on();
    std::rethrow_exception(error_);
  }

 private:
  void guarded(Index task) noexcept {
    if (call_.stopped()) return;
    try {
      RunningCall::check();
      tasks_.run(tasks_.f, task);
    } catch (...) {
      fail(std::current_exception());
    }
  }

  RunningCall& call_;
  const Tasks& tasks_;
  const bool sticky_;
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
// it for normcore or for another user of the same runtime. A new thread has none to wait for.
class Deputy {
 public:
  // Of the thread that was forked, if this is it.
  static Deputy* needed() { return forked_ ? of_process() : nullptr; }

  // Throws std::system_error where no thread can be started.
  void run(Region& region, int team) {
    std::unique_lock lock(mutex_);
    if (!started_) {
      std::thread([this] { serve(); }).detach();
      started_ = true;
    }
    region_ = &region;
    team_ = team;
    changed_.notify_all();
    while (region_) {
      changed_.wait_for(lock, std::chrono::milliseconds(100));
      if (!region_) break;
      lock.unlock();
      try {
        region.call().ask();
      } catch (...) {
        region.fail(std::current_exception());
      }
      lock.lock();
    }
  }

 private:
  void serve() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return region_ != nullptr; });
      Region& region = *region_;
      const int team = team_;
      lock.unlock();
      region.run(startable(team));
      lock.lock();
      region_ = nullptr;
      changed_.notify_all();
    }
  }

  static void after_fork() {
    forked_ = true;
    // What the parent had stays as it was: its thread is not here.
    of_process_ = nullptr;
  }
  // Never deleted: its thread outlives everything.
  static Deputy* of_process() {
    if (!of_process_) of_process_ = new Deputy;
    return of_process_;
  }

  static inline thread_local bool forked_ = false;
  static inline Deputy* of_process_ = nullptr;  // one thread at most has need of it
  static inline const int registered_ = pthread_atfork(nullptr, nullptr, after_fork);

  std::mutex mutex_;
  std::condition_variable changed_;
  Region* region_ = nullptr;
  int team_ = 1;
  bool started_ = false;
};

#endif
#endif

void run_alone(const Tasks& tasks) {
  for (Index task = 0; task < tasks.count; ++task) {
    RunningCall::check();
    tasks.run(tasks.f, task);
  }
}

}  // namespace

void run_in_team(const Tasks& tasks, [[maybe_unused]] int threads, [[maybe_unused]] bool sticky) {
  RunningCall* call = RunningCall::current();
  if (!call) {
    const RunningCall own{Context{}};
    return run_in_team(tasks, threads, sticky);
  }
  call->ask();  // in the team the calling thread may come too late for any task
#ifdef _OPENMP
  Region region(*call, tasks, sticky);
  int team = static_cast<int>(std::min<Index>(threads, tasks.count));
#if defined(__unix__) || defined(__APPLE__)
  if (Deputy* deputy = Deputy::needed()) {
    try {
      deputy->run(region, team);
    } catch (const std::system_error&) {
      return run_alone(tasks);
    }
    return region.finish();
  }
  team = startable(team);
#endif
  if (team > 1) {
    region.run(team);
    return region.finish();
  }
#endif
  run_alone(tasks);
}

int threads_for(Index bytes, int wanted) {
  if (bytes < tuning::kSerialBytes) return 1;
  return wanted > 0 ? wanted : get_num_threads();
}

}  // namespace cpu

int get_num_threads() {
  const int set = cpu::thread_setting.load(std::memory_order_relaxed);
  if (set > 0) return set;
#ifdef _OPENMP
  return std::clamp(omp_get_max_threads(), 1, kMostThreads);
#else
  return 1;
#endif
}

void set_num_threads(int n) {
  if (n < 1 || n > kMostThreads) {
    throw value_error("n is " + std::to_string(n) + ", expected 1 to " +
                      std::to_string(kMostThreads));
  }
  cpu::thread_setting = n;
}

bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

}  // namespace normcore
