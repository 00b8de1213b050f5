// What the kernels of every instruction set are handed, and where they are found. Internal.
#pragma once

#include "params.h"

#include <cstddef>
#include <cstdint>

namespace detr
{

// The samples of a query and head are padded to a multiple of this, so that kernels may read
// whole vectors of what is kept for each.
constexpr int kSamplePadding = 16;

// bfloat16 values of a head are kept in blocks of this many channels, in an order that suits the
// instruction set: that of its prepare function.
constexpr int kBFloat16Block = 32;

// The level that each of the L * P samples of a query reads, a table a column.
template <typename Scalar>
struct SampleTable
{
    const Scalar* width;
    const Scalar* height;
    const int32_t* intWidth;
    const int32_t* intHeight;
    const int32_t* start;     // of the level, in elements of the values
    const int32_t* row;       // from one row of the level to the next, in elements
    const int32_t* reference; // of the level's reference point among those of a query
};

// One call, laid out.
struct ForwardCall
{
    MSDeformAttnParams params;
    int numSamples;      // L * P
    int numPadded;       // rounded up to kSamplePadding
    const void* samples; // SampleTable of the kernels' scalar

    // The values: dense by head where they were brought together, else as they came.
    void* values;
    ptrdiff_t imageStride; // in elements, as are all
    ptrdiff_t headStride;
    int32_t tokenStride;
};

// Brings tokens [first, last) of an image together by head.
using PrepareFunction = void (*)(const ForwardCall&, int image, int first, int last);

// What a kernel calls becomes a part of it: called, vectors of plain C++ would pass through memory.
#if !defined(DETR_KERNEL)
#if defined(__GNUC__)
#define DETR_KERNEL __attribute__((flatten))
#else
#define DETR_KERNEL
#endif
#endif

// Queries that are answered together.
constexpr int kForwardBlock = 8;

// Answers queries [first, last) of a head of an image. The workspace holds four offsets (int32) and
// four weights (scalars) for numPadded samples of each query of a block, aligned to 64 bytes.
using ForwardFunction = void (*)(
    const ForwardCall&, int image, int head, int first, int last, void* workspace);

// A backward call: values lie as in the forward call, their gradients the same way elsewhere.
struct BackwardCall
{
    ForwardCall forward;
    MSDeformAttnGradients gradients;
    void* values;     // gradients of the values
    void* references; // those of the reference points by head, (B, M, Q, L, 2 or 4); or null
};

// All gradients of a head of an image. The workspace holds, for numPadded samples, four offsets
// (int32), and four weights, four products and one more of each sample (scalars), aligned to 64
// bytes.
using BackwardFunction = void (*)(const BackwardCall&, int image, int head, void* workspace);

struct KernelTable
{
    PrepareFunction prepare;
    ForwardFunction forward;
    BackwardFunction backward; // null for bfloat16
    size_t scalarBytes;        // of an element of every tensor
    size_t storedBytes;        // of a value that is kept for sampling
};

// The kernels of an instruction set; null where the library was built without them.
const KernelTable* portableKernels(bool bfloat16);
const KernelTable* avx2Kernels(bool bfloat16);
const KernelTable* avx512Kernels(bool bfloat16);
const KernelTable* doubleKernels();

} // namespace detr
