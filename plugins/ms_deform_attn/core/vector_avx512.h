// Vectors of AVX-512 (F, BW, DQ, VL); included by kernel_avx512.cpp only.
#pragma once

#include "exponential.h"
#include "sampling.h"

#include <immintrin.h>

#include <cstdint>

namespace detr
{

struct Avx512Float
{
    __m512 v;

    Avx512Float() = default;

    Avx512Float(__m512 x)
        : v(x)
    {
    }

    explicit Avx512Float(float x)
        : v(_mm512_set1_ps(x))
    {
    }
};

struct Avx512Int
{
    __m512i v;

    Avx512Int()
        : v(_mm512_setzero_si512())
    {
    }

    Avx512Int(__m512i x)
        : v(x)
    {
    }

    explicit Avx512Int(int32_t x)
        : v(_mm512_set1_epi32(x))
    {
    }
};

struct Avx512Mask
{
    __mmask16 m;
};

inline Avx512Float operator+(Avx512Float a, Avx512Float b)
{
    return _mm512_add_ps(a.v, b.v);
}

inline Avx512Float operator-(Avx512Float a, Avx512Float b)
{
    return _mm512_sub_ps(a.v, b.v);
}

inline Avx512Float operator*(Avx512Float a, Avx512Float b)
{
    return _mm512_mul_ps(a.v, b.v);
}

inline Avx512Float operator-(Avx512Float a)
{
    return _mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f));
}

inline Avx512Mask operator>(Avx512Float a, Avx512Float b)
{
    return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)};
}

inline Avx512Mask operator<(Avx512Float a, Avx512Float b)
{
    return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)};
}

inline Avx512Mask operator>=(Avx512Float a, Avx512Float b)
{
    return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)};
}

inline Avx512Int operator+(Avx512Int a, Avx512Int b)
{
    return _mm512_add_epi32(a.v, b.v);
}

inline Avx512Int operator*(Avx512Int a, Avx512Int b)
{
    return _mm512_mullo_epi32(a.v, b.v);
}

inline Avx512Int operator+(Avx512Int a, int32_t b)
{
    return _mm512_add_epi32(a.v, _mm512_set1_epi32(b));
}

inline Avx512Int operator-(Avx512Int a, int32_t b)
{
    return _mm512_sub_epi32(a.v, _mm512_set1_epi32(b));
}

inline Avx512Mask operator==(Avx512Int a, Avx512Int b)
{
    return {_mm512_cmpeq_epi32_mask(a.v, b.v)};
}

inline Avx512Float select(Avx512Mask condition, Avx512Float yes, Avx512Float no)
{
    return _mm512_mask_mov_ps(no.v, condition.m, yes.v);
}

inline Avx512Float atLeast(Avx512Float x, Avx512Float bound)
{
    return _mm512_max_ps(x.v, bound.v); // the second if either is NaN
}

inline Avx512Float atMost(Avx512Float x, Avx512Float bound)
{
    return _mm512_min_ps(x.v, bound.v);
}

inline Avx512Int atLeast(Avx512Int x, Avx512Int bound)
{
    return _mm512_max_epi32(x.v, bound.v);
}

inline Avx512Int atMost(Avx512Int x, Avx512Int bound)
{
    return _mm512_min_epi32(x.v, bound.v);
}

inline Avx512Float floorOf(Avx512Float x)
{
    return _mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}

template <typename Int>
inline Avx512Int toInt(Avx512Float x)
{
    return _mm512_cvttps_epi32(x.v);
}

// What the kernels need from an instruction set; see vector_portable.h.
struct Avx512
{
    using Scalar = float;
    using Float = Avx512Float;
    using Int = Avx512Int;
    static constexpr int kLanes = 16;
    static constexpr int kMaxPairs = 8;
    static constexpr int kAccumulators = 16;

    static __mmask16 firstLanes(int count)
    {
        return static_cast<__mmask16>(count >= kLanes ? 0xffffu : (1u << count) - 1u);
    }

    static Float load(const float* p)
    {
        return _mm512_loadu_ps(p);
    }

    static Float load(const float* p, int count, Float rest)
    {
        if (count >= kLanes)
        {
            return load(p);
        }
        return _mm512_mask_loadu_ps(rest.v, firstLanes(count), p);
    }

    static Int load(const int32_t* p)
    {
        return _mm512_loadu_si512(p);
    }

