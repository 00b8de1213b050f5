// Vectors of AVX2 with FMA; included by kernel_avx2.cpp only.
#pragma once

#include "exponential.h"
#include "sampling.h"

#include <immintrin.h>

#include <cstdint>

namespace detr
{

struct Avx2Float
{
    __m256 v;

    Avx2Float() = default;

    Avx2Float(__m256 x)
        : v(x)
    {
    }

    explicit Avx2Float(float x)
        : v(_mm256_set1_ps(x))
    {
    }
};

struct Avx2Int
{
    __m256i v;

    Avx2Int()
        : v(_mm256_setzero_si256())
    {
    }

    Avx2Int(__m256i x)
        : v(x)
    {
    }

    explicit Avx2Int(int32_t x)
        : v(_mm256_set1_epi32(x))
    {
    }
};

// In each lane, all bits are set or none.
struct Avx2Mask
{
    __m256 m;
};

inline Avx2Float operator+(Avx2Float a, Avx2Float b)
{
    return _mm256_add_ps(a.v, b.v);
}

inline Avx2Float operator-(Avx2Float a, Avx2Float b)
{
    return _mm256_sub_ps(a.v, b.v);
}

inline Avx2Float operator*(Avx2Float a, Avx2Float b)
{
    return _mm256_mul_ps(a.v, b.v);
}

inline Avx2Float operator-(Avx2Float a)
{
    return _mm256_xor_ps(a.v, _mm256_set1_ps(-0.0f));
}

inline Avx2Mask operator>(Avx2Float a, Avx2Float b)
{
    return {_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)};
}

inline Avx2Mask operator<(Avx2Float a, Avx2Float b)
{
    return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)};
}

inline Avx2Mask operator>=(Avx2Float a, Avx2Float b)
{
    return {_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)};
}

inline Avx2Int operator+(Avx2Int a, Avx2Int b)
{
    return _mm256_add_epi32(a.v, b.v);
}

inline Avx2Int operator*(Avx2Int a, Avx2Int b)
{
    return _mm256_mullo_epi32(a.v, b.v);
}

inline Avx2Int operator+(Avx2Int a, int32_t b)
{
    return _mm256_add_epi32(a.v, _mm256_set1_epi32(b));
}

inline Avx2Int operator-(Avx2Int a, int32_t b)
{
    return _mm256_sub_epi32(a.v, _mm256_set1_epi32(b));
}

inline Avx2Mask operator==(Avx2Int a, Avx2Int b)
{
    return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(a.v, b.v))};
}

inline Avx2Float select(Avx2Mask condition, Avx2Float yes, Avx2Float no)
{
    return _mm256_blendv_ps(no.v, yes.v, condition.m);
}

inline Avx2Float atLeast(Avx2Float x, Avx2Float bound)
{
    return _mm256_max_ps(x.v, bound.v); // the second if either is NaN
}

inline Avx2Float atMost(Avx2Float x, Avx2Float bound)
{
    return _mm256_min_ps(x.v, bound.v);
}

inline Avx2Int atLeast(Avx2Int x, Avx2Int bound)
{
    return _mm256_max_epi32(x.v, bound.v);
}

inline Avx2Int atMost(Avx2Int x, Avx2Int bound)
{
    return _mm256_min_epi32(x.v, bound.v);
}

inline Avx2Float floorOf(Avx2Float x)
{
    return _mm256_floor_ps(x.v);
}

template <typename Int>
inline Avx2Int toInt(Avx2Float x)
{
    return _mm256_cvttps_epi32(x.v);
}

// What the kernels need from an instruction set; see vector_portable.h.
struct Avx2
{
    using Scalar = float;
    using Float = Avx2Float;
    using Int = Avx2Int;
    static constexpr int kLanes = 8;
    static constexpr int kMaxPairs = 2;
    static constexpr int kAccumulators = 8;

