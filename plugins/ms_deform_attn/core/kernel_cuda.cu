// Multi-scale deformable attention in two phases, which assign threads differently.
//
// 1. One thread per sample: softmax, location, and the sample's four pixels with their weights,
//    which go into shared memory.
// 2. One thread per few channels: values are loaded 16 bytes at a time and summed in float32.
//
// An item is the output of one head for one query: D channels from L * P samples.
#include "kernel_cuda.h"
#include "sampling.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>

namespace detr
{
namespace
{

constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kLanes = 16; // threads that compute the softmax of an item
constexpr int kLoadBytes = 16;

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack
{
    T element[kCount];
};

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

__device__ float larger(float a, float b)
{
    return fmaxf(a, b);
}

__device__ int larger(int a, int b)
{
    return max(a, b);
}

template <typename T>
__device__ T maxOfLanes(T x)
{
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2)
    {
        x = larger(x, __shfl_xor_sync(kWholeWarp, x, distance));
    }
    return x;
}

template <typename T>
__device__ T sumOfLanes(T x)
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
__device__ unsigned product(int a, int b)
{
    return static_cast<unsigned>(a) * static_cast<unsigned>(b);
}

__device__ int offsetOf(unsigned token, int numTokens, int loadsPerToken)
{
    return static_cast<int>(min(token, static_cast<unsigned>(numTokens - 1))) * loadsPerToken;
}

// A pointer to global memory that the compiler keeps as a whole; otherwise it would add up every
// address from its parts again, which takes five instructions instead of one.
template <typename T>
__device__ const T* keptWhole(const T* pointer)
{
#if defined(__CUDA_ARCH__)
    asm("" : "+l"(pointer));
    __builtin_assume(__isGlobal(pointer));
#endif
    return pointer;
}

// Where a sample takes its values. `sample` and `reference` are the indices of the sample and of
// its reference point in the whole call. Sizes are arguments so that they can be constants.
template <typename T>
__device__ Taps tapsOf(const MSDeformAttnParams& p, int referenceDim, int numPoints,
    int loadsPerToken, int64_t reference, int64_t sample, const Level& level, float weight)
{
    using Float2 = Pack<float, 2>;
    const auto offset = static_cast<const Pack<T, 2>*>(p.samplingOffsets)[sample];
    const auto* const references
        = static_cast<const Float2*>(p.referencePoints) + reference * (referenceDim / 2);
    const float width = static_cast<float>(level.width), height = static_cast<float>(level.height);
    const float dx = static_cast<float>(offset.element[0]);
    const float dy = static_cast<float>(offset.element[1]);
    const Float2 centre = references[0];
    float x, y;
    if (referenceDim == 2)
    {
        x = pixelFromPoint(centre.element[0], dx, width);
        y = pixelFromPoint(centre.element[1], dy, height);
    }
    else
    {
        const Float2 extent = references[1];
        const float scale = 0.5f / static_cast<float>(numPoints);
        x = pixelFromBox(centre.element[0], extent.element[0], dx, width, scale);
        y = pixelFromBox(centre.element[1], extent.element[1], dy, height, scale);
    }
    const auto column = axisTaps<float, int>(x, level.width, width);
    const auto row = axisTaps<float, int>(y, level.height, height);
    const unsigned low = level.start + product(row.low, level.width);
    const unsigned high = level.start + product(row.high, level.width);
    const float lowWeight = row.lowWeight * weight, highWeight = row.highWeight * weight;
    Taps taps;
    taps.offset = make_int4(offsetOf(low + column.low, p.numTokens, loadsPerToken),
        offsetOf(low + column.high, p.numTokens, loadsPerToken),
        offsetOf(high + column.low, p.numTokens, loadsPerToken),
        offsetOf(high + column.high, p.numTokens, loadsPerToken));
    taps.weight = make_float4(lowWeight * column.lowWeight, lowWeight * column.highWeight,
        highWeight * column.lowWeight, highWeight * column.highWeight);
    return taps;
}

// The offset of one of the pixels that a sample uses, or -1 if the sample is outside its map. A
// weight that is NaN, because of the logits, counts as used.
__device__ int offsetTaken(const Taps& taps)
{
    const int4 offset = taps.offset;
    const float4 weight = taps.weight;
    return max(max(weight.x != 0.0f ? offset.x : -1, weight.y != 0.0f ? offset.y : -1),
        max(weight.z != 0.0f ? offset.z : -1, weight.w != 0.0f ? offset.w : -1));
}

template <typename T, int kCount>
__device__ void toFloat(const Pack<T, kCount>& values, float (&result)[kCount])
{
#pragma unroll
    for (int i = 0; i < kCount; ++i)
    {
        result[i] = static_cast<float>(values.element[i]);
    }
}

// A bfloat16 is the upper half of a float, so each of the two in a word takes one instruction.
__device__ void toFloat(const Pack<__nv_bfloat16, 8>& values, float (&result)[8])
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

// Adds the values at one sample to `sum`; `values` points to these channels of token 0.
template <typename T, int kChannels>
__device__ void addSample(
    float (&sum)[kChannels], const Pack<T, kChannels>* values, int4 offset, float4 weight)
{
    const int offsets[] = {offset.x, offset.y, offset.z, offset.w};
    const float weights[] = {weight.x, weight.y, weight.z, weight.w};
#pragma unroll
    for (int corner = 0; corner < 4; ++corner)
    {
        float loaded[kChannels];
        toFloat(Pack<T, kChannels>(values[static_cast<unsigned>(offsets[corner])]), loaded);
#pragma unroll
        for (int c = 0; c < kChannels; ++c)
        {
            sum[c] += weights[corner] * loaded[c];
        }
    }
}

template <typename T, int kChannels>
__device__ void store(void* output, int64_t element, const float (&sum)[kChannels])
{
    Pack<T, kChannels> result;
#pragma unroll
    for (int c = 0; c < kChannels; ++c)
    {
        result.element[c] = T(sum[c]);
    }
    *reinterpret_cast<Pack<T, kChannels>*>(static_cast<T*>(output) + element) = result;
}

// The sizes of every published model: D = 32, L = P = 4. In both phases, 16 threads share an item
// and have equally many samples and channels, and no warp waits for another.
namespace fast
{

constexpr int kThreads = 256;
constexpr int kHeadDim = 32;
constexpr int kNumLevels = 4;
constexpr int kNumPoints = 4;
constexpr int kNumSamples = kNumLevels * kNumPoints;
constexpr int kQueriesPerBlock = kThreads / kLanes;
static_assert(kNumSamples == kLanes, "one thread per sample");

// Grid: heads, blocks of queries, images.
template <typename T, int kReferenceDim>
__global__ void __launch_bounds__(kThreads, 4) kernel(const MSDeformAttnParams p)
{
    constexpr int kChannels = kLoadBytes / sizeof(T);
    constexpr int kSlices = kHeadDim / kChannels; // threads that share the channels of a sample
    constexpr int kShares = kLanes / kSlices;     // threads that share the samples of a channel

    __shared__ int4 offsets[kThreads];
    __shared__ float4 weights[kThreads];

    const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes;
    const int head = static_cast<int>(blockIdx.x);
    const int ownQuery = static_cast<int>(blockIdx.y) * kQueriesPerBlock + thread / kLanes;
    // Threads beyond the last query do its work again, as shuffles need all of a warp.
    const int64_t query = static_cast<int64_t>(blockIdx.z) * p.numQueries
        + min(ownQuery, p.numQueries - 1);
    const int64_t item = query * p.numHeads + head;

    const int loadsPerToken = p.numHeads * kSlices;
    const int levelIndex = lane / kNumPoints;
    Level level{p.spatialShapes[2 * levelIndex], p.spatialShapes[2 * levelIndex + 1], 0};
    const unsigned size = product(level.height, level.width);
    unsigned end = size;
#pragma unroll
    for (int distance = kNumPoints; distance < kLanes; distance *= 2)
    {
        const unsigned before = __shfl_up_sync(kWholeWarp, end, distance, kLanes);
        end += lane >= distance ? before : 0u;
    }
    level.start = end - size;

    const int64_t sample = item * kNumSamples + lane;
    const float logit = static_cast<float>(static_cast<const T*>(p.attentionLogits)[sample]);
    const float power = expf(logit - maxOfLanes(logit));
    const float weight = __fdividef(power, sumOfLanes(power));
    const Taps taps = tapsOf<T>(p, kReferenceDim, kNumPoints, loadsPerToken,
        query * kNumLevels + levelIndex, sample, level, weight);
    // The pixel at the border may be infinite, and zero times that is NaN. So a sample outside its
    // map reads a pixel that another sample uses; if none uses any, the output is zero.
    const int own = offsetTaken(taps), taken = maxOfLanes(own), other = max(taken, 0);
    offsets[thread] = own < 0 ? make_int4(other, other, other, other) : taps.offset;
    weights[thread] = taps.weight;
    __syncwarp();

    const int slice = lane % kSlices, share = lane / kSlices;
    const auto* const values = keptWhole(static_cast<const Pack<T, kChannels>*>(p.value)
        + static_cast<int64_t>(blockIdx.z) * p.numTokens * loadsPerToken + head * kSlices + slice);
    float sum[kChannels] = {};
#pragma unroll
    for (int i = 0; i < kNumSamples; i += kShares)
    {
        const int slot = thread - lane + i + share;
        addSample(sum, values, offsets[slot], weights[slot]);
    }
#pragma unroll
    for (int distance = kSlices; distance < kLanes; distance *= 2)
    {
#pragma unroll
        for (int c = 0; c < kChannels; ++c)
        {
            sum[c] += __shfl_xor_sync(kWholeWarp, sum[c], distance);
        }
    }
    if (share == 0 && ownQuery < p.numQueries)
    {
#pragma unroll
        for (int c = 0; c < kChannels; ++c)
        {
            sum[c] = taken < 0 ? 0.0f : sum[c];
        }
        store<T>(p.output, item * kHeadDim + slice * kChannels, sum);
    }
}

template <typename T>
cudaError_t launch(const MSDeformAttnParams& p, cudaStream_t stream)
{
    cudaLaunchConfig_t config{};
    const int numBlocks = (p.numQueries + kQueriesPerBlock - 1) / kQueriesPerBlock;
    config.gridDim = dim3(static_cast<unsigned>(p.numHeads), static_cast<unsigned>(numBlocks),
        static_cast<unsigned>(p.batch));
    config.blockDim = dim3(kThreads);
    config.stream = stream;
    return cudaLaunchKernelEx(&config, p.referenceDim == 2 ? kernel<T, 2> : kernel<T, 4>, p);
}

bool isFor(const MSDeformAttnParams& p)
{
    constexpr int kMaxGrid = 65535; // in its second and third direction
    return p.headDim == kHeadDim && p.numLevels == kNumLevels && p.numPoints == kNumPoints
        && p.numQueries <= kMaxGrid * kQueriesPerBlock && p.batch <= kMaxGrid;
}

} // namespace fast

// Every other size: samples are processed in chunks. A block has as many items as its threads can
// hold channels of, up to a limit: with few channels per item, too few blocks would be left for a
// GPU.
namespace general
{

constexpr int kThreads = 128;
constexpr int kMaxItems = 32; // per block
constexpr int kChunk = 16;    // samples of an item in shared memory at once

struct Plan
{
    int numItems;  // per block
    int numSlices; // threads that share the channels of an item
};

struct Item
{
    int64_t index;
    int64_t query;
    int64_t firstValue; // element of `value` of token 0 and channel 0
    float highest; // of its logits
    float scale; // 1 over the sum of the powers
};

// Grid: groups of items, and groups of channels if an item has more than a block can take.
template <typename T, int kChannels>
__global__ void __launch_bounds__(kThreads, 6) kernel(const MSDeformAttnParams p, const Plan plan)
{
    __shared__ Level levels[kMaxLevels];
    __shared__ Item items[kMaxItems];
    __shared__ int4 offsets[kMaxItems * kChunk];
    __shared__ float4 weights[kMaxItems * kChunk];

    const int thread = static_cast<int>(threadIdx.x);
    const int numSamples = p.numLevels * p.numPoints;
    const int64_t numItems = static_cast<int64_t>(p.batch) * p.numQueries * p.numHeads;
    const int64_t firstItem = static_cast<int64_t>(blockIdx.x) * plan.numItems;
    const auto* const logits = static_cast<const T*>(p.attentionLogits);

    for (int index = thread; index < p.numLevels; index += kThreads)
    {
        unsigned start = 0;
        for (int before = 0; before < index; ++before)
        {
            start += product(p.spatialShapes[2 * before], p.spatialShapes[2 * before + 1]);
        }
        levels[index] = {p.spatialShapes[2 * index], p.spatialShapes[2 * index + 1], start};
    }
    for (int first = 0; first < plan.numItems; first += kThreads / kLanes)
    {
        const int lane = thread % kLanes, own = first + thread / kLanes;
        // Threads beyond the last item do its work again, as shuffles need all of a warp.
        Item item;
        item.index = min(firstItem + own, numItems - 1);
        float highest = -INFINITY, sum = 0.0f;
        for (int i = lane; i < numSamples; i += kLanes)
        {
            highest = fmaxf(highest, static_cast<float>(logits[item.index * numSamples + i]));
        }
        item.highest = maxOfLanes(highest);
        for (int i = lane; i < numSamples; i += kLanes)
        {
            sum += expf(static_cast<float>(logits[item.index * numSamples + i]) - item.highest);
        }
        item.scale = __fdividef(1.0f, sumOfLanes(sum));
        if (lane == 0 && own < plan.numItems)
        {
            item.query = item.index / p.numHeads;
            const int64_t head = item.index - item.query * p.numHeads;
            const int64_t image = item.query / p.numQueries;
            item.firstValue = (image * p.numTokens * p.numHeads + head) * p.headDim;
            items[own] = item;
        }
    }
    __syncthreads();

    const int ownItem = thread / plan.numSlices;
    const int channel
        = (static_cast<int>(blockIdx.y) * plan.numSlices + thread % plan.numSlices) * kChannels;
    const bool hasWork = ownItem < plan.numItems && firstItem + ownItem < numItems
        && channel < p.headDim;
    const int loadsPerToken = p.numHeads * p.headDim / kChannels;
    const Pack<T, kChannels>* values = nullptr;
    if (hasWork)
    {
        values = reinterpret_cast<const Pack<T, kChannels>*>(
            static_cast<const T*>(p.value) + items[ownItem].firstValue + channel);
    }
    values = keptWhole(values);
    float sum[kChannels] = {};
    for (int first = 0; first < numSamples; first += kChunk)
    {
        const int count = min(kChunk, numSamples - first);
        for (int slot = thread; slot < plan.numItems * kChunk; slot += kThreads)
        {
            const int inChunk = slot % kChunk;
            if (inChunk < count)
            {
                const Item& item = items[slot / kChunk];
                const int64_t sample = item.index * numSamples + first + inChunk;
                const int level = (first + inChunk) / p.numPoints;
                const float weight
                    = expf(static_cast<float>(logits[sample]) - item.highest) * item.scale;
                const Taps taps = tapsOf<T>(p, p.referenceDim, p.numPoints, loadsPerToken,
                    item.query * p.numLevels + level, sample, levels[level], weight);
                offsets[slot] = taps.offset;
                weights[slot] = taps.weight;
            }
        }
        __syncthreads();
        for (int i = 0; hasWork && i < count; ++i)
        {
            const int slot = ownItem * kChunk + i;
            const Taps taps{offsets[slot], weights[slot]};
            if (offsetTaken(taps) >= 0) // otherwise it reads the border: see the fast path
            {
                addSample(sum, values, taps.offset, taps.weight);
            }
        }
        __syncthreads();
    }
    if (hasWork)
    {
        store<T>(p.output, items[ownItem].index * p.headDim + channel, sum);
    }
}

template <typename T, int kChannels>
cudaError_t launch(const MSDeformAttnParams& p, cudaStream_t stream)
{
    const int numSlices = (p.headDim + kChannels - 1) / kChannels;
    Plan plan;
    plan.numSlices = std::min(numSlices, kThreads);
    plan.numItems = std::min(kThreads / plan.numSlices, kMaxItems);
    const int64_t numItems = static_cast<int64_t>(p.batch) * p.numQueries * p.numHeads;
    const int64_t numBlocks = (numItems + plan.numItems - 1) / plan.numItems;
    if (numBlocks > std::numeric_limits<int>::max())
    {
        return cudaErrorInvalidValue;
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(numBlocks),
        static_cast<unsigned>((numSlices + plan.numSlices - 1) / plan.numSlices));
    config.blockDim = dim3(kThreads);
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel<T, kChannels>, p, plan);
}

} // namespace general

