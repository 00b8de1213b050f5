// What the TensorRT plugin takes: its inputs by name, their checks, and where errors are reported.
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

constexpr int64_t kUnknown = -1; // a size that changes from call to call, as TensorRT writes it
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

// The type of the kernels; nothing for a type they do not have.
std::optional<DataType> typeOf(nvinfer1::DataType type);

// Whether an input may have this type where `value` has that one.
bool isAllowed(int32_t input, nvinfer1::DataType type, nvinfer1::DataType ofValue);

// The sizes of a call, with 1 for those that are not known yet. What is wrong with the inputs is
// written to `problem`, which is left empty if nothing is. Every entry into the plugin calls this.
MSDeformAttnParams sizesOf(const InputDims& inputs, std::string& problem);

// Each returns 0, or reports the problem as `fail` does.
int32_t checkSizes(const InputDims& inputs);
int32_t checkTypes(const InputTypes& types);
int32_t checkCount(int32_t numInputs, int32_t numOutputs);

// Writes to TensorRT's log, or to stderr without one; returns kFailure.
int32_t fail(const std::string& problem);

// Runs what may allocate memory; no exception crosses into TensorRT.
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