    // All bits of the first `count` lanes.
    static __m256i firstLanes(int count)
    {
        const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes);
    }

    static Float load(const float* p)
    {
        return _mm256_loadu_ps(p);
    }

    static Float load(const float* p, int count, Float rest)
    {
        if (count >= kLanes)
        {
            return load(p);
        }
        const __m256i mask = firstLanes(count);
        return _mm256_blendv_ps(rest.v, _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask));
    }

    static Int load(const int32_t* p)
    {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    }

    static void store(float* p, Float x)
    {
        _mm256_storeu_ps(p, x.v);
    }

    static void store(float* p, Float x, int count)
    {
        if (count >= kLanes)
        {
            return store(p, x);
        }
        _mm256_maskstore_ps(p, firstLanes(count), x.v);
    }

    static void store(int32_t* p, Int x)
    {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.v);
    }

    static void loadPairs(const float* p, int count, Float& x, Float& y)
    {
        const Float zero(0.0f);
        const Float first = load(p, 2 * count, zero);
        const Float second = count > kLanes / 2 ? load(p + kLanes, 2 * count - kLanes, zero) : zero;
        const __m256 low = _mm256_permute2f128_ps(first.v, second.v, 0x20);
        const __m256 high = _mm256_permute2f128_ps(first.v, second.v, 0x31);
        x = _mm256_shuffle_ps(low, high, 0x88);
        y = _mm256_shuffle_ps(low, high, 0xdd);
    }

    static void storePairs(float* p, Float x, Float y, int count)
    {
        const __m256 low = _mm256_unpacklo_ps(x.v, y.v);
        const __m256 high = _mm256_unpackhi_ps(x.v, y.v);
        store(p, _mm256_permute2f128_ps(low, high, 0x20), 2 * count);
        store(p + kLanes, _mm256_permute2f128_ps(low, high, 0x31), 2 * count - kLanes);
    }

    static Float firstOf(Float x, int count)
    {
        return _mm256_and_ps(x.v, _mm256_castsi256_ps(firstLanes(count)));
    }

    static void storeSums(float* p, const Float (&x)[4])
    {
        const __m256 sums =
            _mm256_hadd_ps(_mm256_hadd_ps(x[0].v, x[1].v), _mm256_hadd_ps(x[2].v, x[3].v));
        _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
    }

    static Float lookUp(const float* table, int size, Int index)
    {
        if (size <= kLanes)
        {
            return _mm256_permutevar8x32_ps(load(table, size, Float(0.0f)).v, index.v);
        }
        return _mm256_i32gather_ps(table, index.v, sizeof(float));
    }

    using Quad = __m256; // four floats, in each half

    static Quad loadQuad(const float* p)
    {
        return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
    }

    template <int kLane>
    static Float splat(Quad quad)
    {
        return _mm256_permute_ps(quad, kLane * 0x55);
    }

    static Float multiplyAdd(Float a, Float b, Float c)
    {
        return _mm256_fmadd_ps(a.v, b.v, c.v);
    }

    static float maxOfLanes(Float x)
    {
        __m128 m = _mm_max_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
        m = _mm_max_ps(m, _mm_movehl_ps(m, m));
        return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
    }

    static float sumOfLanes(Float x)
    {
        __m128 s = _mm_add_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
        s = _mm_add_ps(s, _mm_movehl_ps(s, s));
        return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
    }

    static Float timesPowerOfTwo(Float x, Float exponent)
    {
        const __m256i bits = _mm256_slli_epi32(_mm256_cvttps_epi32(exponent.v), 23);
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x.v), bits));
    }

    static Float nearestOf(Float x)
    {
        return _mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }

    static Float expOf(Float x, Float highest)
    {
        return exponential<Avx2>(x, highest);
    }

    static void loadTwo(const float* p, Float& a, Float& b)
    {
        a = load(p);
        b = load(p + kLanes);
    }

    // In each half of a block of 32, channel i is beside channel 8 + i.
    static void loadTwo(const uint16_t* p, Float& a, Float& b)
    {
        const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        a = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
        b = _mm256_castsi256_ps(
            _mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
    }

    static void toBFloat16(const float* from, uint16_t* to, int count)
    {
        for (int i = 0; i < count; i += 2 * kLanes)
        {
            const __m256i low = roundToBFloat16(_mm256_loadu_ps(from + i));
            const __m256i high = roundToBFloat16(_mm256_loadu_ps(from + i + kLanes));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i),
                _mm256_blend_epi16(_mm256_srli_epi32(low, 16), high, 0xaa));
        }
    }

    // Rounds to nearest even, in the upper half of each lane; NaN stays NaN.
    static __m256i roundToBFloat16(__m256 x)
    {
        const __m256i bits = _mm256_castps_si256(x);
        const __m256i isOdd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i rounded =
            _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), isOdd);
        const __m256i isNaN = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), isNaN);
    }
};

} // namespace detr
