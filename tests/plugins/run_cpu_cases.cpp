// Runs calls of the CPU kernels through their C interface, for the sanitizers: every tensor ends
// where its memory does. What they compute is compared elsewhere, in Python.
//
//     run_cpu_cases < SIZES
//
// Reads one line per call: batch, queries, heads, channels, points, coordinates per reference
// point, then the height and width of every level. Prints one line per call.
#include "../../plugins/ms_deform_attn/core/kernel_cpu.h"

#include <cmath>
#include <cstdio>
#include <iostream>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <vector>

extern "C" int detrForward(
    const detr::MSDeformAttnParams* params, int storage, int isa, int numThreads);
extern "C" int detrBackward(const detr::MSDeformAttnParams* params,
    const detr::MSDeformAttnGradients* gradients, int storage, int isa, int numThreads);
extern "C" const char* detrLastError();

namespace
{

constexpr int kNumThreads = 3;

template <typename T>
std::vector<T> randomNumbers(size_t count, T spread)
{
    static std::mt19937 generator;
    std::vector<T> numbers(count);
    for (size_t i = 0; i < count; ++i)
    {
        numbers[i] = std::uniform_real_distribution<T>(-spread, spread)(generator);
    }
    return numbers;
}

bool succeeds(int status)
{
    if (status != 0)
    {
        std::printf("%s\n", detrLastError());
    }
    return status == 0;
}

template <typename T>
bool runCall(detr::MSDeformAttnParams p, const std::vector<detr::ValueStorage>& storages)
{
    const size_t b = p.batch, s = p.numTokens, q = p.numQueries, m = p.numHeads, d = p.headDim;
    const size_t l = p.numLevels, n = l * p.numPoints, r = p.referenceDim;
    const std::vector<T> value = randomNumbers<T>(b * s * m * d, 1);
    const std::vector<T> references = randomNumbers<T>(b * q * l * r, 2);
    std::vector<T> offsets = randomNumbers<T>(b * q * m * n * 2, 9);
    const T strange[] = {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity(),
        -std::numeric_limits<T>::infinity(), std::numeric_limits<T>::max()};
    for (size_t i = 0; i < offsets.size(); i += 7)
    {
        offsets[i] = strange[i % 4];
    }
    const std::vector<T> logits = randomNumbers<T>(b * q * m * n, 3);
    std::vector<T> output(b * q * m * d);
    std::vector<T> gradients[4] = {value, references, offsets, logits};
    p.value = value.data();
    p.referencePoints = references.data();
    p.samplingOffsets = offsets.data();
    p.attentionLogits = logits.data();
    p.output = output.data();
    for (int isa = 0; isa <= static_cast<int>(detr::bestIsa()); ++isa)
    {
        for (const detr::ValueStorage storage : storages)
        {
            if (!succeeds(detrForward(&p, static_cast<int>(storage), isa, kNumThreads)))
            {
                return false;
            }
        }
        const detr::MSDeformAttnGradients to{output.data(), gradients[0].data(),
            gradients[1].data(), gradients[2].data(), gradients[3].data()};
        if (!succeeds(detrBackward(&p, &to, static_cast<int>(storages[0]), isa, kNumThreads)))
        {
            return false;
        }
        for (const std::vector<T>* numbers : {&output, &gradients[0], &gradients[3]})
        {
            for (const T number : *numbers)
            {
                if (!std::isfinite(number))
                {
                    std::printf("a result is not finite\n");
                    return false;
                }
            }
        }
    }
    return true;
}

} // namespace

int main()
{
    std::string line;
    while (std::getline(std::cin, line))
    {
        std::istringstream sizes(line);
        detr::MSDeformAttnParams p{};
        sizes >> p.batch >> p.numQueries >> p.numHeads >> p.headDim >> p.numPoints
            >> p.referenceDim;
        std::vector<int32_t> shapes;
        for (int32_t height = 0, width = 0; sizes >> height >> width;)
        {
            shapes.insert(shapes.end(), {height, width});
            p.numTokens += height * width;
            ++p.numLevels;
        }
        p.spatialShapes = shapes.data();
        using Storage = detr::ValueStorage;
        const bool isGood = runCall<float>(p, {Storage::kFloat32, Storage::kBFloat16})
            && runCall<double>(p, {Storage::kFloat64});
        std::printf("%s %s\n", isGood ? "good" : "bad", line.c_str());
    }
    return 0;
}
