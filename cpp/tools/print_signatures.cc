// Prints the signatures of the methods: a program of its own, which needs nothing of the library,
// so that sources can be written that the library needs.
#include <cstdio>

#include "ops/describe.h"

int main() { std::puts(normcore::describe_signatures().c_str()); }
