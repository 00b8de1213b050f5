// The operator as a plugin of TensorRT 10 and 11, named MSDeformAttn, version "1".
//
// The ONNX parser finds it for a node of that type in any domain: it asks the registry for the
// node's type and its attributes plugin_version and plugin_namespace, which default to "1" and "".
#pragma once

#include "../core/kernel_cuda.h"

#include <NvInferRuntime.h>

#include <cstddef>
#include <cstdint>

namespace detr
{

class MSDeformAttnPlugin final : public nvinfer1::IPluginV3,
                                 public nvinfer1::IPluginV3OneCore,
                                 public nvinfer1::IPluginV3OneBuild,
                                 public nvinfer1::IPluginV3OneRuntime
{
public:
    nvinfer1::IPluginCapability* getCapabilityInterface(
        nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    const char* getPluginName() const noexcept override;
    const char* getPluginVersion() const noexcept override;
    const char* getPluginNamespace() const noexcept override;

    int32_t getNbOutputs() const noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t numOutputs,
        const nvinfer1::DataType* inputTypes, int32_t numInputs) const noexcept override;
    int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t numInputs,
        const nvinfer1::DimsExprs* shapeInputs, int32_t numShapeInputs,
        nvinfer1::DimsExprs* outputs, int32_t numOutputs,
        nvinfer1::IExprBuilder& expressions) noexcept override;
    bool supportsFormatCombination(int32_t position,
        const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t numInputs,
        int32_t numOutputs) noexcept override;
    int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t numInputs,
        const nvinfer1::DynamicPluginTensorDesc* outputs, int32_t numOutputs) noexcept override;

    int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t numInputs,
        const nvinfer1::PluginTensorDesc* outputs, int32_t numOutputs) noexcept override;
    int32_t enqueue(const nvinfer1::PluginTensorDesc* inputDescs,
        const nvinfer1::PluginTensorDesc* outputDescs, const void* const* inputs,
        void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(
        nvinfer1::IPluginResourceContext* context) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;
};

class MSDeformAttnPluginCreator final : public nvinfer1::IPluginCreatorV3One
{
public:
    nvinfer1::IPluginV3* createPlugin(const char* name,
        const nvinfer1::PluginFieldCollection* fields,
        nvinfer1::TensorRTPhase phase) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override;
    const char* getPluginName() const noexcept override;
    const char* getPluginVersion() const noexcept override;
    const char* getPluginNamespace() const noexcept override;
};

} // namespace detr
