// The types and names of the CUDA runtime that the project's host code and TensorRT's headers use,
// for machines without CUDA.
#pragma once

#include <cstddef>
#include <cstring>

enum cudaError_t
{
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorMisalignedAddress = 716,
};

using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;

inline const char* cudaGetErrorString(cudaError_t error)
{
    switch (error)
    {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorMisalignedAddress: return "misaligned address";
    }
    return "unrecognized error code";
}

inline cudaStream_t lastStream = nullptr; // that a kernel was launched in

constexpr int kRuntimeVersion = 13000;
inline int driverVersion = kRuntimeVersion; // of the driver, which tests may choose

inline cudaError_t cudaDriverGetVersion(int* version)
{
    *version = driverVersion;
    return cudaSuccess;
}

inline cudaError_t cudaRuntimeGetVersion(int* version)
{
    *version = kRuntimeVersion;
    return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* data, int value, std::size_t size, cudaStream_t)
{
    if (size != 0)
    {
        std::memset(data, value, size);
    }
    return cudaSuccess;
}
