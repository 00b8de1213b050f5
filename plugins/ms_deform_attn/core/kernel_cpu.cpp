// Picks the kernels and lays a call out for them; see kernel_cpu.h.
#include "kernel_cpu.h"

#include "kernel_table.h"
#include "scratch.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <vector>

namespace detr
{
namespace
{

constexpr int kTokensPerItem = 256;
constexpr int kQueriesPerItem = 128;

// With fewer queries than this part of the tokens, reading values where they lie is faster than
// bringing those of a head together first.
constexpr int kTokensPerQueryToRepack = 4;

const KernelTable* find(Isa isa, bool bfloat16)
{
    switch (isa)
    {
    case Isa::kAvx512: return avx512Kernels(bfloat16);
    case Isa::kAvx2: return avx2Kernels(bfloat16);
    case Isa::kPortable: break;
    }
    return portableKernels(bfloat16);
}

bool hasInstructions(Isa isa)
{
#if defined(__x86_64__) && defined(__GNUC__)
    switch (isa)
    {
    case Isa::kAvx512:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
            && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::kAvx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::kPortable: break;
    }
#endif
    return isa == Isa::kPortable;
}

bool isDirect(const MSDeformAttnParams& p)
{
    return p.numHeads == 1
        || static_cast<int64_t>(p.numQueries) * kTokensPerQueryToRepack < p.numTokens;
}

bool isBFloat16(const MSDeformAttnParams& p, ValueStorage storage)
{
    return storage == ValueStorage::kBFloat16 && !isDirect(p) && p.headDim % kBFloat16Block == 0;
}

const KernelTable& chooseKernels(const MSDeformAttnParams& p, ValueStorage storage, Isa isa)
{
    if (storage == ValueStorage::kFloat64)
    {
        return *doubleKernels();
    }
    const KernelTable* const kernels =
        hasInstructions(isa) ? find(isa, isBFloat16(p, storage)) : nullptr;
    if (kernels == nullptr)
    {
        throw std::invalid_argument("no kernels for this instruction set here");
    }
    return *kernels;
}

size_t repackedBytes(const MSDeformAttnParams& p, const KernelTable& kernels)
{
    return isDirect(p) ? 0
                       : kernels.storedBytes * static_cast<size_t>(p.batch)
            * static_cast<size_t>(p.numTokens) * static_cast<size_t>(p.numHeads * p.headDim);
}

int ceilDiv(int a, int b)
{
    return (a + b - 1) / b;
}

// The columns of a SampleTable.
template <typename Scalar>
struct SampleColumns
{
    std::vector<Scalar> width, height;
    std::vector<int32_t> intWidth, intHeight, start, row, reference;
    SampleTable<Scalar> table;

    SampleColumns(const MSDeformAttnParams& p, int numPadded, int32_t tokenStride)
        : width(numPadded, Scalar(1))
        , height(numPadded, Scalar(1))
        , intWidth(numPadded, 1)
        , intHeight(numPadded, 1)
        , start(numPadded, 0)
        , row(numPadded, 0)
        , reference(numPadded, 0)
        , table{width.data(), height.data(), intWidth.data(), intHeight.data(), start.data(),
              row.data(), reference.data()}
    {
        int32_t firstToken = 0;
        for (int level = 0, i = 0; level < p.numLevels; ++level)
        {
            const int32_t h = p.spatialShapes[2 * level], w = p.spatialShapes[2 * level + 1];
            for (int point = 0; point < p.numPoints; ++point, ++i)
            {
                width[i] = static_cast<Scalar>(w);
                height[i] = static_cast<Scalar>(h);
                intWidth[i] = w;
                intHeight[i] = h;
                start[i] = firstToken * tokenStride;
                row[i] = w * tokenStride;
                reference[i] = level * p.referenceDim;
            }
            firstToken += h * w;
        }
    }
};

void check(const MSDeformAttnParams& p)
{
    int64_t numTokens = 0;
    for (int level = 0; level < p.numLevels; ++level)
    {
        const int64_t h = p.spatialShapes[2 * level], w = p.spatialShapes[2 * level + 1];
        if (h < 1 || w < 1)
        {
            throw std::invalid_argument("expected levels of at least one pixel");
        }
        numTokens += h * w;
    }
    const int64_t perToken = static_cast<int64_t>(p.numHeads) * p.headDim;
    if (numTokens != p.numTokens)
    {
        throw std::invalid_argument("spatial shapes do not add up to the tokens of value");
    }
    if (numTokens * perToken > std::numeric_limits<int32_t>::max())
    {
        throw std::invalid_argument("expected fewer than 2^31 values an image");
    }
    if (p.numLevels < 1 || p.numPoints < 1 || (p.referenceDim != 2 && p.referenceDim != 4))
    {
        throw std::invalid_argument("expected levels, points and references of 2 or 4 numbers");
    }
}

} // namespace

Isa bestIsa()
{
    for (const Isa isa : {Isa::kAvx512, Isa::kAvx2})
    {
        if (hasInstructions(isa) && find(isa, false) != nullptr)
        {
            return isa;
        }
    }
    return Isa::kPortable;
}

struct ForwardCpu::State
{
    const KernelTable& kernels;
    Scratch repacked;
    ForwardCall call;
    SampleColumns<float> columns;
    SampleColumns<double> doubleColumns;
    int tokenBlocks; // of an image; 0 where values are read where they lie
    int queryBlocks; // of an image and head

