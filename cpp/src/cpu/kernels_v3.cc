#define NORMCORE_ISA v3
#define NORMCORE_ISA_NAME "x86-64-v3"
#include "kernels.inl"
