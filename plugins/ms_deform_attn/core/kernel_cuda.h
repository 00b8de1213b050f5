// Multi-scale deformable attention on an NVIDIA GPU.
#pragma once

#include "params.h"

#include <cuda_runtime_api.h>

namespace detr
{

// The type T of value, offsets, logits and output. Reference points, the arithmetic of locations
// and all sums are float32 whatever T is.
enum class DataType
{
    kFloat32,
    kFloat16,
    kBFloat16,
};

constexpr int kMaxLevels = 64;

// Why these sizes cannot be run, or null if they can.
const char* whyUnsupported(const MSDeformAttnParams& params) noexcept;

// Starts the operator on `stream` and returns whether that succeeded. It waits for nothing,
// allocates nothing and keeps no state, so it may be captured into a graph and called from any
// thread. All pointers are to device memory, aligned to 16 bytes; for `value` and `output`, the
// size of an element is enough. Tokens that `spatialShapes` places outside `value` are never read.
cudaError_t launchMSDeformAttn(
    const MSDeformAttnParams& params, DataType type, cudaStream_t stream) noexcept;

} // namespace detr
