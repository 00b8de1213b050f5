// Vectors in plain C++, which compilers turn into the instructions of the machine.
#pragma once

#include "sampling.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace detr
{

template <typename T, int N>
struct Pack
{
    T lane[N];

    Pack() = default;

    explicit Pack(T x)
    {
        for (T& l : lane)
        {
            l = x;
        }
    }
};

// One condition per lane: all bits set, or none.
template <int N>
struct PackMask
{
    int32_t lane[N];
};

#define DETR_PACK_OPERATOR(op)                                                                     \
    template <typename T, int N>                                                                   \
    inline Pack<T, N> operator op(const Pack<T, N>& a, const Pack<T, N>& b)                        \
    {                                                                                              \
        Pack<T, N> r;                                                                              \
        for (int i = 0; i < N; ++i)                                                                \
        {                                                                                          \
            r.lane[i] = a.lane[i] op b.lane[i];                                                    \
        }                                                                                          \
        return r;                                                                                  \
    }
DETR_PACK_OPERATOR(+)
DETR_PACK_OPERATOR(-)
DETR_PACK_OPERATOR(*)
#undef DETR_PACK_OPERATOR

#define DETR_PACK_COMPARISON(op)                                                                   \
    template <typename T, int N>                                                                   \
    inline PackMask<N> operator op(const Pack<T, N>& a, const Pack<T, N>& b)                       \
    {                                                                                              \
        PackMask<N> r;                                                                             \
        for (int i = 0; i < N; ++i)                                                                \
        {                                                                                          \
            r.lane[i] = -static_cast<int32_t>(a.lane[i] op b.lane[i]);                             \
        }                                                                                          \
        return r;                                                                                  \
    }
DETR_PACK_COMPARISON(>)
DETR_PACK_COMPARISON(<)
DETR_PACK_COMPARISON(>=)
DETR_PACK_COMPARISON(==)
#undef DETR_PACK_COMPARISON

template <typename T, int N>
inline Pack<T, N> operator-(const Pack<T, N>& a)
{
    return Pack<T, N>(T(0)) - a;
}

template <int N>
inline Pack<int32_t, N> operator+(const Pack<int32_t, N>& a, int32_t b)
{
    return a + Pack<int32_t, N>(b);
}

template <int N>
inline Pack<int32_t, N> operator-(const Pack<int32_t, N>& a, int32_t b)
{
    return a - Pack<int32_t, N>(b);
}

template <typename T, int N>
inline Pack<T, N> select(const PackMask<N>& condition, const Pack<T, N>& yes, const Pack<T, N>& no)
{
    Pack<T, N> r;
    for (int i = 0; i < N; ++i)
    {
        r.lane[i] = condition.lane[i] != 0 ? yes.lane[i] : no.lane[i];
    }
    return r;
}

template <typename T, int N>
inline Pack<T, N> atLeast(const Pack<T, N>& x, const Pack<T, N>& bound)
{
    return select(x > bound, x, bound);
}

template <typename T, int N>
inline Pack<T, N> atMost(const Pack<T, N>& x, const Pack<T, N>& bound)
{
    return select(x < bound, x, bound);
}

template <typename IntPack, typename T, int N>
inline IntPack toInt(const Pack<T, N>& x)
{
    IntPack r;
    for (int i = 0; i < N; ++i)
    {
        r.lane[i] = static_cast<int32_t>(x.lane[i]);
    }
    return r;
}

// For values that fit an int32. On many machines, floorf() would be a library call.
template <typename T, int N>
inline Pack<T, N> floorOf(const Pack<T, N>& x)
{
    Pack<T, N> r;
    for (int i = 0; i < N; ++i)
    {
        const T towardsZero = static_cast<T>(static_cast<int32_t>(x.lane[i]));
        r.lane[i] = towardsZero > x.lane[i] ? towardsZero - T(1) : towardsZero;
    }
    return r;
}

// What the kernels need from an instruction set.
template <typename T, int N>
struct PortableVector
{
    using Scalar = T;
    using Float = Pack<T, N>;
    using Int = Pack<int32_t, N>;
    static constexpr int kLanes = N;
    static constexpr int kMaxPairs = 2;     // pairs of vectors of channels per pass
    static constexpr int kAccumulators = 4; // vectors that hold sums

    static Float load(const T* p)
    {
        Float r;
        std::memcpy(r.lane, p, sizeof(r.lane));
        return r;
    }

    // The first `count` lanes from memory, the others from `rest`.
    static Float load(const T* p, int count, Float rest)
    {
        if (count >= N)
        {
            return load(p);
        }
        for (int i = 0; i < count; ++i)
        {
            rest.lane[i] = p[i];
        }
        return rest;
    }

    static Int load(const int32_t* p)
    {
        Int r;
        std::memcpy(r.lane, p, sizeof(r.lane));
        return r;
    }

    static void store(T* p, const Float& x)
    {
        std::memcpy(p, x.lane, sizeof(x.lane));
    }

    // The first `count` lanes only.
    static void store(T* p, const Float& x, int count)
    {
        if (count >= N)
        {
            return store(p, x);
        }
        for (int i = 0; i < count; ++i)
        {
            p[i] = x.lane[i];
        }
    }

    static void store(int32_t* p, const Int& x)
    {
        std::memcpy(p, x.lane, sizeof(x.lane));
    }

    // `count` pairs (x, y) from memory, then zeros.
    static void loadPairs(const T* p, int count, Float& x, Float& y)
    {
        x = y = Float(T(0));
        for (int i = 0; i < N && i < count; ++i)
        {
            x.lane[i] = p[2 * i];
            y.lane[i] = p[2 * i + 1];
        }
    }

    static void storePairs(T* p, const Float& x, const Float& y, int count)
    {
        for (int i = 0; i < N && i < count; ++i)
        {
            p[2 * i] = x.lane[i];
            p[2 * i + 1] = y.lane[i];
        }
    }

    // The first `count` lanes, then zeros.
    static Float firstOf(const Float& x, int count)
    {
        Float r(T(0));
        for (int i = 0; i < N && i < count; ++i)
        {
            r.lane[i] = x.lane[i];
        }
        return r;
    }

    // Stores the sum of the lanes of each.
    static void storeSums(T* p, const Float (&x)[4])
    {
        for (int i = 0; i < 4; ++i)
        {
            p[i] = sumOfLanes(x[i]);
        }
    }

    // table[index] for a table of `size` entries.
    static Float lookUp(const T* table, int /*size*/, const Int& index)
    {
        Float r;
        for (int i = 0; i < N; ++i)
        {
            r.lane[i] = table[index.lane[i]];
        }
        return r;
    }

    using Quad = const T*; // four numbers

    static Quad loadQuad(const T* p)
    {
        return p;
    }

    template <int kLane>
    static Float splat(Quad quad)
    {
        return Float(quad[kLane]);
    }

    static Float multiplyAdd(const Float& a, const Float& b, const Float& c)
    {
        return a * b + c;
    }

    static T maxOfLanes(const Float& x)
    {
        T r = x.lane[0];
        for (int i = 1; i < N; ++i)
        {
            r = x.lane[i] > r ? x.lane[i] : r;
        }
        return r;
    }

    static T sumOfLanes(const Float& x)
    {
        T r(0);
        for (const T l : x.lane)
        {
            r += l;
        }
        return r;
    }

    // exp(x - highest).
    static Float expOf(const Float& x, const Float& highest)
    {
        Float r;
        for (int i = 0; i < N; ++i)
        {
            r.lane[i] = std::exp(x.lane[i] - highest.lane[i]);
        }
        return r;
    }

    static void loadTwo(const T* p, Float& a, Float& b)
    {
        a = load(p);
        b = load(p + N);
    }

    static void loadTwo(const uint16_t* p, Float& a, Float& b)
    {
        for (int i = 0; i < N; ++i)
        {
            const uint32_t bitsA = static_cast<uint32_t>(p[i]) << 16;
            const uint32_t bitsB = static_cast<uint32_t>(p[N + i]) << 16;
            std::memcpy(&a.lane[i], &bitsA, sizeof(bitsA));
            std::memcpy(&b.lane[i], &bitsB, sizeof(bitsB));
        }
    }

    // Rounds to bfloat16, to nearest even; NaN stays NaN.
    static void toBFloat16(const float* from, uint16_t* to, int count)
    {
        for (int i = 0; i < count; ++i)
        {
            uint32_t bits;
            std::memcpy(&bits, from + i, sizeof(bits));
            const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
            const bool isNaN = (bits & 0x7fffffffu) > 0x7f800000u;
            to[i] = static_cast<uint16_t>(isNaN ? 0x7fc0u : rounded);
        }
    }
};

} // namespace detr
