// Computes the gradients of the float32 calls in a file. Every tensor has a buffer of its
// exact size, so that a sanitizer sees any access beyond it.
//
//     run_gradients INPUT
#include "cases.h"
#include "cuda_runtime.h"

#include <cstdio>
#include <fstream>

namespace
{

void run(const emulator::Case& call, bool isDeterministic)
{
    const emulator::Header& h = call.header;
    const detr::MSDeformAttnParams params{h.batch, h.numTokens, h.numQueries, h.numHeads, h.headDim,
        h.numLevels, h.numPoints, h.referenceDim, call.value.data,
        reinterpret_cast<const int32_t*>(call.spatialShapes.data), call.referencePoints.data,
        call.samplingOffsets.data, call.attentionLogits.data, nullptr};
    const emulator::Buffer value(call.value.size, call.shift);
    const emulator::Buffer offsets(call.samplingOffsets.size, 0);
    const emulator::Buffer logits(call.attentionLogits.size, 0);
    const emulator::Buffer references(call.m * call.referencePoints.size, 0);
    const emulator::Buffer fixedPoint(2 * call.value.size, 0);
    const emulator::Buffer out(call.output.size, call.shift);
    std::memset(out.data, 0, out.size);
    const float largest = 1.0f;
    const detr::MSDeformAttnCudaGradients gradients{out.data, reinterpret_cast<float*>(value.data),
        reinterpret_cast<float*>(references.data), offsets.data, logits.data,
        isDeterministic ? reinterpret_cast<unsigned long long*>(fixedPoint.data) : nullptr,
        &largest};
    const cudaError_t error
        = detr::launchMSDeformAttnBackward(params, gradients, call.type(), nullptr);
    std::printf("%s\n", cudaGetErrorString(error));
}

} // namespace

int main(int argc, char** argv)
{
    if (argc != 2)
    {
        std::fprintf(stderr, "expected a file to read\n");
        return EXIT_FAILURE;
    }
    std::ifstream input(argv[1], std::ios::binary);
    emulator::Header h;
    while (input.read(reinterpret_cast<char*>(&h), sizeof(h)))
    {
        const emulator::Case call(h, input);
        run(call, false);
        run(call, true);
    }
    return EXIT_SUCCESS;
}
