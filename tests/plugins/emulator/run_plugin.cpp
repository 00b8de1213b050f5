// Stands in for TensorRT: loads a plugin library and runs the calls in a file with the plugin.
//
// Prints one line per call, after what the plugin logs.
#include "cases.h"

#include <NvInferRuntime.h>

#include <dlfcn.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <memory>

namespace trt = nvinfer1;

namespace
{

int32_t major;

class Logger final : public trt::ILogger
{
public:
    void log(Severity, const char* message) noexcept override
    {
        std::printf("logged %s\n", message);
    }
};

class LoggerFinder final : public trt::ILoggerFinder
{
public:
    trt::ILogger* findLogger() override
    {
        return &mLogger;
    }

private:
    Logger mLogger;
};

trt::DataType typeOf(detr::DataType type)
{
    switch (type)
    {
    case detr::DataType::kFloat32: return trt::DataType::kFLOAT;
    case detr::DataType::kFloat16: return trt::DataType::kHALF;
    case detr::DataType::kBFloat16: break;
    }
    return trt::DataType::kBF16;
}

// Asks the plugin all that TensorRT asks before running it. Returns the first refusal, or null.
const char* refusal(trt::IPluginV3& plugin, std::array<trt::DynamicPluginTensorDesc, 6> tensors)
{
    auto& build = *static_cast<trt::IPluginV3OneBuild*>(
        plugin.getCapabilityInterface(trt::PluginCapabilityType::kBUILD));
    std::array<trt::DataType, 5> types;
    for (int32_t i = 0; i < 5; ++i)
    {
        types[i] = tensors[i].desc.type;
    }
    trt::DataType outputType;
    if (build.getNbOutputs() != 1 || build.getOutputDataTypes(&outputType, 1, types.data(), 5) != 0
        || outputType != types[0])
    {
        return "types";
    }
    for (int32_t i = 0; i < 6; ++i)
    {
        if (!build.supportsFormatCombination(i, tensors.data(), 5, 1))
        {
            return "formats";
        }
    }
    if (build.configurePlugin(tensors.data(), 5, &tensors[5], 1) != 0)
    {
        return "configuration";
    }
    return nullptr;
}

void run(trt::IPluginV3& plugin, const emulator::Case& call)
{
    const trt::DataType type = typeOf(call.type());
    const auto size = [](size_t n) { return static_cast<int64_t>(n); };
    const int64_t b = size(call.b), q = size(call.q), m = size(call.m), l = size(call.l),
                  p = size(call.p);
    const std::array<trt::Dims, 6> dims{trt::Dims{4, {b, size(call.s), m, size(call.d)}},
        trt::Dims{2, {l, 2}}, trt::Dims{4, {b, q, l, size(call.r)}},
        trt::Dims{6, {b, q, m, l, p, 2}}, trt::Dims{5, {b, q, m, l, p}},
        trt::Dims{3, {b, q, m * size(call.d)}}};
    const std::array<trt::DataType, 6> types{
        type, trt::DataType::kINT32, trt::DataType::kFLOAT, type, type, type};
    std::array<trt::PluginTensorDesc, 6> descs;
    std::array<trt::DynamicPluginTensorDesc, 6> dynamic;
    for (size_t i = 0; i < 6; ++i)
    {
        descs[i] = {dims[i], types[i], trt::TensorFormat::kLINEAR, 1.0f};
        dynamic[i] = {descs[i], dims[i], dims[i], dims[i]};
    }
    if (const char* const refused = refusal(plugin, dynamic))
    {
        std::printf("refused %s\n", refused);
        return;
    }
    auto& runtime = *static_cast<trt::IPluginV3OneRuntime*>(
        plugin.getCapabilityInterface(trt::PluginCapabilityType::kRUNTIME));
    const std::unique_ptr<trt::IPluginV3> attached(runtime.attachToContext(nullptr));
    auto& context = *static_cast<trt::IPluginV3OneRuntime*>(
        attached->getCapabilityInterface(trt::PluginCapabilityType::kRUNTIME));
    const void* inputs[] = {call.value.data, call.spatialShapes.data, call.referencePoints.data,
        call.samplingOffsets.data, call.attentionLogits.data};
    void* outputs[] = {call.output.data};
    const int32_t shapes = context.onShapeChange(descs.data(), 5, &descs[5], 1);
    const int32_t enqueued
        = context.enqueue(descs.data(), &descs[5], inputs, outputs, nullptr, nullptr);
    std::printf("onShapeChange %d enqueue %d\n", shapes, enqueued);
}

} // namespace

extern "C" __attribute__((visibility("default"))) int32_t getInferLibMajorVersion() noexcept
{
    return major;
}

// Runs the calls of `input` with the plugin of `library`, pretending to be TensorRT `pretended`.
extern "C" __attribute__((visibility("default"))) int runPlugin(
    const char* library, int32_t pretended, const char* input, const char* output)
{
    using GetCreators = trt::IPluginCreatorInterface* const* (*)(int32_t&);
    using SetLoggerFinder = void (*)(trt::ILoggerFinder*);
    major = pretended;
    void* const handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    const auto getCreators = reinterpret_cast<GetCreators>(dlsym(handle, "getCreators"));
    const auto setLoggerFinder
        = reinterpret_cast<SetLoggerFinder>(dlsym(handle, "setLoggerFinder"));
    static LoggerFinder finder;
    setLoggerFinder(&finder);
    int32_t numCreators = 0;
    auto& creator
        = *static_cast<trt::IPluginCreatorV3One*>(getCreators(numCreators)[0]);
    std::printf("%d %s %s '%s' %d\n", numCreators, creator.getPluginName(),
        creator.getPluginVersion(), creator.getPluginNamespace(),
        creator.getFieldNames()->nbFields);

    std::ifstream in(input, std::ios::binary);
    std::ofstream out(output, std::ios::binary);
    emulator::Header header;
    while (in.read(reinterpret_cast<char*>(&header), sizeof(header)))
    {
        const emulator::Case call(header, in);
        const std::unique_ptr<trt::IPluginV3> created(
            creator.createPlugin("attention", nullptr, trt::TensorRTPhase::kBUILD));
        const std::unique_ptr<trt::IPluginV3> plugin(created->clone());
        run(*plugin, call);
        out.write(call.output.data, static_cast<std::streamsize>(call.output.size));
    }
    std::fflush(stdout);
    return 0;
}
