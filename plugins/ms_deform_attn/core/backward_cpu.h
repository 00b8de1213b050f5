// The backward kernel, for a vector type V of any instruction set.
#pragma once

#include "taps_cpu.h"

namespace detr
{

// What is kept for a query: its taps, the products of the output's gradient with the values there,
// [corner * numPadded + sample], and one number per sample.
template <class V>
struct BackwardTaps
{
    Taps<V> taps;
    typename V::Scalar* product;
    typename V::Scalar* sample;
};

template <class V>
inline void clear(typename V::Scalar* p, ptrdiff_t count)
{
    for (ptrdiff_t i = 0; i < count; ++i)
    {
        p[i] = 0;
    }
}

// Through the weighted sum: the products of all taps, and what is added to the values' gradients at
// each. kChannels is the number of channels, or 0 if it is only known at run time.
template <class V, int kChannels>
inline void throughValues(const typename V::Scalar* outGradient, int numChannels, int numSamples,
    int numPadded, const BackwardTaps<V>& at, const typename V::Scalar* values,
    typename V::Scalar* valueGradients)
{
    using Scalar = typename V::Scalar;
    using Float = typename V::Float;
    const Float zero(0);
    Float kept[kChannels / V::kLanes + 1]; // the output's gradient, if kChannels is known
    for (int c = 0; c < kChannels; c += V::kLanes)
    {
        kept[c / V::kLanes] = V::load(outGradient + c);
    }
    const auto throughTap = [&](int tap) {
        const Scalar* const value = values + at.taps.offset[tap];
        Scalar* const gradient = valueGradients + at.taps.offset[tap];
        const Float weight(at.taps.weight[tap]);
        Float product(0);
        for (int c = 0; c < numChannels; c += V::kLanes)
        {
            const int numLeft = numChannels - c;
            const Float out =
                kChannels != 0 ? kept[c / V::kLanes] : V::load(outGradient + c, numLeft, zero);
            product = V::multiplyAdd(out, V::load(value + c, numLeft, zero), product);
            const Float before = V::load(gradient + c, numLeft, zero);
            V::store(gradient + c, V::multiplyAdd(out, weight, before), numLeft);
        }
        return product;
    };
    for (int corner = 0; corner < 4; ++corner)
    {
        for (int i = 0; i < numSamples; i += 4)
        {
            const int tap = corner * numPadded + i, numLeft = numSamples - i;
            const Float products[4] = {throughTap(tap), numLeft > 1 ? throughTap(tap + 1) : zero,
                numLeft > 2 ? throughTap(tap + 2) : zero, numLeft > 3 ? throughTap(tap + 3) : zero};
            V::storeSums(at.product + tap, products);
        }
    }
}

// Gradients of a vector of samples, from the change per pixel across and down.
template <class V>
inline void throughLocations(const BackwardCall& call, const Samples<V>& samples,
    typename V::Float acrossGain, typename V::Float downGain, int first, int numSamples,
    typename V::Scalar* offsetGradient, typename V::Scalar* referenceGradient)
{
    using Scalar = typename V::Scalar;
    using Float = typename V::Float;
    const MSDeformAttnParams& p = call.forward.params;
    const Float centreX = acrossGain * samples.width, centreY = downGain * samples.height;
    Float parts[4] = {centreX, centreY, Float(0), Float(0)};
    if (p.referenceDim == 2)
    {
        V::storePairs(offsetGradient + 2 * first, acrossGain, downGain, numSamples - first);
    }
    else
    {
        const Float scale = boxScale<V>(p);
        V::storePairs(offsetGradient + 2 * first, centreX * samples.boxWidth * scale,
            centreY * samples.boxHeight * scale, numSamples - first);
        parts[2] = centreX * samples.offsetX * scale;
        parts[3] = centreY * samples.offsetY * scale;
    }
    if (referenceGradient != nullptr)
    {
        Scalar part[V::kLanes];
        for (int d = 0; d < p.referenceDim; ++d)
        {
            V::store(part, parts[d]);
            for (int i = 0; i < smaller<V>(V::kLanes, numSamples - first); ++i)
            {
                referenceGradient[(first + i) / p.numPoints * p.referenceDim + d] += part[i];
            }
        }
    }
}

// Gradients of one query and head.
template <class V, int kSamples, int kChannels>
inline void backwardQuery(const BackwardCall& call, const Query<V>& query, ptrdiff_t queryHead,
    const BackwardTaps<V>& at, const typename V::Scalar* values, typename V::Scalar* valueGradients,
    typename V::Scalar* referenceGradient)
{
    using Scalar = typename V::Scalar;
    using Float = typename V::Float;
    const ForwardCall& forward = call.forward;
    const MSDeformAttnParams& p = forward.params;
    const int numSamples = kSamples != 0 ? kSamples : forward.numSamples;
    const int numChannels = kChannels != 0 ? kChannels : p.headDim;
    const int numPadded = forward.numPadded;
    const auto& table = *static_cast<const SampleTable<Scalar>*>(forward.samples);
    computeTaps<V>(forward, query, numSamples, at.taps);
    throughValues<V, kChannels>(
        static_cast<const Scalar*>(call.gradients.output) + queryHead * p.headDim, numChannels,
        numSamples, numPadded, at, values, valueGradients);

    // The softmax again: its result was multiplied into the weights of the taps.
    const Float scale = exponentials<V>(query.logits, numSamples, at.sample);
    Scalar* const offsetGradient =
        static_cast<Scalar*>(call.gradients.samplingOffsets) + 2 * queryHead * numSamples;
    Scalar* const logitGradient =
        static_cast<Scalar*>(call.gradients.attentionLogits) + queryHead * numSamples;
    Float sum(0);
    for (int i = 0; i < numSamples; i += V::kLanes)
    {
        const Samples<V> samples(forward, query, numSamples, i);
        const auto across = axisTaps(samples.x, V::load(table.intWidth + i), samples.width);
        const auto down = axisTaps(samples.y, V::load(table.intHeight + i), samples.height);
        const auto acrossSlopes = axisSlopes(samples.x, samples.width);
        const auto downSlopes = axisSlopes(samples.y, samples.height);
        // Outside the map nothing was sampled, although the pixel at the border was read. If that
        // is infinite, so is the product, and zero times that would be NaN.
        const Float zero(0);
        const Float isSampled =
            isOnAxis(samples.x, samples.width) * isOnAxis(samples.y, samples.height);
        const auto productAt = [&](int corner) {
            return select(isSampled > zero, V::load(at.product + corner * numPadded + i), zero);
        };
        const Float upperLeft = productAt(0), upperRight = productAt(1);
        const Float lowerLeft = productAt(2), lowerRight = productAt(3);
        const Float upper = upperLeft * across.lowWeight + upperRight * across.highWeight;
        const Float lower = lowerLeft * across.lowWeight + lowerRight * across.highWeight;
        const Float upperSlope = upperLeft * acrossSlopes.low + upperRight * acrossSlopes.high;
        const Float lowerSlope = lowerLeft * acrossSlopes.low + lowerRight * acrossSlopes.high;
        const Float attention = V::load(at.sample + i) * scale;
        throughLocations<V>(call, samples,
            attention * (upperSlope * down.lowWeight + lowerSlope * down.highWeight),
            attention * (upper * downSlopes.low + lower * downSlopes.high), i, numSamples,
            offsetGradient, referenceGradient);
        const Float weighted = attention * (upper * down.lowWeight + lower * down.highWeight);
        sum = sum + V::firstOf(weighted, numSamples - i);
        V::store(at.sample + i, attention);
        V::store(logitGradient + i, weighted, numSamples - i);
    }
    const Float mean(V::sumOfLanes(sum));
    for (int i = 0; i < numSamples; i += V::kLanes)
    {
        const int numLeft = numSamples - i;
        const Float weighted = V::load(logitGradient + i, numLeft, Float(0));
        V::store(logitGradient + i, weighted - V::load(at.sample + i) * mean, numLeft);
    }
}

// Queries of one head; kSamples is L * P and kChannels is D, or both are 0 if only known at run
// time.
template <class V, int kSamples, int kChannels>
DETR_KERNEL inline void backwardQueries(
    const BackwardCall& call, int image, int head, void* workspace)
{
    using Scalar = typename V::Scalar;
    const ForwardCall& forward = call.forward;
    const MSDeformAttnParams& p = forward.params;
    const ptrdiff_t start = image * forward.imageStride + head * forward.headStride;
    const Scalar* const values = static_cast<const Scalar*>(forward.values) + start;
    Scalar* const valueGradients = static_cast<Scalar*>(call.values) + start;
    for (ptrdiff_t token = 0; token < p.numTokens; ++token)
    {
        Scalar* const gradient = valueGradients + token * forward.tokenStride;
        clear<V>(gradient, p.headDim);
    }
    const int numPadded = forward.numPadded;
    BackwardTaps<V> at;
    at.taps.offset = static_cast<int32_t*>(workspace);
    at.taps.weight = reinterpret_cast<Scalar*>(at.taps.offset + 4 * numPadded);
    at.product = at.taps.weight + 4 * numPadded;
    at.sample = at.product + 4 * numPadded;
    const ptrdiff_t perQuery = static_cast<ptrdiff_t>(p.numLevels) * p.referenceDim;
    Scalar* referenceGradient = nullptr;
    if (call.references != nullptr)
    {
        const ptrdiff_t imageHead = static_cast<ptrdiff_t>(image) * p.numHeads + head;
        referenceGradient =
            static_cast<Scalar*>(call.references) + imageHead * p.numQueries * perQuery;
        clear<V>(referenceGradient, p.numQueries * perQuery);
    }
    for (int q = 0; q < p.numQueries; ++q)
    {
        const ptrdiff_t queryHead =
            (static_cast<ptrdiff_t>(image) * p.numQueries + q) * p.numHeads + head;
        backwardQuery<V, kSamples, kChannels>(call, queryAt<V>(forward, image, head, q), queryHead,
            at, values, valueGradients, referenceGradient);
        referenceGradient = referenceGradient == nullptr ? nullptr : referenceGradient + perQuery;
    }
}

// See BackwardFunction.
template <class V>
void backwardItem(const BackwardCall& call, int image, int head, void* workspace)
{
    if (call.forward.numSamples == 16 && call.forward.params.headDim == 32)
    {
        backwardQueries<V, 16, 32>(call, image, head, workspace);
    }
    else
    {
        backwardQueries<V, 0, 0>(call, image, head, workspace);
    }
}

} // namespace detr
