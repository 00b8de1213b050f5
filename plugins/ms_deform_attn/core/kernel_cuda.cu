// Multi-scale deformable attention in two phases, which assign threads differently.
//
// 1. One thread per sample: softmax, location, and the sample's four pixels with their weights,
//    which go into shared memory.
// 2. One thread per few channels: values are loaded 16 bytes at a time and summed in float32, those
//    of type float16 on tensor cores.
//
// An item is the output of one head for one query: D channels from L * P samples.
#include "kernel_cuda.h"
#include "taps_cuda.h"
#include "tensor_cores_cuda.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <type_traits>

namespace detr
{
namespace
{

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

// Whether values of T are summed on tensor cores; why not bfloat16: docs/decisions/0014-*.md.
template <typename T>
constexpr bool kOnTensorCores = std::is_same_v<T, __half>;

template <int kCount>
__device__ bool areFinite(const float (&sum)[kCount])
{
    float zero = 0.0f;
#pragma unroll
    for (int i = 0; i < kCount; ++i)
    {
        zero += 0.0f * sum[i];
    }
    return zero == 0.0f;
}

// Sums the samples of an item again, where a sum was not finite: zero times infinity is NaN, so a
// sample outside its map spoils a sum if the pixel at the border is infinite, and tensor cores
// multiply values by the zeros of other channels. `values` points to these channels of token 0.
template <typename T, int kCount>
__device__ void sumOneByOne(float (&sum)[kCount], const Pack<T, kCount>* values,
    const int4* offsets, const float4* weights)
{
    constexpr int kPacks = kLoadBytes / sizeof(Pack<T, kCount>); // per load, what offsets count
#pragma unroll
    for (int c = 0; c < kCount; ++c)
    {
        sum[c] = 0.0f;
    }
#pragma unroll 1
    for (int i = 0; i < kNumSamples; ++i)
    {
        const Taps taps{offsets[i], weights[i]};
        if (offsetTaken(taps) >= 0)
        {
            const int4 o = taps.offset;
            addSample(sum, values,
                make_int4(o.x * kPacks, o.y * kPacks, o.z * kPacks, o.w * kPacks), taps.weight);
        }
    }
}

// Grid: heads, blocks of queries, images.
template <typename T, int kReferenceDim>
__global__ void __launch_bounds__(kThreads, 4) kernel(const MSDeformAttnParams p)
{
    constexpr int kChannels = kLoadBytes / sizeof(T);
    constexpr int kSlices = kHeadDim / kChannels; // threads that share the channels of a sample
    constexpr int kShares = kLanes / kSlices;     // threads that share the samples of a channel
    constexpr int kSums = kOnTensorCores<T> ? 4 : kChannels; // of a thread

    __shared__ int4 offsets[kThreads];
    __shared__ float4 weights[kThreads];
    __shared__ SplitWeights splitWeights[kOnTensorCores<T> ? kThreads : 1];

    const int thread = static_cast<int>(threadIdx.x);
    const int lane = static_cast<int>(threadIdx.x % kLanes);
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
    const Location location = locationOf<T>(
        p, kReferenceDim, kNumPoints, query * kNumLevels + levelIndex, sample, level);
    const Taps taps = tapsAt(location, level, p.numTokens, loadsPerToken, weight);
    offsets[thread] = taps.offset;
    weights[thread] = taps.weight;
    if constexpr (kOnTensorCores<T>)
    {
        splitWeights[thread] = split(taps.weight);
    }
    __syncwarp();

    const int first = thread - lane, slice = kOnTensorCores<T> ? lane / 4 : lane % kSlices;
    const auto* const values = keptWhole(static_cast<const Pack<T, kChannels>*>(p.value)
        + static_cast<int64_t>(blockIdx.z) * p.numTokens * loadsPerToken + head * kSlices + slice);
    float sum[kSums] = {};
    int pack = 0; // of the channels of a load, which kSums the thread has
    bool isOwn;   // whether it writes them
    if constexpr (kOnTensorCores<T>)
    {
        sumOnTensorCores(sum, values, offsets + first, splitWeights + first, lane);
        pack = lane % 2;
        isOwn = lane % 4 / 2 == thread / kLanes % 2;
    }
    else
    {
        const int share = lane / kSlices;
#pragma unroll
        for (int i = 0; i < kNumSamples; i += kShares)
        {
            const int slot = first + i + share;
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
        isOwn = share == 0;
    }
    if (!areFinite(sum))
    {
        sumOneByOne(sum, reinterpret_cast<const Pack<T, kSums>*>(values) + pack, offsets + first,
            weights + first);
    }
    if (isOwn && ownQuery < p.numQueries)
    {
        store<T>(p.output, item * kHeadDim + slice * kChannels + pack * kSums, sum);
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
    Softmax softmax;
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

    findLevels(p, thread, kThreads, levels);
    for (int first = 0; first < plan.numItems; first += kThreads / kLanes)
    {
        const int lane = thread % kLanes, own = first + thread / kLanes;
        // Threads beyond the last item do its work again, as shuffles need all of a warp.
        Item item;
        item.index = min(firstItem + own, numItems - 1);
        item.softmax = softmaxOf(logits + item.index * numSamples, numSamples, lane);
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
                const float weight = item.softmax.weightOf(static_cast<float>(logits[sample]));
                const Location location = locationOf<T>(p, p.referenceDim, p.numPoints,
                    item.query * p.numLevels + level, sample, levels[level]);
                const Taps taps
                    = tapsAt(location, levels[level], p.numTokens, loadsPerToken, weight);
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