bool isAligned(const void* pointer, size_t bytes)
{
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

template <typename T>
cudaError_t launch(const MSDeformAttnParams& p, cudaStream_t stream)
{
    constexpr int kChannels = kLoadBytes / sizeof(T);
    if (!isAligned(p.samplingOffsets, 2 * sizeof(T))
        || !isAligned(p.referencePoints, 2 * sizeof(float)))
    {
        return cudaErrorMisalignedAddress;
    }
    const bool isWide = p.headDim % kChannels == 0 && isAligned(p.value, kLoadBytes)
        && isAligned(p.output, kLoadBytes);
    if (isWide && fast::isFor(p))
    {
        return fast::launch<T>(p, stream);
    }
    return isWide ? general::launch<T, kChannels>(p, stream) : general::launch<T, 1>(p, stream);
}

} // namespace

const char* whyUnsupported(const MSDeformAttnParams& p) noexcept
{
    if (p.batch < 0 || p.numQueries < 0)
    {
        return "a batch or a number of queries below zero";
    }
    if (p.numTokens < 1 || p.numHeads < 1 || p.headDim < 1 || p.numLevels < 1 || p.numPoints < 1)
    {
        return "no tokens, heads, channels, levels or points";
    }
    if (p.numLevels > kMaxLevels)
    {
        return "more than 64 levels";
    }
    if (p.referenceDim != 2 && p.referenceDim != 4)
    {
        return "reference points that are neither 2 nor 4 wide";
    }
    constexpr int kMax = std::numeric_limits<int>::max();
    const int64_t perToken = static_cast<int64_t>(p.numHeads) * p.headDim;
    if (perToken > kMax / p.numTokens)
    {
        return "2^31 values or more in an image";
    }
    if (static_cast<int64_t>(p.numLevels) * p.numPoints > kMax)
    {
        return "2^31 samples or more in a query and head";
    }
    return nullptr;
}

cudaError_t launchMSDeformAttn(
    const MSDeformAttnParams& p, DataType type, cudaStream_t stream) noexcept
{
    if (whyUnsupported(p) != nullptr)
    {
        return cudaErrorInvalidValue;
    }
    if (p.batch == 0 || p.numQueries == 0)
    {
        return cudaSuccess;
    }
    switch (type)
    {
    case DataType::kFloat32: return launch<float>(p, stream);
    case DataType::kFloat16: return launch<__half>(p, stream);
    case DataType::kBFloat16: return launch<__nv_bfloat16>(p, stream);
    }
    return cudaErrorInvalidValue;
}

} // namespace detr
