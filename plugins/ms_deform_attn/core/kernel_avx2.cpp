// Kernels for AVX2 with FMA. Compiled with those instructions, and called only where they are.
#include "kernel_table.h"

namespace detr
{

const KernelTable* avx2Kernels(bool)
{
    return nullptr;
}

} // namespace detr
