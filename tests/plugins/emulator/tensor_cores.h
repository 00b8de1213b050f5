// The tensor cores' product that the project's kernels use.
#pragma once

#include "cuda_runtime.h"
#include "half_types.h"

#include <cmath>
#include <cstdint>
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
        largest = std::fmax(largest, std::fabs(product));
    }
    if (!(largest > 0.0f && largest < INFINITY))
    {
        return c + products[0] + products[1] + products[2] + products[3];
    }
    const double place = std::ldexp(1.0, std::ilogb(largest) - 23);
    double sum = std::trunc(c / place);
    for (const float product : products)
    {
        sum += std::trunc(product / place);
    }
    const float nearest = static_cast<float>(sum * place);
    const bool isLarger = std::fabs(nearest) > std::fabs(sum * place);
    return isLarger ? std::nextafter(nearest, 0.0f) : nearest;
}

// mma.m16n8k8 of float16 with float32 sums, for a whole warp. Source: PTX ISA, matrix fragments for
// mma.m16n8k8.
inline void multiply(float (&d)[4], unsigned a, unsigned a8, unsigned b)
{
    static unsigned passed[kWarpSize][3]; // warps take turns only at barriers of blocks
    const int noLine = -1, group = lane() / 4, inGroup = lane() % 4;
    passed[lane()][0] = a, passed[lane()][1] = a8, passed[lane()][2] = b;
    waitFor(Barrier::kWarp, noLine);
    for (int i = 0; i < 4; ++i)
    {
        for (int half = 0; half < 2; ++half)
        {
            float products[4];
            for (int k = 0; k < 4; ++k)
            {
                const int from = 2 * half + k / 2;
                const unsigned row = passed[4 * group + from][i / 2];
                const unsigned column = passed[4 * (2 * inGroup + i % 2) + from][2];
                products[k] = halfOf(row, k % 2) * halfOf(column, k % 2);
            }
            d[i] = cutOffSum(d[i], products);
        }
    }
    waitFor(Barrier::kWarp, noLine);
}

} // namespace emulator
