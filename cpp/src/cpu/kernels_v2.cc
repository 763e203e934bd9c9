#define NORMCORE_ISA v2
#define NORMCORE_ISA_NAME "x86-64-v2"
#include "kernels.inl"
