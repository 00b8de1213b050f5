// What the kernels of every instruction set receive, and where to find them. Internal.
#pragma once

#include "params.h"

#include <cstddef>
#include <cstdint>

namespace detr
{

// The samples of a query and head are padded to a multiple of this, so that kernels may read whole
// vectors.
constexpr int kSamplePadding = 16;

// bfloat16 values of a head are kept in blocks of this many channels, in an order that the prepare
// function chooses to suit the instruction set.
constexpr int kBFloat16Block = 32;

// The level that each of the L * P samples of a query reads; every member is one column.
template <typename Scalar>
struct SampleTable
{
    const Scalar* width;
    const Scalar* height;
    const int32_t* intWidth;
    const int32_t* intHeight;
    const int32_t* start;     // of the level, in elements of the values
    const int32_t* row;       // from one row of the level to the next, in elements
    const int32_t* reference; // index of the level's reference point among those of a query
};

// One call, laid out.
struct ForwardCall
{
    MSDeformAttnParams params;
    int numSamples;      // L * P
    int numPadded;       // rounded up to kSamplePadding
    const void* samples; // SampleTable of the kernels' scalar

    // The values: dense by head if they were repacked, otherwise as in the input.
    void* values;
    ptrdiff_t imageStride; // in elements, as are all
    ptrdiff_t headStride;
    int32_t tokenStride;
};

// Repacks tokens [first, last) of an image by head.
using PrepareFunction = void (*)(const ForwardCall&, int image, int first, int last);

// Everything a kernel calls is inlined: in a call, vectors of plain C++ would pass through memory.
#if !defined(DETR_KERNEL)
#if defined(__GNUC__)
#define DETR_KERNEL __attribute__((flatten))
#else
#define DETR_KERNEL
#endif
#endif

// Queries that are computed together.
constexpr int kForwardBlock = 8;

// Computes queries [first, last) of a head of an image. The workspace holds four offsets (int32)
// and four weights (scalars) for numPadded samples of each query of a block, aligned to 64 bytes.
using ForwardFunction = void (*)(
    const ForwardCall&, int image, int head, int first, int last, void* workspace);

// A backward call: the values are laid out as in the forward call, and their gradients likewise.
struct BackwardCall
{
    ForwardCall forward;
    MSDeformAttnGradients gradients;
    void* values;     // gradients of the values
    void* references; // gradients of the reference points by head, (B, M, Q, L, 2 or 4); or null
};

// All gradients of a head of an image. The workspace holds, for each of numPadded samples, four
// offsets (int32), four weights, four products and one more number (scalars), aligned to 64 bytes.
using BackwardFunction = void (*)(const BackwardCall&, int image, int head, void* workspace);

struct KernelTable
{
    PrepareFunction prepare;
    ForwardFunction forward;
    BackwardFunction backward; // null for bfloat16
    size_t scalarBytes;        // of an element of every tensor
    size_t storedBytes;        // of a value as it is kept for sampling
};

// The kernels of an instruction set; null if the library was built without them.
const KernelTable* portableKernels(bool bfloat16);
const KernelTable* avx2Kernels(bool bfloat16);
const KernelTable* avx512Kernels(bool bfloat16);
const KernelTable* doubleKernels();

} // namespace detr
