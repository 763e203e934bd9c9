// Plans that a thread keeps from call to call. Checks and plans follow from dtypes, sizes, strides
// and a few settings, not from addresses or elements: a call that is like an earlier one has passed
// the same checks and has the same plan, and small calls spend most of their time on both.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <initializer_list>

#include "normcore/errors.h"
#include "plan/plan.h"

namespace normcore {

// What calls are alike in, word by word.
class CallKey {
 public:
  static constexpr int kMost = 96;  // of two dozen in most calls; larger ones are not kept

  CallKey() {}  // and so CallKey{} clears no array
  // Room for so many words; those of a key that does not fit are of no use.
  Index* take(int words) {
    size_ += words;
    return size_ <= kMost ? words_ + size_ - words : words_;
  }
  void add(Index word) { *take(1) = word; }
  static Index word(const char* name) {
    return static_cast<Index>(std::bit_cast<std::intptr_t>(name));
  }
  bool fits() const { return size_ <= kMost; }
  int size() const { return size_; }
  const Index* words() const { return words_; }

 private:
  int size_ = 0;
  Index words_[kMost];
};

class KeptPlan {
 public:
  // That of an earlier call with this key, if there is one.
  explicit KeptPlan(const CallKey& key);
  ~KeptPlan();
  KeptPlan(const KeptPlan&) = delete;
  KeptPlan& operator=(const KeptPlan&) = delete;

  explicit operator bool() const { return plan_ != nullptr; }
  const Plan& operator*() const { return *plan_; }

  // The call has passed its checks: make(&plan) plans it, and others like it will find the plan.
  template <class F>
  void plan(F make) {
    Plan* room = take_room();
    make(room);
    keep(room);
  }

 private:
  struct Slot;
  struct Slots;

  Plan* take_room();
  void keep(const Plan* made);

  const CallKey& key_;
  Slots& slots_;
  Slot* slot_ = nullptr;  // in use as long as this lives
  const Plan* plan_ = nullptr;
  Plan own_;  // where all slots are in use, by calls that are waiting for this one
};

}  // namespace normcore
