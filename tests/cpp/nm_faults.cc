// Objects that nm_test.cmake must refuse: kTable is as it should be, and one thing is not.
namespace normcore::cpu::faulty {

extern const int kTable;
const int kTable = 1;

#if defined(FAULT_global)
int second_global = 2;
#elif defined(FAULT_weak)
inline int shared() {
  static int calls = 0;
  return ++calls;
}
[[gnu::used]] static int (*const keep)() = shared;
#elif defined(FAULT_initialiser)
int compute() noexcept;
static const int computed [[gnu::used]] = compute();
#endif

}  // namespace normcore::cpu::faulty
