// __builtin_shufflevector, which GCC has since version 12, for GCC 11: lanes of a and b, counted
// through both, in a vector of as many.
#pragma once

#if !__has_builtin(__builtin_shufflevector)
#define __builtin_shufflevector(a, b, ...) __builtin_shuffle(a, b, decltype((a) < (b)){__VA_ARGS__})
#endif
