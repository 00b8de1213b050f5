// The gradients of multi-scale deformable attention.
//
// An item is the output of one head for one query; 16 threads share it, a chunk of 16 samples at a
// time.
//
// 1. One thread per sample: recomputes the softmax, the location and the sample's four pixels with
//    their weights, which go into shared memory.
// 2. One thread per few channels: products of the output's gradient with the values at each pixel,
//    and what that gradient adds to the gradient of these values.
// 3. One thread per sample: the gradients of its offset and logit, from its four products.
//
// Nothing is kept from the forward pass, and no tensor of all samples is written but the results.
#include "kernel_cuda.h"
#include "taps_cuda.h"
#include "value_sums_cuda.h"

#include <algorithm>
#include <limits>

namespace detr
{
namespace
{

constexpr int kThreads = 128;
constexpr int kQueriesPerBlock = kThreads / kLanes;
constexpr int kSlices = 8;                 // threads that share the channels of a sample
constexpr int kShares = kLanes / kSlices;  // threads that share the samples of a channel
constexpr int kSamplesOfThread = kLanes / kShares;
static_assert(kSamplesOfThread == kSlices, "after a sum over slices, a thread has one sample");

// Each thread of a slice has a term for each of kSlices sums; returns the sum that has the number
// of the slice.
__device__ float sumOfSlice(float (&terms)[kSlices], int slice)
{
#pragma unroll
    for (int half = kSlices / 2; half > 0; half /= 2)
    {
        const bool isUpper = (slice & half) != 0;
#pragma unroll
        for (int i = 0; i < half; ++i)
        {
            const float kept = isUpper ? terms[i + half] : terms[i];
            const float given = isUpper ? terms[i] : terms[i + half];
            terms[i] = kept + __shfl_xor_sync(kWholeWarp, given, half);
        }
    }
    return terms[0];
}

// One corner of the samples of a chunk: returns the product of the output's gradient with the
// values there, of this thread's own sample, and adds to the gradient of the values if `isAdding`.
// `offsets` and `weights` are those of the kSlices samples whose channels this thread shares.
template <typename T, int kChannels, typename Sum>
__device__ float throughCorner(const T* outGradient, const Pack<T, kChannels>* values, int headDim,
    const int* offsets, const float* weights, int slice, const Sum& sum, bool isAdding)
{
    float products[kSlices] = {};
    for (int c = slice * kChannels; c < headDim; c += kSlices * kChannels)
    {
        float out[kChannels];
        toFloat(*reinterpret_cast<const Pack<T, kChannels>*>(outGradient + c), out);
#pragma unroll
        for (int i = 0; i < kSlices; ++i)
        {
            const int offset = offsets[i] + c / kChannels;
            float loaded[kChannels];
            toFloat(Pack<T, kChannels>(values[offset]), loaded);
#pragma unroll
            for (int k = 0; k < kChannels; ++k)
            {
                products[i] += out[k] * loaded[k];
            }
            const float weight = weights[i];
            if (isAdding && weight != 0.0f)
            {
                sum.add(static_cast<int64_t>(offset) * kChannels, out, weight);
            }
        }
    }
    return sumOfSlice(products, slice);
}

// How the product of the output's gradient with a sample's value changes.
struct SampleGradient
{
    float product;
    float across; // change per pixel
    float down;
};

__device__ SampleGradient gradientAt(
    const Location& location, const Level& level, float4 products)
{
    const float width = static_cast<float>(level.width), height = static_cast<float>(level.height);
    if (!(isOnAxis(location.x, width) * isOnAxis(location.y, height) > 0.0f))
    {
        return {0.0f, 0.0f, 0.0f}; // the pixel at the border was read, which may be infinite
    }
    const auto column = axisTaps<float, int>(location.x, level.width, width);
    const auto row = axisTaps<float, int>(location.y, level.height, height);
    const auto columnSlopes = axisSlopes(location.x, width);
    const auto rowSlopes = axisSlopes(location.y, height);
    const float upper = products.x * column.lowWeight + products.y * column.highWeight;
    const float lower = products.z * column.lowWeight + products.w * column.highWeight;
    const float upperSlope = products.x * columnSlopes.low + products.y * columnSlopes.high;
    const float lowerSlope = products.z * columnSlopes.low + products.w * columnSlopes.high;
    return {upper * row.lowWeight + lower * row.highWeight,
        upperSlope * row.lowWeight + lowerSlope * row.highWeight,
        upper * rowSlopes.low + lower * rowSlopes.high};
}

// Writes the gradient of a sample's offset; returns what it adds to that of its reference point.
// `across` and `down` are per pixel.
template <typename T>
__device__ float4 throughLocation(const MSDeformAttnParams& p, const MSDeformAttnCudaGradients& g,
    int64_t reference, int64_t sample, const Level& level, float across, float down)
{
    using Float2 = Pack<float, 2>;
    float4 result = make_float4(across * static_cast<float>(level.width),
        down * static_cast<float>(level.height), 0.0f, 0.0f);
    if (p.referenceDim == 4)
    {
        const float scale = 0.5f / static_cast<float>(p.numPoints);
        const Float2 extent = static_cast<const Float2*>(p.referencePoints)[2 * reference + 1];
        const auto offset = static_cast<const Pack<T, 2>*>(p.samplingOffsets)[sample];
        across = result.x * extent.element[0] * scale;
        down = result.y * extent.element[1] * scale;
        result.z = result.x * static_cast<float>(offset.element[0]) * scale;
        result.w = result.y * static_cast<float>(offset.element[1]) * scale;
    }
    const float gradient[2] = {across, down};
    store<T>(g.samplingOffsets, 2 * sample, gradient);
    return result;
}

// What 16 threads share.
struct Item
{
    int64_t index;
    int64_t query;
    int64_t firstValue; // element of `value` of token 0 and channel 0
    bool isOwn;         // false beyond the last query, where threads do its work again, as shuffles
                        // need all of a warp
};

// Blocks: heads, fastest, of blocks of queries of images.
__device__ Item itemOf(const MSDeformAttnParams& p, int block, int inBlock)
{
    const int blocksPerImage = (p.numQueries + kQueriesPerBlock - 1) / kQueriesPerBlock;
    const int head = block % p.numHeads, blockOfQueries = block / p.numHeads;
    const int64_t image = blockOfQueries / blocksPerImage;
    const int query = blockOfQueries % blocksPerImage * kQueriesPerBlock + inBlock;
    Item item;
    item.query = image * p.numQueries + min(query, p.numQueries - 1);
    item.index = item.query * p.numHeads + head;
    item.firstValue = (image * p.numTokens * p.numHeads + head) * p.headDim;
    item.isOwn = query < p.numQueries;
    return item;
}

// Adds up the parts of reference points' gradients of a chunk of samples, in their order, and
// writes each sum that is complete; `sum` is the one that is not. One thread per element.
__device__ void throughReferences(const MSDeformAttnParams& p, const MSDeformAttnCudaGradients& g,
    const Item& item, int chunk, int lane, const float* parts, float& sum)
{
    const int end = min(chunk + kLanes, p.numLevels * p.numPoints);
    for (int i = chunk; lane < p.referenceDim && i < end; ++i)
    {
        sum += parts[i - chunk];
        if ((i + 1) % p.numPoints == 0)
        {
            const int64_t level = item.index * p.numLevels + i / p.numPoints;
            if (item.isOwn)
            {
                g.referencePoints[level * p.referenceDim + lane] = sum;
            }
            sum = 0.0f;
        }
    }
}

template <typename T, int kChannels, typename Sum>
__global__ void __launch_bounds__(kThreads, Sum::kMinBlocks)
    kernel(const MSDeformAttnParams p, const MSDeformAttnCudaGradients g)
{
    __shared__ Level levels[kMaxLevels];
    __shared__ int offsets[4][kThreads];
    __shared__ float weights[4][kThreads];
    __shared__ float parts[4][kThreads]; // products, then parts of reference points' gradients

    const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes;
    const int slice = lane % kSlices;
    findLevels(p, thread, kThreads, levels);
    __syncthreads();

    const Item item = itemOf(p, static_cast<int>(blockIdx.x), thread / kLanes);
    const int numSamples = p.numLevels * p.numPoints;
    const int loadsPerToken = p.numHeads * p.headDim / kChannels;
    const auto* const values = reinterpret_cast<const Pack<T, kChannels>*>(
        static_cast<const T*>(p.value) + item.firstValue);
    const T* const outGradient = static_cast<const T*>(g.output) + item.index * p.headDim;
    const T* const logits = static_cast<const T*>(p.attentionLogits) + item.index * numSamples;
    const Sum sum(p, g, item.firstValue);
    const Softmax softmax = softmaxOf(logits, numSamples, lane);
    float mean = 0.0f;        // of the samples' products, by their weights
    float ofReference = 0.0f; // an element of a reference point's gradient, so far

    // Each logit needs the mean: if there are several chunks, all of them come twice.
    const int numRounds = numSamples > kLanes ? 2 : 1;
    for (int round = 0; round < numRounds; ++round)
    {
        const bool isLast = round == numRounds - 1;
        for (int chunk = 0; chunk < numSamples; chunk += kLanes)
        {
            const bool isSample = chunk + lane < numSamples;
            const int own = isSample ? chunk + lane : numSamples - 1;
            const Level level = levels[own / p.numPoints];
            const int64_t sample = item.index * numSamples + own;
            const int64_t reference = item.query * p.numLevels + own / p.numPoints;
            const Location location
                = locationOf<T>(p, p.referenceDim, p.numPoints, reference, sample, level);
            const float weight
                = isSample ? softmax.weightOf(static_cast<float>(logits[own])) : 0.0f;
            const Taps taps = tapsAt(location, level, p.numTokens, loadsPerToken, weight);
            const int4 offset = taps.offset;
            const float4 tapWeight = taps.weight;
            offsets[0][thread] = offset.x, weights[0][thread] = tapWeight.x;
            offsets[1][thread] = offset.y, weights[1][thread] = tapWeight.y;
            offsets[2][thread] = offset.z, weights[2][thread] = tapWeight.z;
            offsets[3][thread] = offset.w, weights[3][thread] = tapWeight.w;
            __syncwarp();
#pragma unroll 1 // four times the code would need four times the registers
            for (int corner = 0; corner < 4; ++corner)
            {
                parts[corner][thread] = throughCorner<T, kChannels>(outGradient, values, p.headDim,
                    &offsets[corner][thread - slice], &weights[corner][thread - slice], slice, sum,
                    isLast && item.isOwn);
            }
            __syncwarp();

            const SampleGradient gradient = gradientAt(location, level,
                make_float4(
                    parts[0][thread], parts[1][thread], parts[2][thread], parts[3][thread]));
            mean += round == 0 ? sumOfLanes(weight * gradient.product) : 0.0f;
            if (!isLast)
            {
                continue;
            }
            float4 part = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (isSample && item.isOwn)
            {
                const float ofLogit[1] = {weight * (gradient.product - mean)};
                store<T>(g.attentionLogits, sample, ofLogit);
                part = throughLocation<T>(p, g, reference, sample, level, weight * gradient.across,
                    weight * gradient.down);
            }
            if (g.referencePoints != nullptr)
            {
                parts[0][thread] = part.x, parts[1][thread] = part.y;
                parts[2][thread] = part.z, parts[3][thread] = part.w;
                __syncwarp();
                throughReferences(
                    p, g, item, chunk, lane, &parts[lane % 4][thread - lane], ofReference);
            }
        }
    }
}

// From whole numbers to the gradient of value, where that is not NaN already.
__global__ void __launch_bounds__(kThreads) fromFixedPoint(
    const MSDeformAttnParams p, const MSDeformAttnCudaGradients g, const int64_t count)
{
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (i < count)
    {
        const float sum = static_cast<float>(static_cast<long long>(g.fixedPoint[i]));
        g.value[i] += sum / fixedPointScale(*g.largest, p.numQueries);
    }
}

template <typename... Parameters, typename... Arguments>
cudaError_t start(void (*kernel)(Parameters...), int64_t numBlocks, cudaStream_t stream,
    const Arguments&... arguments)
{
    if (numBlocks > std::numeric_limits<int>::max())
    {
        return cudaErrorInvalidValue;
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(numBlocks));
    config.blockDim = dim3(kThreads);
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

template <typename T>
cudaError_t launch(
    const MSDeformAttnParams& p, const MSDeformAttnCudaGradients& g, cudaStream_t stream)
{
    if (!isAligned(p.samplingOffsets, 2 * sizeof(T)) || !isAligned(g.samplingOffsets, 2 * sizeof(T))
        || !isAligned(p.referencePoints, 2 * sizeof(float)))
    {
        return cudaErrorMisalignedAddress;
    }
    const int64_t blocksPerImage = (p.numQueries + kQueriesPerBlock - 1) / kQueriesPerBlock;
    const int64_t numBlocks = p.batch * blocksPerImage * p.numHeads;
    if (g.fixedPoint != nullptr) // has no vector atomics
    {
        return start(kernel<T, 1, FixedSum>, numBlocks, stream, p, g);
    }
    const bool isWide = p.headDim % kVector == 0 && isAligned(p.value, kVector * sizeof(T))
        && isAligned(g.output, kVector * sizeof(T)) && isAligned(g.value, kVector * sizeof(float));
    return start(
        isWide ? kernel<T, kVector, FloatSum> : kernel<T, 1, FloatSum>, numBlocks, stream, p, g);
}

cudaError_t launch(const MSDeformAttnParams& p, const MSDeformAttnCudaGradients& g, DataType type,
    cudaStream_t stream)
{
    switch (type)
    {
    case DataType::kFloat32: return launch<float>(p, g, stream);
    case DataType::kFloat16: return launch<__half>(p, g, stream);
    case DataType::kBFloat16: return launch<__nv_bfloat16>(p, g, stream);
    }
    return cudaErrorInvalidValue;
}

} // namespace

cudaError_t launchMSDeformAttnBackward(const MSDeformAttnParams& p,
    const MSDeformAttnCudaGradients& g, DataType type, cudaStream_t stream) noexcept
{
    if (whyUnsupported(p) != nullptr)
    {
        return cudaErrorInvalidValue;
    }
    const int64_t count = static_cast<int64_t>(p.batch) * p.numTokens * p.numHeads * p.headDim;
    const auto bytes = [&](const auto* p) { return static_cast<size_t>(count) * sizeof(*p); };
    cudaError_t error = cudaMemsetAsync(g.value, 0, bytes(g.value), stream);
    if (error == cudaSuccess && g.fixedPoint != nullptr)
    {
        error = cudaMemsetAsync(g.fixedPoint, 0, bytes(g.fixedPoint), stream);
    }
    if (error != cudaSuccess || p.batch == 0 || p.numQueries == 0)
    {
        return error;
    }
    error = launch(p, g, type, stream);
    if (error == cudaSuccess && g.fixedPoint != nullptr)
    {
        error = start(fromFixedPoint, (count + kThreads - 1) / kThreads, stream, p, g, count);
    }
    return error;
}

} // namespace detr
