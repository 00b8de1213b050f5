// Multi-scale deformable attention on an NVIDIA GPU.
#pragma once

#include "params.h"

#include <cuda_runtime_api.h>

namespace detr
{

// The type T of value, offsets, logits and output. Reference points are float32, and so are the
// arithmetic of locations and every sum, with each of them.
enum class DataType
{
    kFloat32,
    kFloat16,
    kBFloat16,
};

constexpr int kMaxLevels = 64;

// What keeps these sizes from being run, or null if nothing does.
const char* whyUnsupported(const MSDeformAttnParams& params) noexcept;

// Starts the operator on `stream` and returns whether that went well; waits for nothing, allocates
// nothing and keeps nothing, so it may be captured into a graph and called from any thread. All
// pointers are to device memory, aligned to 16 bytes, but `value` and `output` to an element of
// theirs. Tokens that `spatialShapes` places outside of `value` are never read.
cudaError_t launchMSDeformAttn(
    const MSDeformAttnParams& params, DataType type, cudaStream_t stream) noexcept;

} // namespace detr
