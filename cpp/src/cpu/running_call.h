// What holds while a call runs, in the calling thread and in those that help it: the
// floating-point environment, the kernels, and whether the call goes on; and what holds at its end,
// that its results are there for all threads. Every operation begins with one.
#pragma once

#include <atomic>
#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/float_environment.h"
#include "cpu/streamed_stores.h"
#include "normcore/context.h"

namespace normcore::cpu {

class RunningCall {
 public:
  explicit RunningCall(const Context& context)
      : kernels_(chosen_kernels()),
        interrupt_(context.interrupt),
        own_(&current_),
        outer_(current_) {
    if (context.threads < 0 || context.threads > kMostThreads) refuse(context.threads);
    *own_ = this;
  }
  ~RunningCall() {
    settle_streamed_stores();
    *own_ = outer_;
  }
  RunningCall(const RunningCall&) = delete;
  RunningCall& operator=(const RunningCall&) = delete;

  // That in which the thread takes part, or null.
  static RunningCall* current() { return current_; }

  // Of one instruction set from start to end, whatever set_isa is told meanwhile.
  const KernelTable& kernels() const { return kernels_; }

  // Throws where the call should end: between tasks, and in loops of many seconds.
  static void check() {
    if (RunningCall* call = current_) call->check_in(&current_);
  }
  // As check, but also where there is nothing to check.
  void ask() {
    if (interrupt_) ask_at_times();
  }

  // What a thread has for as long as it helps.
  class Helper {
   public:
    explicit Helper(RunningCall& call) : own_(&current_), outer_(current_) { *own_ = &call; }
    ~Helper() {
      settle_streamed_stores();
      *own_ = outer_;
    }
    Helper(const Helper&) = delete;
    Helper& operator=(const Helper&) = delete;

   private:
    FloatEnvironment environment_;
    RunningCall** own_;
    RunningCall* outer_;
  };

  // One of its threads has failed: the others need not go on.
  void stop() { stopped_.store(true, std::memory_order_relaxed); }
  void go_on() { stopped_.store(false, std::memory_order_relaxed); }
  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }

 private:
  struct Stopped {};  // thrown in its other threads, and told to nobody

  void check_in(RunningCall** thread) {
    if (stopped()) throw Stopped();
    if (interrupt_ && thread == own_) ask_at_times();
  }
  void ask_at_times();
  [[noreturn]] static void refuse(int threads);

  static inline constinit thread_local RunningCall* current_ = nullptr;

  FloatEnvironment environment_;
  const KernelTable& kernels_;
  Interrupt* interrupt_;
  RunningCall** own_;  // of the calling thread
  RunningCall* outer_;
  std::atomic<bool> stopped_{false};
  std::int64_t next_ = 0;  // when to ask again, in milliseconds; 0: nothing has taken long yet
};

}  // namespace normcore::cpu
