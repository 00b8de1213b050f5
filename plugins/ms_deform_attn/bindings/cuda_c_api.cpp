// A plain C interface to the CUDA kernels, for anything that can load a shared library; torch's
// side of it is plugins/cuda_kernels.py. A function returns 0, or the number of CUDA's
// error.
#include "../core/kernel_cuda.h"

#define DETR_EXPORT __attribute__((visibility("default")))

extern "C"
{

// Why no kernel can run a call, or null. The level shapes of `params` are in the host's memory.
DETR_EXPORT const char* detrCudaRefusal(const detr::MSDeformAttnParams* params)
{
    const char* const why = detr::whyUnsupported(*params);
    if (why != nullptr)
    {
        return why;
    }
    int64_t numTokens = 0;
    for (int level = 0; level < params->numLevels; ++level)
    {
        const int height = params->spatialShapes[2 * level];
        const int width = params->spatialShapes[2 * level + 1];
        if (height < 1 || width < 1)
        {
            return "a level without a pixel";
        }
        numTokens += static_cast<int64_t>(height) * width;
    }
    return numTokens == params->numTokens ? nullptr : "levels that do not add up to the tokens";
}

// The newest CUDA that the driver supports, and the one that the kernels were compiled with: 13000
// is 13.0. Uses no GPU.
DETR_EXPORT int detrCudaVersions(int* ofDriver, int* ofKernels)
{
    const cudaError_t error = cudaDriverGetVersion(ofDriver);
    return error != cudaSuccess ? error : cudaRuntimeGetVersion(ofKernels);
}

// Starts the operator on `stream`. `type` is the number of a detr::DataType. The level shapes of
// `params` are in the host's memory, which is free when this returns; `shapesOnDevice` has room for
// as many.
DETR_EXPORT int detrCudaForward(const detr::MSDeformAttnParams* params, int32_t* shapesOnDevice,
    int type, cudaStream_t stream)
{
    detr::MSDeformAttnParams onDevice = *params;
    onDevice.spatialShapes = shapesOnDevice;
    const cudaError_t error
        = detr::sendShapes(params->spatialShapes, params->numLevels, shapesOnDevice, stream);
    return error != cudaSuccess
        ? error
        : detr::launchMSDeformAttn(onDevice, static_cast<detr::DataType>(type), stream);
}

// As detrCudaForward(), with the gradients of the same call.
DETR_EXPORT int detrCudaBackward(const detr::MSDeformAttnParams* params,
    const detr::MSDeformAttnCudaGradients* gradients, int32_t* shapesOnDevice, int type,
    cudaStream_t stream)
{
    detr::MSDeformAttnParams onDevice = *params;
    onDevice.spatialShapes = shapesOnDevice;
    const cudaError_t error
        = detr::sendShapes(params->spatialShapes, params->numLevels, shapesOnDevice, stream);
    return error != cudaSuccess ? error
                                : detr::launchMSDeformAttnBackward(onDevice, *gradients,
                                      static_cast<detr::DataType>(type), stream);
}

// What CUDA calls an error.
DETR_EXPORT const char* detrCudaErrorText(int error)
{
    return cudaGetErrorString(static_cast<cudaError_t>(error));
}

} // extern "C"
