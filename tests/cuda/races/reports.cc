#include "reports.h"

// Both are called by the sanitizer, which must not see them itself.
extern "C" {
static int count = 0;
void __tsan_on_report(void*) { ++count; }
// Some tests plant faults: the exit code is that of the tests, and a second fault at the address of
// a first one is a fault.
const char* __tsan_default_options() { return "exitcode=0:suppress_equal_addresses=0"; }
}

int races::reports() { return count; }