    State(const MSDeformAttnParams& p, const KernelTable& chosen)
        : kernels(chosen)
        , repacked(repackedBytes(p, kernels))
        , call(layOut(p, repacked.data()))
        , columns(p, call.numPadded, call.tokenStride)
        , doubleColumns(p, call.numPadded, call.tokenStride)
        , tokenBlocks(isDirect(p) ? 0 : ceilDiv(p.numTokens, kTokensPerItem))
        , queryBlocks(ceilDiv(p.numQueries, kQueriesPerItem))
    {
        call.samples = kernels.scalarBytes == sizeof(double)
            ? static_cast<const void*>(&doubleColumns.table)
            : &columns.table;
    }

    static ForwardCall layOut(const MSDeformAttnParams& p, void* repacked)
    {
        ForwardCall call{};
        call.params = p;
        call.numSamples = p.numLevels * p.numPoints;
        call.numPadded = ceilDiv(call.numSamples, kSamplePadding) * kSamplePadding;
        const bool direct = isDirect(p);
        call.values = direct ? const_cast<void*>(p.value) : repacked;
        call.tokenStride = direct ? p.numHeads * p.headDim : p.headDim;
        call.headStride = direct ? p.headDim : static_cast<ptrdiff_t>(p.numTokens) * p.headDim;
        call.imageStride = static_cast<ptrdiff_t>(p.numTokens) * p.numHeads * p.headDim;
        return call;
    }
};

ForwardCpu::ForwardCpu(const MSDeformAttnParams& params, ValueStorage storage, Isa isa)
{
    check(params);
    mState = std::make_unique<State>(params, chooseKernels(params, storage, isa));
}

ForwardCpu::~ForwardCpu() = default;

int ForwardCpu::numPrepareItems() const
{
    return mState->call.params.batch * mState->tokenBlocks;
}

void ForwardCpu::prepare(int item)
{
    const int first = item % mState->tokenBlocks * kTokensPerItem;
    const int last = std::min(first + kTokensPerItem, mState->call.params.numTokens);
    mState->kernels.prepare(mState->call, item / mState->tokenBlocks, first, last);
}

int ForwardCpu::numItems() const
{
    const MSDeformAttnParams& p = mState->call.params;
    return p.batch * p.numHeads * mState->queryBlocks;
}

void ForwardCpu::run(int item) const
{
    const MSDeformAttnParams& p = mState->call.params;
    const int imageHead = item / mState->queryBlocks;
    const int first = item % mState->queryBlocks * kQueriesPerItem;
    const int last = std::min(first + kQueriesPerItem, p.numQueries);
    struct alignas(64) Line
    {
        char bytes[64];
    };
    const size_t perSample = 4 * kForwardBlock * (sizeof(int32_t) + mState->kernels.scalarBytes);
    std::vector<Line> workspace(
        (perSample * static_cast<size_t>(mState->call.numPadded) + 63) / sizeof(Line));
    mState->kernels.forward(mState->call, imageHead / p.numHeads, imageHead % p.numHeads, first,
        last, workspace.data());
}

} // namespace detr
