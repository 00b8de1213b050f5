// The forward kernel, for a vector type V of any instruction set.
#pragma once

#include "kernel_table.h"
#include "sampling.h"

#include <limits>

namespace detr
{

// Where the four corners of every sample of a query lie and what they weigh:
// [corner * numPadded + sample]; corners are (low y, low x), (low, high), (high, low), (high, high).
template <class V>
struct Taps
{
    int32_t* offset;
    typename V::Scalar* weight;
};

// exp(logit - highest) of every sample, not yet divided by the sum, which is returned.
template <class V>
inline typename V::Scalar exponentials(
    const typename V::Scalar* logits, int numSamples, typename V::Scalar* result)
{
    using Float = typename V::Float;
    const Float lowest(-std::numeric_limits<typename V::Scalar>::infinity());
    Float highest = lowest;
    for (int i = 0; i < numSamples; i += V::kLanes)
    {
        highest = V::maxOf(highest, V::load(logits + i, numSamples - i, lowest));
    }
    highest = Float(V::maxOfLanes(highest));
    Float sum(0);
    for (int i = 0; i < numSamples; i += V::kLanes)
    {
        const Float e = V::expOf(V::load(logits + i, numSamples - i, lowest) - highest);
        V::store(result + i, e);
        sum = sum + e;
    }
    return V::sumOfLanes(sum);
}

// Taps of a query and head.
template <class V>
inline void computeTaps(const ForwardCall& call, const typename V::Scalar* reference,
    const typename V::Scalar* offsets, const typename V::Scalar* logits, int numSamples,
    const Taps<V>& taps)
{
    using Scalar = typename V::Scalar;
    using Float = typename V::Float;
    using Int = typename V::Int;
    const auto& table = *static_cast<const SampleTable<Scalar>*>(call.samples);
    const int referenceDim = call.params.referenceDim;
    const int numReferences = call.params.numLevels * referenceDim;
    const int numPadded = call.numPadded;
    const Float boxScale(Scalar(0.5) / static_cast<Scalar>(call.params.numPoints));
    const Int tokenStride(call.tokenStride);
    const Float scale(Scalar(1) / exponentials<V>(logits, numSamples, taps.weight));
    for (int i = 0; i < numSamples; i += V::kLanes)
    {
        const Float width = V::load(table.width + i);
        const Float height = V::load(table.height + i);
        const Int which = V::load(table.reference + i);
        Float dx, dy;
        V::loadPairs(offsets + 2 * i, numSamples - i, dx, dy);
        Float x = V::lookUp(reference, numReferences, which);
        Float y = V::lookUp(reference + 1, numReferences - 1, which);
        if (referenceDim == 2)
        {
            x = pixelFromPoint(x, dx, width);
            y = pixelFromPoint(y, dy, height);
        }
        else
        {
            const Float boxWidth = V::lookUp(reference + 2, numReferences - 2, which);
            const Float boxHeight = V::lookUp(reference + 3, numReferences - 3, which);
            x = pixelFromBox(x, boxWidth, dx, width, boxScale);
            y = pixelFromBox(y, boxHeight, dy, height, boxScale);
        }
        const auto across = axisTaps(x, V::load(table.intWidth + i), width);
        const auto down = axisTaps(y, V::load(table.intHeight + i), height);
        const Float attention = V::load(taps.weight + i) * scale;
        const Float upper = down.lowWeight * attention;
        const Float lower = down.highWeight * attention;
        V::store(taps.weight + i, upper * across.lowWeight);
        V::store(taps.weight + numPadded + i, upper * across.highWeight);
        V::store(taps.weight + 2 * numPadded + i, lower * across.lowWeight);
        V::store(taps.weight + 3 * numPadded + i, lower * across.highWeight);
        const Int row = V::load(table.row + i);
        const Int start = V::load(table.start + i);
        const Int above = start + down.low * row;
        const Int below = start + down.high * row;
        const Int left = across.low * tokenStride;
        const Int right = across.high * tokenStride;
        V::store(taps.offset + i, above + left);
        V::store(taps.offset + numPadded + i, above + right);
        V::store(taps.offset + 2 * numPadded + i, below + left);
        V::store(taps.offset + 3 * numPadded + i, below + right);
    }
}

// Weighted sum over all taps of kPairs pairs of vectors of channels. Sums are kept in kSets sets,
// so that one addition need not wait for the one before.
template <class V, class Stored, int kPairs, int kSets>
inline void sumPairs(
    const Stored* values, const Taps<V>& taps, int numSamples, int numPadded, typename V::Scalar* out)
{
    using Float = typename V::Float;
    Float sum[kSets][2 * kPairs];
    for (auto& set : sum)
    {
        for (Float& s : set)
        {
            s = Float(0);
        }
    }
    for (int i = 0; i < numSamples; ++i)
    {
        for (int corner = 0; corner < 4; ++corner)
        {
            const Float weight(taps.weight[corner * numPadded + i]);
            const Stored* const from = values + taps.offset[corner * numPadded + i];
            for (int pair = 0; pair < kPairs; ++pair)
            {
                Float a, b;
                V::loadTwo(from + pair * 2 * V::kLanes, a, b);
                Float* const s = sum[corner % kSets] + 2 * pair;
                s[0] = V::multiplyAdd(a, weight, s[0]);
                s[1] = V::multiplyAdd(b, weight, s[1]);
            }
        }
    }
    for (int k = 0; k < 2 * kPairs; ++k)
    {
        for (int step = kSets / 2; step > 0; step /= 2)
        {
            for (int set = 0; set < step; ++set)
            {
                sum[set][k] = sum[set][k] + sum[set + step][k];
            }
        }
        V::store(out + k * V::kLanes, sum[0][k]);
    }
}

// The same for the last channels of a head, fewer than two vectors of them.
template <class V>
inline void sumRest(const typename V::Scalar* values, const Taps<V>& taps, int numSamples,
    int numPadded, typename V::Scalar* out, int numChannels)
{
    using Float = typename V::Float;
    const Float zero(0);
    for (int c = 0; c < numChannels; c += V::kLanes)
    {
        Float sum[4] = {zero, zero, zero, zero};
        for (int i = 0; i < numSamples; ++i)
        {
            for (int corner = 0; corner < 4; ++corner)
            {
                const Float weight(taps.weight[corner * numPadded + i]);
                const Float value = V::load(
                    values + taps.offset[corner * numPadded + i] + c, numChannels - c, zero);
                sum[corner] = V::multiplyAdd(value, weight, sum[corner]);
            }
        }
        V::store(out + c, (sum[0] + sum[1]) + (sum[2] + sum[3]), numChannels - c);
    }
}

template <class V>
inline void sumLast(const typename V::Scalar* values, const Taps<V>& taps, int numSamples,
    int numPadded, typename V::Scalar* out, int numChannels)
{
    sumRest<V>(values, taps, numSamples, numPadded, out, numChannels);
}

// bfloat16 comes in whole pairs of vectors.
template <class V>
inline void sumLast(const uint16_t*, const Taps<V>&, int, int, typename V::Scalar*, int)
{
}

// All channels of a query and head, in passes as wide as there are registers for.
template <class V, class Stored>
inline void sumTaps(const Stored* values, const Taps<V>& taps, int numSamples, int numPadded,
    typename V::Scalar* out, int numChannels)
{
    constexpr int kPair = 2 * V::kLanes;
    constexpr int kWide = V::kMaxPairs;
    int c = 0;
    for (; c + kWide * kPair <= numChannels; c += kWide * kPair)
    {
        sumPairs<V, Stored, kWide, 1>(values + c, taps, numSamples, numPadded, out + c);
    }
    for (; c + kPair <= numChannels; c += kPair)
    {
        constexpr int kSets = kWide < 4 ? kWide : 4;
        sumPairs<V, Stored, 1, kSets>(values + c, taps, numSamples, numPadded, out + c);
    }
    if (c < numChannels)
    {
        sumLast<V>(values + c, taps, numSamples, numPadded, out + c, numChannels - c);
    }
}

// See ForwardFunction.
template <class V, class Stored>
void forwardBlock(
    const ForwardCall& call, int image, int head, int first, int last, void* workspace)
{
    using Scalar = typename V::Scalar;
    const MSDeformAttnParams& p = call.params;
    const auto* values =
        static_cast<const Stored*>(call.values) + image * call.imageStride + head * call.headStride;
    Taps<V> taps;
    taps.offset = static_cast<int32_t*>(workspace);
    taps.weight = reinterpret_cast<Scalar*>(taps.offset + 4 * call.numPadded);
    const ptrdiff_t numReferences = static_cast<ptrdiff_t>(p.numLevels) * p.referenceDim;
    for (int q = first; q < last; ++q)
    {
        const ptrdiff_t query = static_cast<ptrdiff_t>(image) * p.numQueries + q;
        const ptrdiff_t queryHead = query * p.numHeads + head;
        const ptrdiff_t sample = queryHead * call.numSamples;
        computeTaps<V>(call, static_cast<const Scalar*>(p.referencePoints) + query * numReferences,
            static_cast<const Scalar*>(p.samplingOffsets) + 2 * sample,
            static_cast<const Scalar*>(p.attentionLogits) + sample, call.numSamples, taps);
        sumTaps<V>(values, taps, call.numSamples, call.numPadded,
            static_cast<Scalar*>(p.output) + queryHead * p.headDim, p.headDim);
    }
}

// See PrepareFunction. `Stored` is the scalar or uint16_t, for bfloat16.
template <class V, class Stored>
void prepareBlock(const ForwardCall& call, int image, int first, int last)
{
    using Scalar = typename V::Scalar;
    const MSDeformAttnParams& p = call.params;
    const ptrdiff_t fromStride = static_cast<ptrdiff_t>(p.numHeads) * p.headDim;
    const Scalar* const from = static_cast<const Scalar*>(p.value)
        + (static_cast<ptrdiff_t>(image) * p.numTokens) * fromStride;
    Stored* const to = static_cast<Stored*>(call.values) + image * call.imageStride;
    for (int head = 0; head < p.numHeads; ++head)
    {
        for (int token = first; token < last; ++token)
        {
            V::copy(from + token * fromStride + static_cast<ptrdiff_t>(head) * p.headDim,
                to + head * call.headStride + static_cast<ptrdiff_t>(token) * call.tokenStride,
                p.headDim);
        }
    }
}

} // namespace detr
