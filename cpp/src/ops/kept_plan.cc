#include "ops/kept_plan.h"

#include <memory>

namespace normcore {

struct KeptPlan::Slot {
  int size = 0;   // of the key; 0: nothing is kept here
  int users = 0;  // calls, one within the other: what signals and exchanges run may call again
  Index words[CallKey::kMost];
  Plan plan;

  bool holds(const CallKey& key) const {
    return size == key.size() && std::equal(words, words + size, key.words());
  }
};

struct KeptPlan::Slots {
  static constexpr int kCount = 8;
  Slot slots[kCount];
  int last = 0;  // found last
  int next = 0;  // given up next

  static Slots& of_this_thread() {
    static thread_local std::unique_ptr<Slots> slots;
    if (!slots) slots.reset(new Slots);
    return *slots;
  }
};

KeptPlan::KeptPlan(const CallKey& key) : key_(key), slots_(Slots::of_this_thread()) {
  if (!key.fits()) return;
  for (int i = 0; i < Slots::kCount; ++i) {
    const int at = (slots_.last + i) % Slots::kCount;
    if (!slots_.slots[at].holds(key)) continue;
    slots_.last = at;
    slot_ = &slots_.slots[at];
    ++slot_->users;
    plan_ = &slot_->plan;
    return;
  }
}

KeptPlan::~KeptPlan() {
  if (slot_) --slot_->users;
}

Plan* KeptPlan::take_room() {
  if (slot_) --slot_->users;
  slot_ = nullptr;
  plan_ = nullptr;
  if (!key_.fits()) return &own_;
  for (int i = 0; i < Slots::kCount && !slot_; ++i) {
    Slot* slot = &slots_.slots[slots_.next];
    slots_.next = (slots_.next + 1) % Slots::kCount;
    if (slot->users == 0) slot_ = slot;
  }
  if (!slot_) return &own_;
  slot_->users = 1;
  slot_->size = 0;
  return &slot_->plan;
}

void KeptPlan::keep(const Plan* made) {
  plan_ = made;
  if (!slot_) return;
  std::copy_n(key_.words(), key_.size(), slot_->words);
  slot_->size = key_.size();
  slots_.last = static_cast<int>(slot_ - slots_.slots);
}

}  // namespace normcore
