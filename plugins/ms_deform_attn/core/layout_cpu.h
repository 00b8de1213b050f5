// How a call is laid out for the CPU kernels: which of them run it, and where they find what.
// Internal.
#pragma once

#include "kernel_cpu.h"
#include "kernel_table.h"
#include "scratch.h"

#include <vector>

namespace detr
{

// The level of every sample of a query: the columns of a SampleTable, and what they lie in.
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
    // Throws as ForwardCpu does.
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

    // Whether the values of a head are brought together before they are sampled.
    bool isRepacked() const
    {
        return mIsRepacked;
    }

    // Of the values of all heads and images, as they are kept for sampling.
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
