// The part of CUDA's language that the project's kernels use, for a C++ compiler and a CPU.
//
// Every thread of a block is a fibre that runs until it has to wait for others. So the code
// between two barriers runs in an order that no GPU guarantees, and code that lacks a barrier reads
// what was not written yet. Shared memory is static, as blocks run one after the other.
#pragma once

#include "cuda_runtime_api.h"
#include "fibres.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct dim3
{
    unsigned x, y, z;

    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1)
        : x(x)
        , y(y)
        , z(z)
    {
    }
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

struct alignas(16) int4
{
    int x, y, z, w;
};

struct alignas(16) float4
{
    float x, y, z, w;
};

inline int4 make_int4(int x, int y, int z, int w)
{
    return {x, y, z, w};
}

inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}

using std::max;
using std::min;

inline float __fdividef(float a, float b)
{
    return a / b;
}

inline float __uint_as_float(unsigned bits)
{
    float result;
    std::memcpy(&result, &bits, sizeof(result));
    return result;
}

// Fibres take turns only at barriers.
template <typename T>
T atomicAdd(T* target, T x)
{
    const T before = *target;
    *target = before + x;
    return before;
}

// Barriers know their line, so that a test can take one away: see emulator::leaveOut.
#define __syncthreads() emulator::waitFor(emulator::Barrier::kBlock, __LINE__)
#define __syncwarp() emulator::waitFor(emulator::Barrier::kWarp, __LINE__)

// The value of another lane of the warp, or the lane's own if `source` is outside its part.
template <typename T>
T shuffle(unsigned mask, T value, int source, int width)
{
    static_assert(sizeof(T) == sizeof(uint32_t), "32 bits are shuffled");
    const int first = emulator::lane() / width * width;
    const bool isWithin = first <= source && source < first + width;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    bits = emulator::exchange(mask, bits, isWithin ? source : emulator::lane());
    std::memcpy(&value, &bits, sizeof(bits));
    return value;
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits)
{
    return shuffle(mask, value, emulator::lane() ^ bits, emulator::kWarpSize);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width)
{
    return shuffle(mask, value, emulator::lane() - static_cast<int>(distance), width);
}

// Four bytes out of the eight of b and a; each digit of `selector` is the number of one.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector)
{
    const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i)
    {
        const unsigned digit = selector >> (4 * i) & 7;
        result |= static_cast<unsigned>(bytes >> (8 * digit) & 0xff) << (8 * i);
    }
    return result;
}

struct cudaLaunchConfig_t
{
    dim3 gridDim, blockDim;
    cudaStream_t stream;
};

// Runs the kernel to its end.
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments... arguments)
{
    const dim3 grid = config->gridDim, block = config->blockDim;
    const unsigned numThreads = block.x * block.y * block.z;
    const uint64_t numBlocks = uint64_t{grid.x} * grid.y * grid.z;
    if (numBlocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535
        || numThreads == 0 || numThreads > 1024)
    {
        return cudaErrorInvalidConfiguration;
    }
    lastStream = config->stream;
    gridDim = grid;
    blockDim = block;
    for (uint64_t i = 0; i < numBlocks; ++i)
    {
        const unsigned row = static_cast<unsigned>(i / grid.x);
        blockIdx = dim3(static_cast<unsigned>(i % grid.x), row % grid.y, row / grid.y);
        const auto enter = [&](unsigned thread) {
            const unsigned threadRow = thread / block.x;
            threadIdx = dim3(thread % block.x, threadRow % block.y, threadRow / block.y);
        };
        emulator::runBlock(numThreads, enter, [&] { kernel(arguments...); });
    }
    return cudaSuccess;
}
