// The forward kernel, for a vector type V of any instruction set.
#pragma once

#include "taps_cpu.h"

namespace detr
{

// Samples that are added in turn to all queries of a block, so that the part of a level that the
// block reads stays in the first cache.
constexpr int kGroup = 8;

// The queries of an encoder are at the tokens, and read up to a few rows ahead of them: about this
// many tokens. Without prefetching these, a call takes a tenth longer.
constexpr int kTokensAhead = 1000;

// Adds `count` samples to kPairs pairs of vectors of a query's channels, or stores their sum if
// they are its first. There are several sets of sums, so that no addition waits for the one before.
template <class V, class Stored, int kPairs, bool kWholeGroup>
inline void addPairs(const Stored* values, const Taps<V>& taps, int numPadded, int count,
    bool areFirst, typename V::Scalar* out)
{
    using Float = typename V::Float;
    constexpr int kVectors = 2 * kPairs;
    constexpr int kSets = kVectors * 4 <= V::kAccumulators ? 4 : V::kAccumulators / kVectors;
    Float sum[kSets][kVectors];
    for (int k = 0; k < kVectors; ++k)
    {
        sum[0][k] = areFirst ? Float(0) : V::load(out + k * V::kLanes);
        for (int set = 1; set < kSets; ++set)
        {
            sum[set][k] = Float(0);
        }
    }
    const auto add = [&](int tap, int set, Float weight) {
        const Stored* const from = values + taps.offset[tap];
        for (int k = 0; k < kVectors; k += 2)
        {
            Float a, b;
            V::loadTwo(from + k * V::kLanes, a, b);
            sum[set][k] = V::multiplyAdd(a, weight, sum[set][k]);
            sum[set][k + 1] = V::multiplyAdd(b, weight, sum[set][k + 1]);
        }
    };
    for (int corner = 0; corner < 4; ++corner)
    {
        const int tap = corner * numPadded;
        if constexpr (kWholeGroup)
        {
            for (int i = 0; i < kGroup; i += 4)
            {
                const typename V::Quad weights = V::loadQuad(taps.weight + tap + i);
                add(tap + i, 0, V::template splat<0>(weights));
                add(tap + i + 1, 1 % kSets, V::template splat<1>(weights));
                add(tap + i + 2, 2 % kSets, V::template splat<2>(weights));
                add(tap + i + 3, 3 % kSets, V::template splat<3>(weights));
            }
        }
        else
        {
            for (int i = 0; i < count; ++i)
            {
                add(tap + i, 0, Float(taps.weight[tap + i]));
            }
        }
    }
    for (int k = 0; k < kVectors; ++k)
    {
        for (int set = 1; set < kSets; ++set)
        {
            sum[0][k] = sum[0][k] + sum[set][k];
        }
        V::store(out + k * V::kLanes, sum[0][k]);
    }
}

// The same for the last channels of a head, if fewer than a pair of vectors remain.
template <class V>
inline void addRest(const typename V::Scalar* values, const Taps<V>& taps, int numPadded, int count,
    bool areFirst, typename V::Scalar* out, int numChannels)
{
    using Float = typename V::Float;
    const Float zero(0);
    for (int c = 0; c < numChannels; c += V::kLanes)
    {
        const int numLeft = numChannels - c;
        Float sum[4] = {areFirst ? zero : V::load(out + c, numLeft, zero), zero, zero, zero};
        for (int i = 0; i < count; ++i)
        {
            for (int corner = 0; corner < 4; ++corner)
            {
                const int tap = corner * numPadded + i;
                const Float value = V::load(values + taps.offset[tap] + c, numLeft, zero);
                sum[corner] = V::multiplyAdd(value, Float(taps.weight[tap]), sum[corner]);
            }
        }
        V::store(out + c, (sum[0] + sum[1]) + (sum[2] + sum[3]), numLeft);
    }
}

// All channels of a query and head.
template <class V, class Stored, bool kWholeGroup>
inline void addSamples(const Stored* values, const Taps<V>& taps, int numPadded, int count,
    bool areFirst, typename V::Scalar* out, int numChannels)
{
    constexpr int kPair = 2 * V::kLanes;
    constexpr int kWide = V::kMaxPairs;
    int c = 0;
    for (; c + kWide * kPair <= numChannels; c += kWide * kPair)
    {
        addPairs<V, Stored, kWide, kWholeGroup>(
            values + c, taps, numPadded, count, areFirst, out + c);
    }
    for (; c + kPair <= numChannels; c += kPair)
    {
        addPairs<V, Stored, 1, kWholeGroup>(values + c, taps, numPadded, count, areFirst, out + c);
    }
    if constexpr (sizeof(Stored) == sizeof(typename V::Scalar)) // bfloat16 has whole pairs only
    {
        addRest<V>(values + c, taps, numPadded, count, areFirst, out + c, numChannels - c);
    }
}

// Whether all of these numbers are finite.
template <class V>
inline bool isFinite(const typename V::Scalar* numbers, int count)
{
    using Float = typename V::Float;
    const Float zero(0);
    Float sum(0);
    for (int c = 0; c < count; c += V::kLanes)
    {
        const Float x = V::load(numbers + c, count - c, zero);
        sum = sum + (x - x); // NaN unless x is finite
    }
    return V::sumOfLanes(sum) == 0;
}

// The sum over all samples of a query and head, without the taps whose weight is zero: a sample
// outside its map reads the pixel at the border, which may be infinite, and zero times that is NaN.
// If no value is infinite or NaN, the faster sum, which adds every tap, gives the same.
template <class V, class Stored>
inline void addWhatWeighs(const Stored* values, const Taps<V>& taps, int numPadded, int numSamples,
    typename V::Scalar* out, int numChannels)
{
    using Float = typename V::Float;
    constexpr int kPair = 2 * V::kLanes;
    constexpr bool kIsWhole = sizeof(Stored) != sizeof(typename V::Scalar); // see addSamples
    const Float zero(0);
    for (int c = 0; c < numChannels; c += kIsWhole ? kPair : V::kLanes)
    {
        Float a(0), b(0);
        for (int tap = 0; tap < 4 * numPadded; ++tap)
        {
            const typename V::Scalar weight = taps.weight[tap];
            if (tap % numPadded >= numSamples || weight == 0)
            {
                continue;
            }
            Float one, other(0);
            if constexpr (kIsWhole)
            {
                V::loadTwo(values + taps.offset[tap] + c, one, other);
            }
            else
            {
                one = V::load(values + taps.offset[tap] + c, numChannels - c, zero);
            }
            a = V::multiplyAdd(one, Float(weight), a);
            b = V::multiplyAdd(other, Float(weight), b);
        }
        V::store(out + c, a, numChannels - c);
        if constexpr (kIsWhole)
        {
            V::store(out + c + V::kLanes, b);
        }
    }
}

#if defined(__GNUC__)
#define DETR_PREFETCH(address, cache) __builtin_prefetch(address, 0, cache)
#else
#define DETR_PREFETCH(address, cache) static_cast<void>(address)
#endif

// Prefetches what computeTaps() will read. Does nothing beyond the last query.
template <class V>
inline void prefetch(const Query<V>& query, int numSamples)
{
    constexpr int kLine = 64 / sizeof(typename V::Scalar);
    for (int i = 0; i < numSamples; i += kLine)
    {
        DETR_PREFETCH(query.offsets + 2 * i, 3);
        DETR_PREFETCH(query.offsets + 2 * i + kLine, 3);
        DETR_PREFETCH(query.logits + i, 3);
    }
}

// Prefetches the values of a token into the second cache.
template <class V, class Stored>
inline void prefetch(const Stored* values, int numChannels)
{
    constexpr int kLine = 64 / sizeof(Stored);
    for (int c = 0; c < numChannels; c += kLine)
    {
        DETR_PREFETCH(values + c, 2);
    }
}
#undef DETR_PREFETCH

// Queries of one head; kSamples is L * P, or 0 if it is only known at run time.
template <class V, class Stored, int kSamples>
DETR_KERNEL inline void forwardQueries(
    const ForwardCall& call, int image, int head, int first, int last, void* workspace)
{
    using Scalar = typename V::Scalar;
    const MSDeformAttnParams& p = call.params;
    const int numSamples = kSamples != 0 ? kSamples : call.numSamples;
    const int numPadded = call.numPadded;
    const auto* values =
        static_cast<const Stored*>(call.values) + image * call.imageStride + head * call.headStride;
    const ptrdiff_t outStride = static_cast<ptrdiff_t>(p.numHeads) * p.headDim;
    Scalar* const out = static_cast<Scalar*>(p.output)
        + static_cast<ptrdiff_t>(image) * p.numQueries * outStride
        + static_cast<ptrdiff_t>(head) * p.headDim;
    int32_t* const offsets = static_cast<int32_t*>(workspace);
    Scalar* const weights = reinterpret_cast<Scalar*>(offsets + 4 * kForwardBlock * numPadded);
    const auto tapsOf = [&](int inBlock, int sample) {
        const int start = 4 * inBlock * numPadded + sample;
        return Taps<V>{offsets + start, weights + start};
    };
    const bool isEncoder = p.numQueries == p.numTokens;
    for (int block = first; block < last; block += kForwardBlock)
    {
        const int size = smaller<V>(kForwardBlock, last - block);
        for (int q = 0; q < size; ++q)
        {
            const Query<V> query = queryAt<V>(call, image, head, block + q);
            if (isEncoder)
            {
                const ptrdiff_t token = smaller<V>(block + q + kTokensAhead, p.numTokens - 1);
                prefetch<V>(values + token * call.tokenStride, p.headDim);
            }
            computeTaps<V>(call, query, numSamples, tapsOf(q, 0));
        }
        int sample = 0;
        for (; sample + kGroup <= numSamples; sample += kGroup)
        {
            for (int q = 0; q < size; ++q)
            {
                if (sample == 0)
                {
                    prefetch<V>(
                        queryAt<V>(call, image, head, block + kForwardBlock + q), numSamples);
                }
                addSamples<V, Stored, true>(values, tapsOf(q, sample), numPadded, kGroup,
                    sample == 0, out + (block + q) * outStride, p.headDim);
            }
        }
        for (int q = 0; q < size && sample < numSamples; ++q)
        {
            addSamples<V, Stored, false>(values, tapsOf(q, sample), numPadded, numSamples - sample,
                sample == 0, out + (block + q) * outStride, p.headDim);
        }
        for (int q = 0; q < size; ++q)
        {
            Scalar* const sum = out + (block + q) * outStride;
            if (!isFinite<V>(sum, p.headDim))
            {
                addWhatWeighs<V, Stored>(
                    values, tapsOf(q, 0), numPadded, numSamples, sum, p.headDim);
            }
        }
    }
}

// See ForwardFunction.
template <class V, class Stored>
void forwardItem(const ForwardCall& call, int image, int head, int first, int last, void* workspace)
{
    constexpr int kUsual = 16; // four levels of four points
    if (call.numSamples == kUsual)
    {
        forwardQueries<V, Stored, kUsual>(call, image, head, first, last, workspace);
    }
    else
    {
        forwardQueries<V, Stored, 0>(call, image, head, first, last, workspace);
    }
}

// Copies a token's channels to where values are sampled, in the type used there.
template <class V, class Stored>
inline void keep(const typename V::Scalar* from, Stored* to, int numChannels)
{
    if constexpr (sizeof(Stored) == sizeof(typename V::Scalar))
    {
        int c = 0;
        for (; c + 2 * V::kLanes <= numChannels; c += 2 * V::kLanes)
        {
            const typename V::Float a = V::load(from + c), b = V::load(from + c + V::kLanes);
            V::store(to + c, a);
            V::store(to + c + V::kLanes, b);
        }
        for (; c < numChannels; ++c)
        {
            to[c] = from[c];
        }
    }
    else
    {
        V::toBFloat16(from, to, numChannels);
    }
}

// See PrepareFunction.
template <class V, class Stored>
void prepareItem(const ForwardCall& call, int image, int first, int last)
{
    using Scalar = typename V::Scalar;
    const MSDeformAttnParams& p = call.params;
    const ptrdiff_t fromStride = static_cast<ptrdiff_t>(p.numHeads) * p.headDim;
    const Scalar* const from = static_cast<const Scalar*>(p.value)
        + static_cast<ptrdiff_t>(image) * p.numTokens * fromStride;
    Stored* const to = static_cast<Stored*>(call.values) + image * call.imageStride;
    for (ptrdiff_t token = first; token < last; ++token)
    {
        for (ptrdiff_t head = 0; head < p.numHeads; ++head)
        {
            keep<V>(from + token * fromStride + head * p.headDim,
                to + head * call.headStride + token * call.tokenStride, p.headDim);
        }
    }
}

} // namespace detr
