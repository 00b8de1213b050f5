// From the logits, offsets and reference points of a query to its samples' weights and positions,
// for a vector type V of any instruction set.
#pragma once

#include "kernel_table.h"
#include "sampling.h"

#include <cmath>

namespace detr
{

// No kernel uses a function, of ours or of the standard library, that is also compiled for another
// instruction set: the linker keeps only one copy, which may be for either.
template <class V>
inline int smaller(int a, int b)
{
    return a < b ? a : b;
}

// If reference points are boxes, a sample moves by offset * extent * boxScale.
template <class V>
inline typename V::Float boxScale(const MSDeformAttnParams& p)
{
    using Scalar = typename V::Scalar;
    return typename V::Float(Scalar(0.5) / static_cast<Scalar>(p.numPoints));
}

// One query and head of a call.
template <class V>
struct Query
{
    const typename V::Scalar* reference; // L reference points
    const typename V::Scalar* offsets;   // L * P pairs
    const typename V::Scalar* logits;    // L * P
};

template <class V>
inline Query<V> queryAt(const ForwardCall& call, int image, int head, int query)
{
    using Scalar = typename V::Scalar;
    const MSDeformAttnParams& p = call.params;
    const ptrdiff_t row = static_cast<ptrdiff_t>(image) * p.numQueries + query;
    const ptrdiff_t sample = (row * p.numHeads + head) * call.numSamples;
    return {static_cast<const Scalar*>(p.referencePoints) + row * p.numLevels * p.referenceDim,
        static_cast<const Scalar*>(p.samplingOffsets) + 2 * sample,
        static_cast<const Scalar*>(p.attentionLogits) + sample};
}

// Softmax over the samples of a query: stores exp(logit - highest) of each and returns the factor
// to multiply them by.
template <class V>
inline typename V::Float exponentials(
    const typename V::Scalar* logits, int numSamples, typename V::Scalar* result)
{
    using Scalar = typename V::Scalar;
    using Float = typename V::Float;
    const Float lowest(static_cast<Scalar>(-HUGE_VAL));
    Float highest = lowest;
    for (int i = 0; i < numSamples; i += V::kLanes)
    {
        highest = atLeast(V::load(logits + i, numSamples - i, lowest), highest);
    }
    highest = Float(V::maxOfLanes(highest));
    Float sum(0);
    for (int i = 0; i < numSamples; i += V::kLanes)
    {
        const Float e = V::expOf(V::load(logits + i, numSamples - i, lowest), highest);
        V::store(result + i, e);
        sum = sum + e;
    }
    return Float(Scalar(1) / V::sumOfLanes(sum));
}

// A vector of samples, starting at `first`: their reference points, offsets and levels.
template <class V>
struct Samples
{
    using Float = typename V::Float;
    Float width, height;       // of their levels
    Float centreX, centreY;    // of their reference points
    Float boxWidth, boxHeight; // if these are boxes
    Float offsetX, offsetY;
    Float x, y; // pixel coordinates

    Samples(const ForwardCall& call, const Query<V>& query, int numSamples, int first)
    {
        const MSDeformAttnParams& p = call.params;
        const auto& table = *static_cast<const SampleTable<typename V::Scalar>*>(call.samples);
        const int numReferences = p.numLevels * p.referenceDim;
        const typename V::Int which = V::load(table.reference + first);
        width = V::load(table.width + first);
        height = V::load(table.height + first);
        V::loadPairs(query.offsets + 2 * first, numSamples - first, offsetX, offsetY);
        centreX = V::lookUp(query.reference, numReferences, which);
        centreY = V::lookUp(query.reference + 1, numReferences - 1, which);
        if (p.referenceDim == 2)
        {
            x = pixelFromPoint(centreX, offsetX, width);
            y = pixelFromPoint(centreY, offsetY, height);
        }
        else
        {
            const Float scale = boxScale<V>(p);
            boxWidth = V::lookUp(query.reference + 2, numReferences - 2, which);
            boxHeight = V::lookUp(query.reference + 3, numReferences - 3, which);
            x = pixelFromBox(centreX, boxWidth, offsetX, width, scale);
            y = pixelFromBox(centreY, boxHeight, offsetY, height, scale);
        }
    }
};

// The four corners of every sample of a query, [corner * numPadded + sample], in the order (low y,
// low x), (low, high), (high, low), (high, high): their offsets, in elements of a head's values,
// and their weights.
template <class V>
struct Taps
{
    int32_t* offset;
    typename V::Scalar* weight;
};

template <class V, class AxisTaps>
inline void storeOffsets(const ForwardCall& call, const AxisTaps& across, const AxisTaps& down,
    int first, int32_t* offset)
{
    using Int = typename V::Int;
    const auto& table = *static_cast<const SampleTable<typename V::Scalar>*>(call.samples);
    const Int start = V::load(table.start + first), row = V::load(table.row + first);
    const Int above = start + down.low * row, below = start + down.high * row;
    const Int tokenStride(call.tokenStride);
    const Int left = across.low * tokenStride, right = across.high * tokenStride;
    offset += first;
    V::store(offset, above + left);
    V::store(offset + call.numPadded, above + right);
    V::store(offset + 2 * call.numPadded, below + left);
    V::store(offset + 3 * call.numPadded, below + right);
}

// The taps of a query.
template <class V>
inline void computeTaps(
    const ForwardCall& call, const Query<V>& query, int numSamples, const Taps<V>& taps)
{
    using Float = typename V::Float;
    const auto& table = *static_cast<const SampleTable<typename V::Scalar>*>(call.samples);
    const Float scale = exponentials<V>(query.logits, numSamples, taps.weight);
    for (int i = 0; i < numSamples; i += V::kLanes)
    {
        const Samples<V> samples(call, query, numSamples, i);
        const auto across = axisTaps(samples.x, V::load(table.intWidth + i), samples.width);
        const auto down = axisTaps(samples.y, V::load(table.intHeight + i), samples.height);
        typename V::Scalar* const weight = taps.weight + i;
        const Float attention = V::load(weight) * scale;
        const Float upper = down.lowWeight * attention, lower = down.highWeight * attention;
        V::store(weight, upper * across.lowWeight);
        V::store(weight + call.numPadded, upper * across.highWeight);
        V::store(weight + 2 * call.numPadded, lower * across.lowWeight);
        V::store(weight + 3 * call.numPadded, lower * across.highWeight);
        storeOffsets<V>(call, across, down, i, taps.offset);
    }
}

} // namespace detr
