// Kernels for AVX-512. Compiled with its instructions, and run only where the CPU has them.
#include "kernel_table.h"

#if defined(__AVX512F__)
#include "backward_cpu.h"
#include "forward_cpu.h"
#include "vector_avx512.h"
#endif

namespace detr
{

const KernelTable* avx512Kernels(bool bfloat16)
{
#if defined(__AVX512F__)
    static const KernelTable kFloat32 = {prepareItem<Avx512, float>, forwardItem<Avx512, float>,
        backwardItem<Avx512>, sizeof(float), sizeof(float)};
    static const KernelTable kBFloat16 = {prepareItem<Avx512, uint16_t>,
        forwardItem<Avx512, uint16_t>, nullptr, sizeof(float), sizeof(uint16_t)};
    return bfloat16 ? &kBFloat16 : &kFloat32;
#else
    (void)bfloat16;
    return nullptr;
#endif
}

} // namespace detr
