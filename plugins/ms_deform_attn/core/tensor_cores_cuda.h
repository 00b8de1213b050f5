// Weighted sums of float16 values on tensor cores, with weights in two parts.
//
// mma.m16n8k8 computes D += A B: A is 16 x 8 and B 8 x 8 numbers of float16, D is of float32. With
// g = lane / 4 and t = lane % 4, a lane of the warp passes and gets
//
//   A   rows g and g + 8, columns 2 t and 2 t + 1
//   B   column g, rows 2 t and 2 t + 1
//   D   rows g and g + 8, columns 2 t and 2 t + 1.
//
// A lane loads 8 channels of a pixel. Either half of them is what it passes for A, as it is:
//
//   row g             an item of two and 8 of its channels: the first two of the half
//   row g + 8         the same, the other two of the half
//   column of A       a sample of four, the parity of the channel
//   column of B, D    an item of two, the parity of the channel, a part of the weight.
//
// B is zero where the parities differ. In a row of D, the columns of its own item count.
#pragma once

#include "taps_cuda.h"

namespace detr
{

// D += A B for a warp: what this lane passes and gets; `a` is row g, `a8` row g + 8.
__device__ inline void multiply(float (&d)[4], unsigned a, unsigned a8, unsigned b)
{
#if defined(__CUDACC__)
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a), "r"(a8), "r"(b));
#else
    emulator::multiply(d, a, a8, b);
#endif
}

// The weights of a sample's four pixels: part[0] + part[1] / kScale.
struct SplitWeights
{
    static constexpr float kScale = 2048.0f; // otherwise the second part would be subnormal

    Pack<__half, 4> part[2];
};

__device__ inline SplitWeights split(float4 weight)
{
    const float weights[] = {weight.x, weight.y, weight.z, weight.w};
    SplitWeights result;
#pragma unroll
    for (int i = 0; i < 4; ++i)
    {
        const __half rounded(weights[i]);
        const float rest = weights[i] - static_cast<float>(rounded);
        result.part[0].element[i] = rounded;
        result.part[1].element[i] = __half(rest * SplitWeights::kScale);
    }
    return result;
}

// Sums 16 samples for each of a warp's two items; 16 lanes share an item. `values` points to the
// lane's channels of token 0, which are 8 from lane / 4 * 8 on; `offsets` and `weights` to the
// item's first sample. `sum` is of 4 of these channels, from lane % 2 * 4 on. It is the item's if
// lane % 4 / 2 is the item's number in the warp; in other lanes it has no meaning.
__device__ inline void sumOnTensorCores(float (&sum)[4], const Pack<__half, 8>* values,
    const int4* offsets, const SplitWeights* weights, int lane)
{
    const int parity = lane / 8, part = lane / 4 % 2; // of the lane's column of B
    // The lower or upper half of a word: into the half of the lane's parity, and zero beside it.
    const unsigned lower = parity == 0 ? 0x4410u : 0x1044u;
    const unsigned upper = parity == 0 ? 0x4432u : 0x3244u;
    float first[4] = {}, second[4] = {}; // D, of each half of the channels
#pragma unroll
    for (int i = 0; i < kLanes; i += 4)
    {
        const int sample = i + lane % 4;
        const int4 offset = offsets[sample];
        const int pixels[] = {offset.x, offset.y, offset.z, offset.w};
        unsigned words[2];
        memcpy(words, weights[sample].part[part].element, sizeof(words));
#pragma unroll
        for (int pixel = 0; pixel < 4; ++pixel)
        {
            const Pack<__half, 8> loaded = values[static_cast<unsigned>(pixels[pixel])];
            unsigned a[4];
            memcpy(a, loaded.element, sizeof(a));
            const unsigned b = __byte_perm(words[pixel / 2], 0, pixel % 2 == 0 ? lower : upper);
            multiply(first, a[0], a[1], b);
            multiply(second, a[2], a[3], b);
        }
    }
    // A lane has the channels of one parity, and the lane beside it the others.
    constexpr float kScale = 1.0f / SplitWeights::kScale;
    const float own[] = {first[0] + kScale * first[1], first[2] + kScale * first[3],
        second[0] + kScale * second[1], second[2] + kScale * second[3]};
    const bool isOdd = lane % 2 != 0;
#pragma unroll
    for (int i = 0; i < 2; ++i)
    {
        const float kept = isOdd ? own[i + 2] : own[i], given = isOdd ? own[i] : own[i + 2];
        const float got = __shfl_xor_sync(kWholeWarp, given, 1);
        sum[2 * i] = isOdd ? got : kept;
        sum[2 * i + 1] = isOdd ? kept : got;
    }
}

} // namespace detr
