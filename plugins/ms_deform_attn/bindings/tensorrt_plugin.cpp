// See tensorrt_plugin.h. Of TensorRT's library nothing is linked: whoever loads this has it.
#include "tensorrt_plugin.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <exception>
#include <limits>
#include <new>
#include <optional>
#include <string>

static_assert(NV_TENSORRT_MAJOR == 10 || NV_TENSORRT_MAJOR == 11, "headers of TensorRT 10 or 11");

namespace detr
{
namespace
{

namespace trt = nvinfer1;

constexpr char kName[] = "MSDeformAttn";
constexpr char kVersion[] = "1";
constexpr char kNamespace[] = "";
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

using InputDims = std::array<trt::Dims, kNumInputs>;
using InputTypes = std::array<trt::DataType, kNumInputs>;

std::atomic<trt::ILoggerFinder*> loggerFinder{nullptr};

// The logger of whoever calls the plugin; null where there is none, or none of the kind that the
// headers of this build describe: TensorRT 11 gave loggers another layout.
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

// Whether an input may have this type where `value` has that one.
bool isAllowed(int32_t input, trt::DataType type, trt::DataType ofValue)
{
    switch (input)
    {
    case kSpatialShapes: return type == trt::DataType::kINT32;
    case kReferencePoints: return type == trt::DataType::kFLOAT;
    default: return type == ofValue && typeOf(type).has_value();
    }
}

// A size that several inputs share, by the letter of the documentation.
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

// The sizes of a call, with 1 for those that are not known yet; what is wrong with the inputs goes
// to `problem`, which is empty where nothing is. Every entry into the plugin comes by here.
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

int32_t check(const InputDims& inputs)
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

} // namespace

trt::IPluginCapability* MSDeformAttnPlugin::getCapabilityInterface(
    trt::PluginCapabilityType type) noexcept
{
    switch (type)
    {
    case trt::PluginCapabilityType::kCORE: return static_cast<trt::IPluginV3OneCore*>(this);
    case trt::PluginCapabilityType::kBUILD: return static_cast<trt::IPluginV3OneBuild*>(this);
    case trt::PluginCapabilityType::kRUNTIME: return static_cast<trt::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

trt::IPluginV3* MSDeformAttnPlugin::clone() noexcept
{
    return new (std::nothrow) MSDeformAttnPlugin;
}

const char* MSDeformAttnPlugin::getPluginName() const noexcept
{
    return kName;
}

const char* MSDeformAttnPlugin::getPluginVersion() const noexcept
{
    return kVersion;
}

const char* MSDeformAttnPlugin::getPluginNamespace() const noexcept
{
    return kNamespace;
}

int32_t MSDeformAttnPlugin::getNbOutputs() const noexcept
{
    return 1;
}

int32_t MSDeformAttnPlugin::getOutputDataTypes(trt::DataType* outputTypes, int32_t numOutputs,
    const trt::DataType* inputTypes, int32_t numInputs) const noexcept
{
    return guarded([&] {
        if (checkCount(numInputs, numOutputs) != 0)
        {
            return kFailure;
        }
        InputTypes types;
        std::copy_n(inputTypes, kNumInputs, types.begin());
        outputTypes[0] = types[kValue];
        return checkTypes(types);
    });
}

int32_t MSDeformAttnPlugin::getOutputShapes(const trt::DimsExprs* inputs, int32_t numInputs,
    const trt::DimsExprs* /*shapeInputs*/, int32_t /*numShapeInputs*/, trt::DimsExprs* outputs,
    int32_t numOutputs, trt::IExprBuilder& expressions) noexcept
{
    return guarded([&] {
        if (checkCount(numInputs, numOutputs) != 0)
        {
            return kFailure;
        }
        InputDims dims{};
        for (int32_t i = 0; i < kNumInputs; ++i)
        {
            dims[i].nbDims = inputs[i].nbDims;
            for (int32_t axis = 0; axis < inputs[i].nbDims; ++axis)
            {
                const trt::IDimensionExpr& size = *inputs[i].d[axis];
                dims[i].d[axis] = size.isConstant() ? size.getConstantValue() : kUnknown;
            }
        }
        if (check(dims) != 0)
        {
            return kFailure;
        }
        outputs[0].nbDims = 3;
        outputs[0].d[0] = inputs[kSamplingOffsets].d[0];
        outputs[0].d[1] = inputs[kSamplingOffsets].d[1];
        outputs[0].d[2] = expressions.operation(
            trt::DimensionOperation::kPROD, *inputs[kValue].d[2], *inputs[kValue].d[3]);
        return 0;
    });
}

bool MSDeformAttnPlugin::supportsFormatCombination(int32_t position,
    const trt::DynamicPluginTensorDesc* tensors, int32_t numInputs, int32_t numOutputs) noexcept
{
    // Position 5 is the output, which has the type of value, as the last of the inputs has.
    const trt::PluginTensorDesc& tensor = tensors[position].desc;
    return numInputs == kNumInputs && numOutputs == 1
        && tensor.format == trt::TensorFormat::kLINEAR
        && isAllowed(position, tensor.type, tensors[kValue].desc.type);
}

int32_t MSDeformAttnPlugin::configurePlugin(const trt::DynamicPluginTensorDesc* inputs,
    int32_t numInputs, const trt::DynamicPluginTensorDesc* /*outputs*/,
    int32_t numOutputs) noexcept
{
    return guarded([&] {
        if (checkCount(numInputs, numOutputs) != 0)
        {
            return kFailure;
        }
        InputDims smallest, largest;
        for (int32_t i = 0; i < kNumInputs; ++i)
        {
            smallest[i] = inputs[i].min;
            largest[i] = inputs[i].max;
        }
        return check(smallest) != 0 ? kFailure : check(largest);
    });
}

int32_t MSDeformAttnPlugin::onShapeChange(const trt::PluginTensorDesc* inputs, int32_t numInputs,
    const trt::PluginTensorDesc* /*outputs*/, int32_t numOutputs) noexcept
{
    return guarded([&] {
        if (checkCount(numInputs, numOutputs) != 0)
        {
            return kFailure;
        }
        InputDims dims;
        for (int32_t i = 0; i < kNumInputs; ++i)
        {
            dims[i] = inputs[i].dims;
        }
        return check(dims);
    });
}

int32_t MSDeformAttnPlugin::enqueue(const trt::PluginTensorDesc* inputDescs,
    const trt::PluginTensorDesc* /*outputDescs*/, const void* const* inputs, void* const* outputs,
    void* /*workspace*/, cudaStream_t stream) noexcept
{
    return guarded([&] {
        InputDims dims;
        for (int32_t i = 0; i < kNumInputs; ++i)
        {
            dims[i] = inputDescs[i].dims;
        }
        std::string problem;
        MSDeformAttnParams params = sizesOf(dims, problem);
        const std::optional<DataType> type = typeOf(inputDescs[kValue].type);
        if (!problem.empty() || !type)
        {
            return fail(problem.empty() ? "expected value of float32, float16 or bfloat16"
                                        : problem);
        }
        params.value = inputs[kValue];
        params.spatialShapes = static_cast<const int32_t*>(inputs[kSpatialShapes]);
        params.referencePoints = inputs[kReferencePoints];
        params.samplingOffsets = inputs[kSamplingOffsets];
        params.attentionLogits = inputs[kAttentionLogits];
        params.output = outputs[0];
        const cudaError_t error = launchMSDeformAttn(params, *type, stream);
        return error == cudaSuccess ? 0 : fail(std::string("CUDA: ") + cudaGetErrorString(error));
    });
}

trt::IPluginV3* MSDeformAttnPlugin::attachToContext(
    trt::IPluginResourceContext* /*context*/) noexcept
{
    return clone();
}

const trt::PluginFieldCollection* MSDeformAttnPlugin::getFieldsToSerialize() noexcept
{
    static constexpr trt::PluginFieldCollection kNoFields{0, nullptr};
    return &kNoFields;
}

trt::IPluginV3* MSDeformAttnPluginCreator::createPlugin(const char* /*name*/,
    const trt::PluginFieldCollection* /*fields*/, trt::TensorRTPhase /*phase*/) noexcept
{
    return new (std::nothrow) MSDeformAttnPlugin;
}

const trt::PluginFieldCollection* MSDeformAttnPluginCreator::getFieldNames() noexcept
{
    static constexpr trt::PluginFieldCollection kNoFields{0, nullptr};
    return &kNoFields;
}

const char* MSDeformAttnPluginCreator::getPluginName() const noexcept
{
    return kName;
}

const char* MSDeformAttnPluginCreator::getPluginVersion() const noexcept
{
    return kVersion;
}

const char* MSDeformAttnPluginCreator::getPluginNamespace() const noexcept
{
    return kNamespace;
}

} // namespace detr

// What TensorRT looks for in a plugin library; without the second it registers nothing.
extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const*
getCreators(int32_t& numCreators)
{
    static detr::MSDeformAttnPluginCreator creator;
    static nvinfer1::IPluginCreatorInterface* const kCreators[] = {&creator};
    numCreators = 1;
    return kCreators;
}

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(
    nvinfer1::ILoggerFinder* finder)
{
    detr::loggerFinder = finder;
}
