// Kernels in plain C++: float32 and bfloat16 values, and everything in double.
#include "backward_cpu.h"
#include "forward_cpu.h"
#include "vector_portable.h"

namespace detr
{

const KernelTable* portableKernels(bool bfloat16)
{
    using V = PortableVector<float, 4>;
    static const KernelTable kFloat32 = {prepareItem<V, float>, forwardItem<V, float>,
        backwardItem<V>, sizeof(float), sizeof(float)};
    static const KernelTable kBFloat16 = {prepareItem<V, uint16_t>, forwardItem<V, uint16_t>,
        nullptr, sizeof(float), sizeof(uint16_t)};
    return bfloat16 ? &kBFloat16 : &kFloat32;
}

const KernelTable* doubleKernels()
{
    using V = PortableVector<double, 4>;
    static const KernelTable kFloat64 = {prepareItem<V, double>, forwardItem<V, double>,
        backwardItem<V>, sizeof(double), sizeof(double)};
    return &kFloat64;
}

} // namespace detr
