#include "cpu/crew.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <system_error>
#include <thread>

#include "cpu/workspace.h"
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace normcore::cpu {
namespace {

// Waiting threads look this often before they sleep, for half a millisecond or so: the steps of one
// call, and calls that follow each other, are not further apart. A thread that is woken often gets
// the core of the one that wakes it, and comes too late. (Runtimes of OpenMP look for longer.)
int looks() {
  static const int count = [] {
    const char* policy = std::getenv("OMP_WAIT_POLICY");
    return policy && (*policy == 'p' || *policy == 'P') ? 0 : 30000;  // "passive"
  }();
  return count;
}

template <class Condition>
bool spin(Condition condition) {
  for (int i = looks(); i > 0; --i) {
    if (condition()) return true;
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  return false;
}

// Never deleted: its threads outlive everything. A forked child has none of them, and a lock that
// nobody will open: it begins anew.
std::atomic<Crew*> crew{nullptr};

}  // namespace

// In the stack of its caller.
struct Crew::Job {
  void (*work)(void*, int);
  void* data;
  int places;
  std::atomic<int> inside{0};
  Job* next = nullptr;
};

Crew& Crew::of_process() {
#if defined(__unix__) || defined(__APPLE__)
  [[maybe_unused]] static const int registered =
      pthread_atfork(nullptr, nullptr, [] { crew = nullptr; });
#endif
  if (Crew* known = crew) return *known;
  auto* own = new Crew;
  Crew* known = nullptr;
  if (crew.compare_exchange_strong(known, own)) return *own;
  delete own;
  return *known;
}

void Crew::run(int helpers, void (*work)(void*, int), void* data) {
  Job job{work, data, 0};
  int places;
  {
    std::unique_lock lock(mutex_);
    hire(lock, helpers);
    job.places = places = std::min(helpers, ready_);
    places_ += places;
    Job** last = &jobs_;
    while (*last) last = &(*last)->next;
    *last = &job;
  }
  for (int i = 0; i < places; ++i) work_.notify_one();
  work(data, 0);
  {
    const std::lock_guard lock(mutex_);  // from now on nobody comes
    places_ -= job.places;
    Job** before = &jobs_;
    while (*before != &job) before = &(*before)->next;
    *before = job.next;
  }
  const auto alone = [&] { return job.inside.load(std::memory_order_acquire) == 0; };
  if (spin(alone)) return;
  std::unique_lock lock(mutex_);
  done_.wait(lock, alone);
}

// As many threads as there can be: a call does with fewer.
void Crew::hire(std::unique_lock<std::mutex>& lock, int helpers) {
  if (ready_ >= helpers) return;
  try {
    while (hired_ < helpers) {
      std::thread([this, index = hired_ + 1] { serve(index); }).detach();
      ++hired_;
    }
  } catch (const std::system_error&) {
  } catch (const std::bad_alloc&) {
  }
  done_.wait(lock, [&] { return ready_ == hired_; });
}

void Crew::serve(int index) {
  try {
    Workspace::local().warm();  // a later call must find it
  } catch (const std::bad_alloc&) {
  }
  std::unique_lock lock(mutex_);
  ++ready_;
  done_.notify_all();
  for (;;) {
    work_.wait(lock, [this] { return places_ > 0; });
    while (Job* job = open_job()) {
      --job->places;
      --places_;
      job->inside.fetch_add(1, std::memory_order_relaxed);
      lock.unlock();
      job->work(job->data, index);
      lock.lock();
      // The job may be gone after this.
      if (job->inside.fetch_sub(1, std::memory_order_acq_rel) == 1) done_.notify_all();
    }
    lock.unlock();
    spin([this] { return places_.load(std::memory_order_relaxed) > 0; });
    lock.lock();
  }
}

Crew::Job* Crew::open_job() const {
  Job* job = jobs_;
  while (job && job->places == 0) job = job->next;
  return job;
}

}  // namespace normcore::cpu
