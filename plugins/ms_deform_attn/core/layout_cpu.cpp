#include "layout_cpu.h"

#include <limits>
#include <stdexcept>

namespace detr
{
namespace
{

// With fewer than one query per this many tokens, reading values in place is faster than repacking
// them by head.
constexpr int64_t kTokensPerQueryToRepack = 4;

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

void check(const MSDeformAttnParams& p)
{
    if (p.numLevels < 1 || p.numPoints < 1 || (p.referenceDim != 2 && p.referenceDim != 4))
    {
        throw std::invalid_argument("expected levels, points and references of 2 or 4 numbers");
    }
    int64_t numTokens = 0;
    for (int level = 0; level < p.numLevels; ++level)
    {
        const int64_t height = p.spatialShapes[2 * level], width = p.spatialShapes[2 * level + 1];
        if (height < 1 || width < 1)
        {
            throw std::invalid_argument("expected levels of at least one pixel");
        }
        numTokens += height * width;
    }
    if (numTokens != p.numTokens)
    {
        throw std::invalid_argument("spatial shapes do not add up to the tokens of value");
    }
    if (numTokens * p.numHeads * p.headDim > std::numeric_limits<int32_t>::max())
    {
        throw std::invalid_argument("expected fewer than 2^31 values per image");
    }
}

bool shouldRepack(const MSDeformAttnParams& p)
{
    check(p);
    return p.numHeads > 1 && p.numQueries * kTokensPerQueryToRepack >= p.numTokens;
}

const KernelTable& choose(
    const MSDeformAttnParams& p, ValueStorage storage, Isa isa, bool isRepacked)
{
    if (storage == ValueStorage::kFloat64)
    {
        return *doubleKernels();
    }
    const bool bfloat16 =
        storage == ValueStorage::kBFloat16 && isRepacked && p.headDim % kBFloat16Block == 0;
    const KernelTable* const kernels = hasInstructions(isa) ? find(isa, bfloat16) : nullptr;
    if (kernels == nullptr)
    {
        throw std::invalid_argument("no kernels for this instruction set here");
    }
    return *kernels;
}

size_t bytesOfValues(const MSDeformAttnParams& p, const KernelTable& kernels)
{
    return kernels.storedBytes * static_cast<size_t>(p.batch) * static_cast<size_t>(p.numTokens)
        * static_cast<size_t>(p.numHeads) * static_cast<size_t>(p.headDim);
}

ForwardCall layOut(const MSDeformAttnParams& p, void* repacked)
{
    ForwardCall call{};
    call.params = p;
    call.numSamples = p.numLevels * p.numPoints;
    call.numPadded = (call.numSamples + kSamplePadding - 1) / kSamplePadding * kSamplePadding;
    call.imageStride = static_cast<ptrdiff_t>(p.numTokens) * p.numHeads * p.headDim;
    if (repacked == nullptr)
    {
        call.values = const_cast<void*>(p.value); // read only
        call.tokenStride = p.numHeads * p.headDim;
        call.headStride = p.headDim;
    }
    else
    {
        call.values = repacked;
        call.tokenStride = p.headDim;
        call.headStride = static_cast<ptrdiff_t>(p.numTokens) * p.headDim;
    }
    return call;
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

template <typename Scalar>
SampleLevels<Scalar>::SampleLevels(
    const MSDeformAttnParams& params, size_t numPadded, int32_t tokenStride)
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
    size_t i = 0;
    for (int level = 0; level < params.numLevels; ++level)
    {
        const int32_t h = params.spatialShapes[2 * level], w = params.spatialShapes[2 * level + 1];
        for (int point = 0; point < params.numPoints; ++point, ++i)
        {
            width[i] = static_cast<Scalar>(w);
            height[i] = static_cast<Scalar>(h);
            intWidth[i] = w;
            intHeight[i] = h;
            start[i] = firstToken * tokenStride;
            row[i] = w * tokenStride;
            reference[i] = level * params.referenceDim;
        }
        firstToken += h * w;
    }
}

CallLayout::CallLayout(const MSDeformAttnParams& params, ValueStorage storage, Isa isa)
    : mIsRepacked(shouldRepack(params))
    , mKernels(choose(params, storage, isa, mIsRepacked))
    , mValues(mIsRepacked ? bytesOfValues(params, mKernels) : 0)
    , mCall(layOut(params, mValues.data()))
    , mLevels(params, static_cast<size_t>(mCall.numPadded), mCall.tokenStride)
    , mDoubleLevels(params, static_cast<size_t>(mCall.numPadded), mCall.tokenStride)
{
    mCall.samples = storage == ValueStorage::kFloat64
        ? static_cast<const void*>(&mDoubleLevels.table)
        : &mLevels.table;
}

size_t CallLayout::valueBytes() const
{
    return bytesOfValues(mCall.params, mKernels);
}

} // namespace detr
