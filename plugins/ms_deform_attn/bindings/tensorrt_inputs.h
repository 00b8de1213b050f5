// The inputs of the TensorRT plugin by name, their checks, and where errors are reported.
#pragma once

#include "../core/kernel_cuda.h"

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <optional>
#include <string>

static_assert(NV_TENSORRT_MAJOR == 10 || NV_TENSORRT_MAJOR == 11, "headers of TensorRT 10 or 11");

namespace detr
{

constexpr int64_t kUnknown = -1; // TensorRT's number for a size that changes from call to call
constexpr int32_t kFailure = 1;

enum Input
{
    kValue,
    kSpatialShapes,
    kReferencePoints,
    kSamplingOffsets,
    kAttentionLogits,
    kNumInputs,
};

using InputDims = std::array<nvinfer1::Dims, kNumInputs>;
using InputTypes = std::array<nvinfer1::DataType, kNumInputs>;

// The kernels' name for a type; nothing if they do not have it.
std::optional<DataType> typeOf(nvinfer1::DataType type);

// Whether an input may have type `type` if `value` has type `ofValue`.
bool isAllowed(int32_t input, nvinfer1::DataType type, nvinfer1::DataType ofValue);

// The sizes of a call, with 1 for those that are not known yet. Writes what is wrong with the
// inputs to `problem`, or leaves it empty. Every entry point of the plugin calls this.
MSDeformAttnParams sizesOf(const InputDims& inputs, std::string& problem);

// Each returns 0, or reports the problem with `fail`.
int32_t checkSizes(const InputDims& inputs);
int32_t checkTypes(const InputTypes& types);
int32_t checkCount(int32_t numInputs, int32_t numOutputs);

// Writes to TensorRT's log, or to stderr without one; returns kFailure.
int32_t fail(const std::string& problem);

// Runs code that may allocate memory; no exception reaches TensorRT.
template <typename Body>
int32_t guarded(const Body& body) noexcept
{
    try
    {
        return body();
    }
    catch (const std::exception& error)
    {
        std::fprintf(stderr, "MSDeformAttn: %s\n", error.what());
        return kFailure;
    }
}

} // namespace detr
