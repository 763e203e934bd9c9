#define NORMCORE_ISA v4
#define NORMCORE_ISA_NAME "x86-64-v4"
#include "kernels.inl"
