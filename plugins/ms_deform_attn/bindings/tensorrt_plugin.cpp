// See tensorrt_plugin.h. TensorRT's library is not linked: the process that loads this has it.
#include "tensorrt_plugin.h"

#include "tensorrt_inputs.h"

#include <algorithm>
#include <new>
#include <optional>
#include <string>

namespace detr
{
namespace
{

namespace trt = nvinfer1;

constexpr char kName[] = "MSDeformAttn";
constexpr char kVersion[] = "1";
constexpr char kNamespace[] = "";

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
        if (checkSizes(dims) != 0)
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
    // Position 5 is the output, which has the type of value, like the last input.
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
        return checkSizes(smallest) != 0 ? kFailure : checkSizes(largest);
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
        return checkSizes(dims);
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

// TensorRT looks for this in a plugin library, and for setLoggerFinder.
extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const*
getCreators(int32_t& numCreators)
{
    static detr::MSDeformAttnPluginCreator creator;
    static nvinfer1::IPluginCreatorInterface* const kCreators[] = {&creator};
    numCreators = 1;
    return kCreators;
}
