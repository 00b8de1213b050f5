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

// Where the gradients of one call come from and go to. All pointers are to device memory, aligned
// to 16 bytes; for `output`, the size of an element is enough.
struct MSDeformAttnCudaGradients
{
    const void* output;     // (B, Q, M * D) of T; read, while the others are written
    float* value;           // (B, S, M, D)
    float* referencePoints; // (B, Q, M, L, 2 or 4), by head; null if not wanted
    void* samplingOffsets;  // as the offsets, of T
    void* attentionLogits;  // as the logits, of T

    // Null if the sums for `value` may come in any order, so that repeated runs differ in their
    // last bits. Otherwise memory for (B, S, M, D) sums, and the largest magnitude in `output`;
    // if that is not finite, the gradient of value is NaN.
    unsigned long long* fixedPoint;
    const float* largest;
};

// Starts the gradients of a call, with the promises of launchMSDeformAttn(); params.output is not
// used.
cudaError_t launchMSDeformAttnBackward(const MSDeformAttnParams& params,
    const MSDeformAttnCudaGradients& gradients, DataType type, cudaStream_t stream) noexcept;

// Writes level shapes from the host's memory, which is free when this returns, to the device's; may
// be captured into a graph, which then always writes these. `onHost` and `onDevice` are (L, 2).
cudaError_t sendShapes(
    const int32_t* onHost, int numLevels, int32_t* onDevice, cudaStream_t stream) noexcept;

} // namespace detr
