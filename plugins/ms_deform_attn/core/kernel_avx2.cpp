// Kernels for AVX2. Compiled with its instructions, and run only where the CPU has them.
#include "kernel_table.h"

#if defined(__AVX2__)
#include "backward_cpu.h"
#include "forward_cpu.h"
#include "vector_avx2.h"
#endif

namespace detr
{

const KernelTable* avx2Kernels(bool bfloat16)
{
#if defined(__AVX2__)
    static const KernelTable kFloat32 = {prepareItem<Avx2, float>, forwardItem<Avx2, float>,
        backwardItem<Avx2>, sizeof(float), sizeof(float)};
    static const KernelTable kBFloat16 = {prepareItem<Avx2, uint16_t>, forwardItem<Avx2, uint16_t>,
        nullptr, sizeof(float), sizeof(uint16_t)};
    return bfloat16 ? &kBFloat16 : &kFloat32;
#else
    (void)bfloat16;
    return nullptr;
#endif
}

} // namespace detr
