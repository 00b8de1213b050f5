// Level shapes that the host knows, for kernels that read them from the device's memory. As the
// argument of a kernel they need no copy that the host would have to wait for.
#include "kernel_cuda.h"

#include <cuda_runtime.h>

#include <algorithm>

namespace detr
{
namespace
{

struct Sides
{
    int32_t side[2 * kMaxLevels];
};

__global__ void write(const Sides sides, int32_t* onDevice, int count)
{
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x))
    {
        onDevice[i] = sides.side[i];
    }
}

} // namespace

cudaError_t sendShapes(
    const int32_t* onHost, int numLevels, int32_t* onDevice, cudaStream_t stream) noexcept
{
    if (numLevels < 0 || numLevels > kMaxLevels)
    {
        return cudaErrorInvalidValue;
    }
    Sides sides{};
    std::copy_n(onHost, 2 * numLevels, sides.side);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(1);
    config.blockDim = dim3(32);
    config.stream = stream;
    return cudaLaunchKernelEx(&config, write, sides, onDevice, 2 * numLevels);
}

} // namespace detr
