// What plugins/ms_deform_attn/core/kernel_cuda.cu is compared with: the same operator and formula
// as usually implemented, with one thread per channel of a query and head. Each thread recomputes
// the softmax and the locations of all samples. L = P = 4.
#include "../plugins/ms_deform_attn/core/kernel_cuda.h"
#include "../plugins/ms_deform_attn/core/sampling.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace detr
{
namespace
{

constexpr int kThreads = 256;
constexpr int kNumLevels = 4;
constexpr int kNumPoints = 4;
constexpr int kNumSamples = kNumLevels * kNumPoints;

// Grid: heads, queries, images; one thread per channel.
template <typename T, int kReferenceDim>
__global__ void perChannelKernel(const MSDeformAttnParams p)
{
    const int head = static_cast<int>(blockIdx.x), channel = static_cast<int>(threadIdx.x);
    const int ownQuery = static_cast<int>(blockIdx.y * blockDim.y + threadIdx.y);
    if (ownQuery >= p.numQueries)
    {
        return;
    }
    const int64_t image = blockIdx.z, query = image * p.numQueries + ownQuery;
    const int64_t item = query * p.numHeads + head;
    const T* const logits = static_cast<const T*>(p.attentionLogits) + item * kNumSamples;
    const T* const offsets = static_cast<const T*>(p.samplingOffsets) + item * kNumSamples * 2;
    const float* const references
        = static_cast<const float*>(p.referencePoints) + query * kNumLevels * kReferenceDim;
    const int stride = p.numHeads * p.headDim;
    const T* value = static_cast<const T*>(p.value) + image * p.numTokens * stride
        + head * p.headDim + channel;

    float powers[kNumSamples];
    float highest = static_cast<float>(logits[0]), sumOfPowers = 0.0f, sum = 0.0f;
#pragma unroll
    for (int i = 1; i < kNumSamples; ++i)
    {
        highest = fmaxf(highest, static_cast<float>(logits[i]));
    }
#pragma unroll
    for (int i = 0; i < kNumSamples; ++i)
    {
        powers[i] = expf(static_cast<float>(logits[i]) - highest);
        sumOfPowers += powers[i];
    }
#pragma unroll
    for (int level = 0; level < kNumLevels; ++level)
    {
        const int height = p.spatialShapes[2 * level], width = p.spatialShapes[2 * level + 1];
        const float realHeight = static_cast<float>(height), realWidth = static_cast<float>(width);
        const float* const reference = references + level * kReferenceDim;
#pragma unroll
        for (int point = 0; point < kNumPoints; ++point)
        {
            const int i = level * kNumPoints + point;
            const float dx = static_cast<float>(offsets[2 * i]);
            const float dy = static_cast<float>(offsets[2 * i + 1]);
            float x, y;
            if (kReferenceDim == 2)
            {
                x = pixelFromPoint(reference[0], dx, realWidth);
                y = pixelFromPoint(reference[1], dy, realHeight);
            }
            else
            {
                constexpr float kScale = 0.5f / kNumPoints;
                x = pixelFromBox(reference[0], reference[2], dx, realWidth, kScale);
                y = pixelFromBox(reference[1], reference[3], dy, realHeight, kScale);
            }
            const auto column = axisTaps<float, int>(x, width, realWidth);
            const auto row = axisTaps<float, int>(y, height, realHeight);
            const T* const low = value + static_cast<int64_t>(row.low * width) * stride;
            const T* const high = value + static_cast<int64_t>(row.high * width) * stride;
            const int left = column.low * stride, right = column.high * stride;
            sum += powers[i]
                * (row.lowWeight
                        * (column.lowWeight * static_cast<float>(low[left])
                            + column.highWeight * static_cast<float>(low[right]))
                    + row.highWeight
                        * (column.lowWeight * static_cast<float>(high[left])
                            + column.highWeight * static_cast<float>(high[right])));
        }
        value += static_cast<int64_t>(height * width) * stride;
    }
    static_cast<T*>(p.output)[item * p.headDim + channel] = T(__fdividef(sum, sumOfPowers));
}

template <typename T>
cudaError_t launchPerChannel(const MSDeformAttnParams& p, cudaStream_t stream)
{
    cudaLaunchConfig_t config{};
    const int queriesPerBlock = std::max(1, kThreads / p.headDim);
    config.gridDim = dim3(static_cast<unsigned>(p.numHeads),
        static_cast<unsigned>((p.numQueries + queriesPerBlock - 1) / queriesPerBlock),
        static_cast<unsigned>(p.batch));
    config.blockDim
        = dim3(static_cast<unsigned>(p.headDim), static_cast<unsigned>(queriesPerBlock));
    config.stream = stream;
    return cudaLaunchKernelEx(
        &config, p.referenceDim == 2 ? perChannelKernel<T, 2> : perChannelKernel<T, 4>, p);
}

} // namespace
} // namespace detr

// Launches this kernel on a stream, with the arguments of detr::launchMSDeformAttn; L = P = 4.
extern "C" cudaError_t detrLaunchPerChannel(
    const detr::MSDeformAttnParams* params, detr::DataType type, cudaStream_t stream)
{
    using namespace detr;
    if (whyUnsupported(*params) != nullptr || params->numLevels != kNumLevels
        || params->numPoints != kNumPoints)
    {
        return cudaErrorInvalidValue;
    }
    if (params->batch == 0 || params->numQueries == 0)
    {
        return cudaSuccess;
    }
    switch (type)
    {
    case DataType::kFloat32: return launchPerChannel<float>(*params, stream);
    case DataType::kFloat16: return launchPerChannel<__half>(*params, stream);
    case DataType::kBFloat16: return launchPerChannel<__nv_bfloat16>(*params, stream);
    }
    return cudaErrorInvalidValue;
}
