// The tensor cores' product that the project's kernels use.
#pragma once

#include "cuda_runtime.h"
#include "half_types.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace emulator
{

inline float halfOf(unsigned word, int index)
{
    __half half;
    half.bits = static_cast<uint16_t>(word >> (16 * index));
    return half;
}

// The sum of c and four products, as the coarsest of tensor cores round it: every addend is cut off
// at the last place of the largest, and the sum at its own. Source: Fasi, Higham, Mikaitis and
// Pranesh, Numerical behavior of NVIDIA tensor cores, PeerJ Computer Science 7:e330, 2021.
inline float cutOffSum(float c, const float (&products)[4])
{
    float largest = std::fabs(c);
    for (const float product : products)
    {
        largest = std::max(largest, std::fabs(product));
    }
    const float sum = c + products[0] + products[1] + products[2] + products[3];
    if (!std::isfinite(sum) || !std::isnormal(largest))
    {
        return sum;
    }
    uint32_t bits;
    std::memcpy(&bits, &largest, sizeof(bits));
    bits &= 0x7f800000u;
    float power; // of two: the largest's
    std::memcpy(&power, &bits, sizeof(power));
    const double place = power * 0x1p-23, places = 1 / place;
    auto exact = static_cast<int64_t>(c * places);
    for (const float product : products)
    {
        exact += static_cast<int64_t>(product * places);
    }
    int64_t unit = 1;
    for (; std::abs(exact / unit) >= 1 << 24; unit *= 2)
    {
    }
    return static_cast<float>(static_cast<double>(exact / unit * unit) * place);
}

// mma.m16n8k8 of float16 with float32 sums, for a whole warp. Source: PTX ISA, matrix fragments for
// mma.m16n8k8.
inline void multiply(float (&d)[4], unsigned a, unsigned a8, unsigned b)
{
    struct Passed
    {
        float rows[2][2], column[2];
    };
    static Passed buffers[2][kWarpSize]; // of two successive products, as some lanes may be ahead
    static int numProducts[kWarpSize];
    const int noLine = -1, group = lane() / 4, inGroup = lane() % 4;
    auto& passed = buffers[numProducts[lane()]++ % 2];
    passed[lane()] = {{{halfOf(a, 0), halfOf(a, 1)}, {halfOf(a8, 0), halfOf(a8, 1)}},
        {halfOf(b, 0), halfOf(b, 1)}};
    waitFor(Barrier::kWarp, noLine);
    for (int i = 0; i < 4; ++i)
    {
        for (int first = 0; first < 8; first += 4)
        {
            float products[4];
            for (int k = 0; k < 4; ++k)
            {
                const int from = (first + k) / 2;
                const Passed& row = passed[4 * group + from];
                const Passed& column = passed[4 * (2 * inGroup + i % 2) + from];
                products[k] = row.rows[i / 2][k % 2] * column.column[k % 2];
            }
            d[i] = cutOffSum(d[i], products);
        }
    }
}

} // namespace emulator
