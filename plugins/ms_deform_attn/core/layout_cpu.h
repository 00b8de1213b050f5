// How a call is laid out for the CPU kernels: which of them run it, and where its tensors are in
// memory. Internal.
#pragma once

#include "kernel_cpu.h"
#include "kernel_table.h"
#include "scratch.h"

#include <vector>

namespace detr
{

// The level of every sample of a query: the columns of a SampleTable, and the memory they are in.
template <typename Scalar>
struct SampleLevels
{
    std::vector<Scalar> width, height;
    std::vector<int32_t> intWidth, intHeight, start, row, reference;
    SampleTable<Scalar> table;

    SampleLevels(const MSDeformAttnParams& params, size_t numPadded, int32_t tokenStride);
};

class CallLayout
{
public:
    // Throws like ForwardCpu.
    CallLayout(const MSDeformAttnParams& params, ValueStorage storage, Isa isa);
    CallLayout(const CallLayout&) = delete;
    CallLayout& operator=(const CallLayout&) = delete;

    const KernelTable& kernels() const
    {
        return mKernels;
    }

    const ForwardCall& call() const
    {
        return mCall;
    }

    // Whether the values of each head are copied next to each other before they are sampled.
    bool isRepacked() const
    {
        return mIsRepacked;
    }

    // Size of the values of all heads and images, as they are kept for sampling.
    size_t valueBytes() const;

private:
    const bool mIsRepacked;
    const KernelTable& mKernels;
    Scratch mValues;
    ForwardCall mCall;
    SampleLevels<float> mLevels;
    SampleLevels<double> mDoubleLevels;
};

} // namespace detr
