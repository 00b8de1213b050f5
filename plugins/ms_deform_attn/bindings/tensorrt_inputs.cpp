// See tensorrt_inputs.h.
#include "tensorrt_inputs.h"

#include <dlfcn.h>

#include <atomic>
#include <limits>

namespace detr
{
namespace
{

namespace trt = nvinfer1;

struct InputInfo
{
    const char* name;
    const char* shape;
    int32_t rank;
};

constexpr InputInfo kInputs[kNumInputs] = {
    {"value", "(B, S, M, D)", 4},
    {"spatial_shapes", "(L, 2)", 2},
    {"reference_points", "(B, Q, L, 2 or 4)", 4},
    {"sampling_offsets", "(B, Q, M, L, P, 2)", 6},
    {"attention_logits", "(B, Q, M, L, P)", 5},
};

std::atomic<trt::ILoggerFinder*> loggerFinder{nullptr};

// The caller's logger; null if there is none, or if it is not the kind in the headers of this
// build: TensorRT 11 changed the layout of loggers.
trt::ILogger* findLogger()
{
    trt::ILoggerFinder* const finder = loggerFinder;
    Dl_info library{};
    if (finder == nullptr || dladdr(*reinterpret_cast<void**>(finder), &library) == 0)
    {
        return nullptr;
    }
    void* const handle = dlopen(library.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    if (handle == nullptr)
    {
        return nullptr;
    }
    using Version = int32_t (*)();
    const auto major = reinterpret_cast<Version>(dlsym(handle, "getInferLibMajorVersion"));
    const bool isKnown = major != nullptr && major() == NV_TENSORRT_MAJOR;
    dlclose(handle);
    return isKnown ? finder->findLogger() : nullptr;
}

std::string text(const trt::Dims& dims)
{
    std::string result = "(";
    for (int32_t i = 0; i < dims.nbDims; ++i)
    {
        const bool isKnown = dims.d[i] != kUnknown;
        result += (i == 0 ? "" : ", ") + (isKnown ? std::to_string(dims.d[i]) : "?");
    }
    return result + ")";
}

const char* nameOf(trt::DataType type)
{
    switch (type)
    {
    case trt::DataType::kFLOAT: return "float32";
    case trt::DataType::kHALF: return "float16";
    case trt::DataType::kBF16: return "bfloat16";
    case trt::DataType::kINT32: return "int32";
    case trt::DataType::kINT64: return "int64";
    case trt::DataType::kINT8: return "int8";
    case trt::DataType::kFP8: return "float8";
    default: return "another type";
    }
}

// A size that several inputs share, named by the documentation's letter.
struct Size
{
    const char* meaning;
    int64_t value = kUnknown;
    Input from = kNumInputs;
};

struct Place
{
    Size& size;
    Input input;
    int32_t axis;
};

} // namespace

int32_t fail(const std::string& problem)
{
    const std::string message = "MSDeformAttn: " + problem;
    if (trt::ILogger* const logger = findLogger())
    {
        logger->log(trt::ILogger::Severity::kERROR, message.c_str());
    }
    else
    {
        std::fprintf(stderr, "%s\n", message.c_str());
    }
    return kFailure;
}

std::optional<DataType> typeOf(trt::DataType type)
{
    switch (type)
    {
    case trt::DataType::kFLOAT: return DataType::kFloat32;
    case trt::DataType::kHALF: return DataType::kFloat16;
    case trt::DataType::kBF16: return DataType::kBFloat16;
    default: return std::nullopt;
    }
}

bool isAllowed(int32_t input, trt::DataType type, trt::DataType ofValue)
{
    switch (input)
    {
    case kSpatialShapes: return type == trt::DataType::kINT32;
    case kReferencePoints: return type == trt::DataType::kFLOAT;
    default: return type == ofValue && typeOf(type).has_value();
    }
}

MSDeformAttnParams sizesOf(const InputDims& inputs, std::string& problem)
{
    MSDeformAttnParams params{};
    for (int32_t i = 0; i < kNumInputs; ++i)
    {
        if (inputs[i].nbDims != kInputs[i].rank)
        {
            problem = std::string("expected ") + kInputs[i].name + " " + kInputs[i].shape
                + ", got " + text(inputs[i]);
            return params;
        }
    }
    Size batch{"B, the batch"}, tokens{"S, the tokens"}, queries{"Q, the queries"};
    Size heads{"M, the heads"}, channels{"D, the channels of a head"}, levels{"L, the levels"};
    Size points{"P, the points"}, reference{"the width of a reference point"};
    Size pair{"2, the numbers of a pair", 2, kSpatialShapes};
    const Place places[] = {{batch, kValue, 0}, {tokens, kValue, 1}, {heads, kValue, 2},
        {channels, kValue, 3}, {levels, kSpatialShapes, 0}, {pair, kSpatialShapes, 1},
        {batch, kReferencePoints, 0}, {queries, kReferencePoints, 1},
        {levels, kReferencePoints, 2}, {reference, kReferencePoints, 3},
        {batch, kSamplingOffsets, 0}, {queries, kSamplingOffsets, 1},
        {heads, kSamplingOffsets, 2}, {levels, kSamplingOffsets, 3},
        {points, kSamplingOffsets, 4}, {pair, kSamplingOffsets, 5}, {batch, kAttentionLogits, 0},
        {queries, kAttentionLogits, 1}, {heads, kAttentionLogits, 2},
        {levels, kAttentionLogits, 3}, {points, kAttentionLogits, 4}};
    for (const Place& place : places)
    {
        const int64_t found = inputs[place.input].d[place.axis];
        if (found == kUnknown)
        {
            continue;
        }
        if (place.size.value == kUnknown)
        {
            place.size.value = found;
            place.size.from = place.input;
        }
        if (found > std::numeric_limits<int>::max())
        {
            problem = std::string("expected sizes below 2^31, got ") + kInputs[place.input].name
                + " " + text(inputs[place.input]);
            return params;
        }
        if (place.size.value != found)
        {
            problem = std::string("inputs disagree on ") + place.size.meaning + ": "
                + kInputs[place.size.from].name + " " + text(inputs[place.size.from]) + ", "
                + kInputs[place.input].name + " " + text(inputs[place.input]);
            return params;
        }
    }
    const auto known = [](const Size& size, int ifUnknown = 1) {
        return size.value == kUnknown ? ifUnknown : static_cast<int>(size.value);
    };
    params.batch = known(batch);
    params.numTokens = known(tokens);
    params.numQueries = known(queries);
    params.numHeads = known(heads);
    params.headDim = known(channels);
    params.numLevels = known(levels);
    params.numPoints = known(points);
    params.referenceDim = known(reference, 2);
    if (const char* const reason = whyUnsupported(params))
    {
        problem = std::string("unsupported: ") + reason;
        for (int32_t i = 0; i < kNumInputs; ++i)
        {
            problem += std::string(i == 0 ? ": " : ", ") + kInputs[i].name + " " + text(inputs[i]);
        }
    }
    return params;
}

int32_t checkSizes(const InputDims& inputs)
{
    std::string problem;
    sizesOf(inputs, problem);
    return problem.empty() ? 0 : fail(problem);
}

int32_t checkTypes(const InputTypes& types)
{
    for (int32_t i = 0; i < kNumInputs; ++i)
    {
        if (!isAllowed(i, types[i], types[kValue]))
        {
            return fail("expected spatial_shapes of int32, reference_points of float32, and value, "
                        "sampling_offsets and attention_logits of one of float32, float16 and "
                        "bfloat16; value is "
                + std::string(nameOf(types[kValue])) + ", " + kInputs[i].name + " is "
                + nameOf(types[i]));
        }
    }
    return 0;
}

int32_t checkCount(int32_t numInputs, int32_t numOutputs)
{
    if (numInputs == kNumInputs && numOutputs == 1)
    {
        return 0;
    }
    return fail("expected 5 inputs and 1 output, got " + std::to_string(numInputs) + " and "
        + std::to_string(numOutputs));
}

} // namespace detr

// TensorRT calls this after loading the library; without it, nothing is registered.
extern "C" __attribute__((visibility("default"))) void setLoggerFinder(
    nvinfer1::ILoggerFinder* finder)
{
    detr::loggerFinder = finder;
}