    static void store(float* p, Float x)
    {
        _mm512_storeu_ps(p, x.v);
    }

    static void store(float* p, Float x, int count)
    {
        if (count >= kLanes)
        {
            return store(p, x);
        }
        _mm512_mask_storeu_ps(p, firstLanes(count), x.v);
    }

    static void store(int32_t* p, Int x)
    {
        _mm512_storeu_si512(p, x.v);
    }

    static void loadPairs(const float* p, int count, Float& x, Float& y)
    {
        const Float zero(0.0f);
        const Float first = load(p, 2 * count, zero);
        const Float second = count > kLanes / 2 ? load(p + kLanes, 2 * count - kLanes, zero) : zero;
        const __m512i even =
            _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
        x = _mm512_permutex2var_ps(first.v, even, second.v);
        y = _mm512_permutex2var_ps(first.v, odd, second.v);
    }

    static void storePairs(float* p, Float x, Float y, int count)
    {
        const __m512i first =
            _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(kLanes / 2));
        store(p, _mm512_permutex2var_ps(x.v, first, y.v), 2 * count);
        if (count > kLanes / 2)
        {
            store(p + kLanes, _mm512_permutex2var_ps(x.v, second, y.v), 2 * count - kLanes);
        }
    }

    static Float firstOf(Float x, int count)
    {
        return _mm512_maskz_mov_ps(firstLanes(count), x.v);
    }

    static void storeSums(float* p, const Float (&x)[4])
    {
        __m256 half[4];
        for (int i = 0; i < 4; ++i)
        {
            half[i] =
                _mm256_add_ps(_mm512_castps512_ps256(x[i].v), _mm512_extractf32x8_ps(x[i].v, 1));
        }
        const __m256 sums =
            _mm256_hadd_ps(_mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
        _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
    }

    static Float lookUp(const float* table, int size, Int index)
    {
        if (size <= kLanes)
        {
            return _mm512_permutexvar_ps(index.v, load(table, size, Float(0.0f)).v);
        }
        return _mm512_i32gather_ps(index.v, table, sizeof(float));
    }

    using Quad = __m512; // four floats, in each quarter

    static Quad loadQuad(const float* p)
    {
        return _mm512_broadcast_f32x4(_mm_loadu_ps(p));
    }

    template <int kLane>
    static Float splat(Quad quad)
    {
        return _mm512_permute_ps(quad, kLane * 0x55);
    }

    static Float multiplyAdd(Float a, Float b, Float c)
    {
        return _mm512_fmadd_ps(a.v, b.v, c.v);
    }

    static float maxOfLanes(Float x)
    {
        return _mm512_reduce_max_ps(x.v);
    }

    static float sumOfLanes(Float x)
    {
        return _mm512_reduce_add_ps(x.v);
    }

    static Float timesPowerOfTwo(Float x, Float exponent)
    {
        return _mm512_scalef_ps(x.v, exponent.v);
    }

    static Float nearestOf(Float x)
    {
        return _mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }

    static Float expOf(Float x, Float highest)
    {
        return exponential<Avx512>(x, highest);
    }

    static void loadTwo(const float* p, Float& a, Float& b)
    {
        a = load(p);
        b = load(p + kLanes);
    }

    // In a block of 32, channel i is beside channel 16 + i.
    static void loadTwo(const uint16_t* p, Float& a, Float& b)
    {
        const __m512i both = _mm512_loadu_si512(p);
        a = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
        b = _mm512_castsi512_ps(
            _mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
    }

    static void toBFloat16(const float* from, uint16_t* to, int count)
    {
        for (int i = 0; i < count; i += 2 * kLanes)
        {
            const __m512i low = roundToBFloat16(_mm512_loadu_ps(from + i));
            const __m512i high = roundToBFloat16(_mm512_loadu_ps(from + i + kLanes));
            _mm512_storeu_si512(
                to + i, _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(low, 16), high));
        }
    }

    // Rounds to nearest even, in the upper half of each lane; NaN stays NaN.
    static __m512i roundToBFloat16(__m512 x)
    {
        const __m512i bits = _mm512_castps_si512(x);
        const __m512i isOdd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i rounded =
            _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), isOdd);
        const __mmask16 isNaN = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        return _mm512_mask_mov_epi32(rounded, isNaN, _mm512_set1_epi32(0x7fc00000));
    }
};

} // namespace detr
