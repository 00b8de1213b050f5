// What the CUDA kernels share: levels, samples, reductions over lanes, packs of channels.
#pragma once

#include "params.h"
#include "sampling.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace detr
{

constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kLanes = 16; // threads that compute the softmax of an item
constexpr int kLoadBytes = 16;

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack
{
    T element[kCount];
};

inline bool isAligned(const void* pointer, size_t bytes)
{
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

struct Level
{
    int height;
    int width;
    unsigned start; // its first token
};

// The four pixels of a sample: (low y, low x), (low y, high x), (high y, low x), (high, high).
struct Taps
{
    int4 offset; // from token 0, in loads
    float4 weight;
};

__device__ inline float larger(float a, float b)
{
    return fmaxf(a, b);
}

__device__ inline int larger(int a, int b)
{
    return max(a, b);
}

template <typename T>
__device__ inline T maxOfLanes(T x)
{
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2)
    {
        x = larger(x, __shfl_xor_sync(kWholeWarp, x, distance));
    }
    return x;
}

template <typename T>
__device__ inline T sumOfLanes(T x)
{
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2)
    {
        x += __shfl_xor_sync(kWholeWarp, x, distance);
    }
    return x;
}

// Nobody has checked the level shapes, which are data: whatever they are, products wrap around and
// offsets stay within `value`.
__device__ inline unsigned product(int a, int b)
{
    return static_cast<unsigned>(a) * static_cast<unsigned>(b);
}

__device__ inline int offsetOf(unsigned token, int numTokens, int loadsPerToken)
{
    return static_cast<int>(min(token, static_cast<unsigned>(numTokens - 1))) * loadsPerToken;
}

// Every level and its first token; the threads of a block share the work.
__device__ inline void findLevels(
    const MSDeformAttnParams& p, int thread, int numThreads, Level* levels)
{
    for (int index = thread; index < p.numLevels; index += numThreads)
    {
        unsigned start = 0;
        for (int before = 0; before < index; ++before)
        {
            start += product(p.spatialShapes[2 * before], p.spatialShapes[2 * before + 1]);
        }
        levels[index] = {p.spatialShapes[2 * index], p.spatialShapes[2 * index + 1], start};
    }
}

// Of the logits of an item.
struct Softmax
{
    float highest;
    float scale; // 1 over the sum of the powers

    __device__ float weightOf(float logit) const
    {
        return expf(logit - highest) * scale;
    }
};

// For a whole warp: each kLanes threads compute the softmax of an item of theirs.
template <typename T>
__device__ inline Softmax softmaxOf(const T* logits, int numSamples, int lane)
{
    float highest = -INFINITY, sum = 0.0f;
    for (int i = lane; i < numSamples; i += kLanes)
    {
        highest = fmaxf(highest, static_cast<float>(logits[i]));
    }
    highest = maxOfLanes(highest);
    for (int i = lane; i < numSamples; i += kLanes)
    {
        sum += expf(static_cast<float>(logits[i]) - highest);
    }
    return {highest, __fdividef(1.0f, sumOfLanes(sum))};
}

// A pointer to global memory that the compiler keeps as a whole; otherwise it would add up every
// address from its parts again, which takes five instructions instead of one.
template <typename T>
__device__ inline const T* keptWhole(const T* pointer)
{
#if defined(__CUDA_ARCH__)
    asm("" : "+l"(pointer));
    __builtin_assume(__isGlobal(pointer));
#endif
    return pointer;
}

// Where a sample is, in pixels of its level.
struct Location
{
    float x;
    float y;
};

// `sample` and `reference` are the indices of the sample and of its reference point in the whole
// call. Sizes are arguments so that they can be constants.
template <typename T>
__device__ inline Location locationOf(const MSDeformAttnParams& p, int referenceDim, int numPoints,
    int64_t reference, int64_t sample, const Level& level)
{
    using Float2 = Pack<float, 2>;
    const auto offset = static_cast<const Pack<T, 2>*>(p.samplingOffsets)[sample];
    const auto* const references
        = static_cast<const Float2*>(p.referencePoints) + reference * (referenceDim / 2);
    const float width = static_cast<float>(level.width), height = static_cast<float>(level.height);
    const float dx = static_cast<float>(offset.element[0]);
    const float dy = static_cast<float>(offset.element[1]);
    const Float2 centre = references[0];
    if (referenceDim == 2)
    {
        return {pixelFromPoint(centre.element[0], dx, width),
            pixelFromPoint(centre.element[1], dy, height)};
    }
    const Float2 extent = references[1];
    const float scale = 0.5f / static_cast<float>(numPoints);
    return {pixelFromBox(centre.element[0], extent.element[0], dx, width, scale),
        pixelFromBox(centre.element[1], extent.element[1], dy, height, scale)};
}

// What a sample takes from its level. `weight` is its own, after the softmax.
__device__ inline Taps tapsAt(const Location& location, const Level& level, int numTokens,
    int loadsPerToken, float weight)
{
    const float width = static_cast<float>(level.width), height = static_cast<float>(level.height);
    const auto column = axisTaps<float, int>(location.x, level.width, width);
    const auto row = axisTaps<float, int>(location.y, level.height, height);
    const unsigned low = level.start + product(row.low, level.width);
    const unsigned high = level.start + product(row.high, level.width);
    const float lowWeight = row.lowWeight * weight, highWeight = row.highWeight * weight;
    Taps taps;
    taps.offset = make_int4(offsetOf(low + column.low, numTokens, loadsPerToken),
        offsetOf(low + column.high, numTokens, loadsPerToken),
        offsetOf(high + column.low, numTokens, loadsPerToken),
        offsetOf(high + column.high, numTokens, loadsPerToken));
    taps.weight = make_float4(lowWeight * column.lowWeight, lowWeight * column.highWeight,
        highWeight * column.lowWeight, highWeight * column.highWeight);
    return taps;
}

// The offset of one of the pixels that a sample uses, or -1 if the sample is outside its map. A
// weight that is NaN, because of the logits, counts as used.
__device__ inline int offsetTaken(const Taps& taps)
{
    const int4 offset = taps.offset;
    const float4 weight = taps.weight;
    return max(max(weight.x != 0.0f ? offset.x : -1, weight.y != 0.0f ? offset.y : -1),
        max(weight.z != 0.0f ? offset.z : -1, weight.w != 0.0f ? offset.w : -1));
}

template <typename T, int kCount>
__device__ inline void toFloat(const Pack<T, kCount>& values, float (&result)[kCount])
{
#pragma unroll
    for (int i = 0; i < kCount; ++i)
    {
        result[i] = static_cast<float>(values.element[i]);
    }
}

// A bfloat16 is the upper half of a float, so each of the two in a word takes one instruction.
__device__ inline void toFloat(const Pack<__nv_bfloat16, 8>& values, float (&result)[8])
{
    unsigned word[4];
    memcpy(word, values.element, sizeof(word));
#pragma unroll
    for (int i = 0; i < 4; ++i)
    {
        result[2 * i] = __uint_as_float(word[i] << 16);
        result[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
    }
}

template <typename T, int kCount>
__device__ void store(void* output, int64_t element, const float (&sum)[kCount])
{
    Pack<T, kCount> result;
#pragma unroll
    for (int c = 0; c < kCount; ++c)
    {
        result.element[c] = T(sum[c]);
    }
    *reinterpret_cast<Pack<T, kCount>*>(static_cast<T*>(output) + element) = result;
}

} // namespace detr
