// Runs the calls of the operator in a file on a GPU and writes their outputs to another. Computes
// their gradients as well, in both modes, for a sanitizer to watch.
//
//     run_cases INPUT OUTPUT
#include "../plugins/emulator/cases.h"

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>

namespace
{

void check(cudaError_t error, const char* what)
{
    if (error != cudaSuccess)
    {
        std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
        std::exit(EXIT_FAILURE);
    }
}

// A tensor on the GPU in a buffer of exactly its size, so that a sanitizer sees any access beyond
// it.
class OnDevice
{
public:
    explicit OnDevice(size_t size, size_t shift = 0)
        : mSize(size)
    {
        check(cudaMalloc(&mMemory, shift + size + (size == 0)), "cudaMalloc");
        data = static_cast<char*>(mMemory) + shift;
    }

    explicit OnDevice(const emulator::Buffer& host, size_t shift = 0)
        : OnDevice(host.size, shift)
    {
        check(cudaMemcpy(data, host.data, mSize, cudaMemcpyHostToDevice), "upload");
    }

    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

    ~OnDevice()
    {
        check(cudaFree(mMemory), "cudaFree");
    }

    void download(const emulator::Buffer& host) const
    {
        check(cudaMemcpy(host.data, data, mSize, cudaMemcpyDeviceToHost), "download");
    }

    char* data;

private:
    size_t mSize;
    void* mMemory = nullptr;
};

// The gradients of a call whose output has itself as its gradient.
void runGradients(const emulator::Case& call, const detr::MSDeformAttnParams& params,
    bool isDeterministic)
{
    const size_t numValues = call.b * call.s * call.m * call.d;
    const OnDevice value(numValues * sizeof(float)), references(call.m * call.referencePoints.size);
    const OnDevice offsets(call.samplingOffsets.size), logits(call.attentionLogits.size);
    const OnDevice fixedPoint(numValues * sizeof(unsigned long long)), largest(sizeof(float));
    const float bound = 1.0f;
    check(cudaMemcpy(largest.data, &bound, sizeof(bound), cudaMemcpyHostToDevice), "upload");
    const detr::MSDeformAttnCudaGradients gradients{params.output,
        reinterpret_cast<float*>(value.data), reinterpret_cast<float*>(references.data),
        offsets.data, logits.data,
        isDeterministic ? reinterpret_cast<unsigned long long*>(fixedPoint.data) : nullptr,
        reinterpret_cast<const float*>(largest.data)};
    check(detr::launchMSDeformAttnBackward(params, gradients, call.type(), nullptr),
        "launch of gradients");
    check(cudaDeviceSynchronize(), "kernel of gradients");
}

void run(const emulator::Header& h, const emulator::Case& call)
{
    const OnDevice value(call.value, h.shift), shapes(call.spatialShapes);
    const OnDevice references(call.referencePoints), offsets(call.samplingOffsets, h.offsetsShift);
    const OnDevice logits(call.attentionLogits), output(call.output, h.shift);
    const detr::MSDeformAttnParams params{h.batch, h.numTokens, h.numQueries, h.numHeads, h.headDim,
        h.numLevels, h.numPoints, h.referenceDim, value.data,
        reinterpret_cast<const int32_t*>(shapes.data), references.data, offsets.data, logits.data,
        output.data};
    check(detr::launchMSDeformAttn(params, call.type(), nullptr), "launch");
    check(cudaDeviceSynchronize(), "kernel");
    output.download(call.output);
    runGradients(call, params, false);
    runGradients(call, params, true);
}

} // namespace

int main(int argc, char** argv)
{
    if (argc != 3)
    {
        std::fprintf(stderr, "expected a file to read and one to write\n");
        return EXIT_FAILURE;
    }
    std::ifstream input(argv[1], std::ios::binary);
    std::ofstream output(argv[2], std::ios::binary);
    emulator::Header h;
    while (input.read(reinterpret_cast<char*>(&h), sizeof(h)))
    {
        const emulator::Case call(h, input);
        run(h, call);
        output.write(call.output.data, static_cast<std::streamsize>(call.output.size));
    }
    return output.flush() ? EXIT_SUCCESS : EXIT_FAILURE;
}
