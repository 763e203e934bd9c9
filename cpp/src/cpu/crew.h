// Threads of our own: for processes without an OpenMP runtime, and for a forked child, whose
// runtime would wait for threads that are not there. All calls of the process share them, so that
// many callers do not start many times as many threads.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>

namespace normcore::cpu {

class Crew {
 public:
  static Crew& of_process();

  // Calls work(data, index) in the calling thread, with index 0, and in up to `helpers` others that
  // are free meanwhile, each with an index of its own from 1 on. Returns when all have returned.
  void run(int helpers, void (*work)(void* data, int index), void* data);

 private:
  struct Job;

  void hire(std::unique_lock<std::mutex>& lock, int helpers);
  void serve(int index);
  Job* open_job() const;

  std::mutex mutex_;
  std::condition_variable work_, done_;
  Job* jobs_ = nullptr;         // the oldest first
  std::atomic<int> places_{0};  // of all jobs, for helpers that have not come yet
  int hired_ = 0, ready_ = 0;
};

}  // namespace normcore::cpu
