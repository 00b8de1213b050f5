// Where a sample is and what it takes from a feature map: the formula's only copy in C++.
//
// Source: Deformable DETR, arXiv:2010.04159, eq. (3). Pixel centres are at (i + 0.5) / size.
//
// `Real` is a float, a double or a vector of them; `Int` is an int or a vector of the same length.
// For what operators cannot express, there are select(), atLeast(), atMost(), floorOf() and
// toInt(), which a vector type overloads.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define DETR_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define DETR_HOST_DEVICE inline
#endif

namespace detr
{

template <typename T>
DETR_HOST_DEVICE T select(bool condition, T yes, T no)
{
    return condition ? yes : no;
}

// The larger of the two; the bound if x is NaN.
template <typename T>
DETR_HOST_DEVICE T atLeast(T x, T bound)
{
    return x > bound ? x : bound;
}

// The smaller of the two; the bound if x is NaN.
template <typename T>
DETR_HOST_DEVICE T atMost(T x, T bound)
{
    return x < bound ? x : bound;
}

DETR_HOST_DEVICE float floorOf(float x)
{
    return floorf(x);
}

DETR_HOST_DEVICE double floorOf(double x)
{
    return floor(x);
}

template <typename Int, typename Real>
DETR_HOST_DEVICE Int toInt(Real x)
{
    return static_cast<Int>(x);
}

// Pixel coordinate, along one axis of a level of `size` pixels, of a sample that is `offset` pixels
// away from a reference point at the normalised `centre`.
template <typename Real>
DETR_HOST_DEVICE Real pixelFromPoint(Real centre, Real offset, Real size)
{
    return centre * size + offset - Real(0.5f);
}

// The same for a reference box of normalised `extent`: offsets are in half extents, divided by the
// number of points; `scale` is 0.5 / P.
template <typename Real>
DETR_HOST_DEVICE Real pixelFromBox(Real centre, Real extent, Real offset, Real size, Real scale)
{
    return (centre + offset * extent * scale) * size - Real(0.5f);
}

// The two pixels along one axis that a sample is between, clamped to the map, and their weights,
// which are zero outside it.
template <typename Real, typename Int>
struct AxisTaps
{
    Int low;
    Int high;
    Real lowWeight;
    Real highWeight;
};

// Pixels and weights of a sample at `coordinate` on an axis of `size` pixels. Any value is allowed:
// outside (-1, size), and for NaN, both weights are zero.
template <typename Real, typename Int>
DETR_HOST_DEVICE AxisTaps<Real, Int> axisTaps(Real coordinate, Int size, Real realSize)
{
    const Real zero(0.0f), one(1.0f);
    const Real inside = atMost(atLeast(coordinate, -one), realSize);
    const Real base = floorOf(inside);
    const Real fraction = inside - base;
    const Int low = toInt<Int>(base); // -1 .. size
    const Int high = low + 1;
    const Int last = size - 1;
    AxisTaps<Real, Int> taps;
    taps.low = atMost(atLeast(low, Int{}), last);
    taps.high = atMost(high, last);
    taps.lowWeight = select(taps.low == low, one - fraction, zero);
    taps.highWeight = select(taps.high == high, fraction, zero);
    return taps;
}

// One if a sample at `coordinate` is between pixels of which at least one is in the map, or on a
// pixel beside them; otherwise, and for NaN, zero.
template <typename Real>
DETR_HOST_DEVICE Real isOnAxis(Real coordinate, Real realSize)
{
    const Real zero(0.0f), one(1.0f);
    return select(coordinate >= -one, select(coordinate < realSize, one, zero), zero);
}

// How much the two weights change per pixel that the coordinate moves, for gradients. At a whole
// coordinate, where a weight has a kink, it is the slope on the upper side.
template <typename Real>
struct AxisSlopes
{
    Real low;
    Real high;
};

template <typename Real>
DETR_HOST_DEVICE AxisSlopes<Real> axisSlopes(Real coordinate, Real realSize)
{
    const Real zero(0.0f), one(1.0f);
    const Real inside = atMost(atLeast(coordinate, -one), realSize);
    const Real base = floorOf(inside);
    AxisSlopes<Real> slopes;
    slopes.low = select(base >= zero, select(base < realSize, -one, zero), zero);
    slopes.high = select(coordinate >= -one, select(base < realSize - one, one, zero), zero);
    return slopes;
}

} // namespace detr
