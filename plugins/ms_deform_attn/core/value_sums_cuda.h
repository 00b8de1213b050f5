// How contributions of many threads to the gradient of value are added up: in float32, or so that
// their order does not matter.
#pragma once

#include "kernel_cuda.h"

#include <cuda_runtime.h>

#include <cmath>

namespace detr
{

constexpr int kVector = 4; // channels that are loaded and added at once, if possible

// Adds to the gradient of value in float32, in whatever order the threads come.
struct FloatSum
{
    static constexpr int kMinBlocks = 4; // of a multiprocessor

    float* sum;

    __device__ FloatSum(const MSDeformAttnParams&, const MSDeformAttnCudaGradients& g, int64_t first)
        : sum(g.value + first)
    {
    }

    template <int kChannels>
    __device__ void add(int64_t element, const float (&out)[kChannels], float weight) const
    {
        float* const target = sum + element;
        if constexpr (kChannels == kVector)
        {
            addVector(target,
                make_float4(weight * out[0], weight * out[1], weight * out[2], weight * out[3]));
        }
        else
        {
            atomicAdd(target, weight * out[0]);
        }
    }

    // CUDA 12.0, which Ubuntu 24.04 brings, knows the GPUs, but not their instruction.
    static __device__ void addVector(float* target, float4 x)
    {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && CUDART_VERSION >= 12010
        atomicAdd(reinterpret_cast<float4*>(target), x);
#else
        atomicAdd(target, x.x);
        atomicAdd(target + 1, x.y);
        atomicAdd(target + 2, x.z);
        atomicAdd(target + 3, x.w);
#endif
    }
};

// The factor from floats to whole numbers whose sum over all queries fits into 63 bits; a power of
// two. `largest` is the largest magnitude in the output's gradient: the weights of a query in a
// head add up to one, so it adds no more than that to any element. NaN if `largest` is not finite.
__device__ inline float fixedPointScale(float largest, int numQueries)
{
    if (!(largest < INFINITY))
    {
        return NAN;
    }
    int exponent;
    frexpf(largest, &exponent);
    const int queryBits = ilogbf(static_cast<float>(numQueries)) + 1;
    return ldexpf(1.0f, min(61 - queryBits - exponent, 126));
}

// Adds to the gradient of value in whole numbers, so that their order does not matter. What is not
// finite is written to the result at once.
struct FixedSum
{
    static constexpr int kMinBlocks = 4;

    unsigned long long* sum;
    float* result;
    float scale;

    __device__ FixedSum(
        const MSDeformAttnParams& p, const MSDeformAttnCudaGradients& g, int64_t first)
        : sum(g.fixedPoint + first)
        , result(g.value + first)
        , scale(fixedPointScale(*g.largest, p.numQueries))
    {
    }

    template <int kChannels>
    __device__ void add(int64_t element, const float (&out)[kChannels], float weight) const
    {
#pragma unroll
        for (int c = 0; c < kChannels; ++c)
        {
            const float scaled = weight * out[c] * scale;
            if (fabsf(scaled) < INFINITY)
            {
                atomicAdd(sum + element + c, static_cast<unsigned long long>(llrintf(scaled)));
            }
            else
            {
                result[element + c] = NAN;
            }
        }
    }
};

} // namespace detr
