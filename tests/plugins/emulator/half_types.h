// What the project's kernels use of CUDA's 16-bit floats: loading, storing and conversion.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct __half
{
    uint16_t bits;

    __half() = default;

    // Rounds to nearest, ties to even, like the CPU by default.
    explicit __half(float x)
    {
        const float size = std::fabs(x);
        const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
        if (!(size < 65520.0f))
        {
            bits = static_cast<uint16_t>(sign | (std::isnan(x) ? 0x7e00 : 0x7c00));
            return;
        }
        const int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
        const int mantissa = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
        bits = static_cast<uint16_t>(sign | ((exponent + 14) * 1024 + mantissa));
    }

    operator float() const
    {
        const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
        float size = std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
        if (exponent == 0)
        {
            size = std::ldexp(static_cast<float>(mantissa), -24);
        }
        else if (exponent == 31)
        {
            size = mantissa == 0 ? INFINITY : NAN;
        }
        return (bits & 0x8000) != 0 ? -size : size;
    }
};

struct __nv_bfloat16
{
    uint16_t bits;

    __nv_bfloat16() = default;

    explicit __nv_bfloat16(float x)
    {
        uint32_t word;
        std::memcpy(&word, &x, sizeof(word));
        word = std::isnan(x) ? 0x7fc00000u : word + 0x7fffu + ((word >> 16) & 1u);
        bits = static_cast<uint16_t>(word >> 16);
    }

    operator float() const
    {
        const uint32_t word = static_cast<uint32_t>(bits) << 16;
        float result;
        std::memcpy(&result, &word, sizeof(result));
        return result;
    }
};
