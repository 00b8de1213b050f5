// Runs the calls of the operator in a file on a GPU and writes their outputs to another.
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
    OnDevice(const emulator::Buffer& host, size_t shift = 0)
        : mHost(host)
    {
        check(cudaMalloc(&mMemory, shift + host.size + (host.size == 0)), "cudaMalloc");
        data = static_cast<char*>(mMemory) + shift;
        check(cudaMemcpy(data, host.data, host.size, cudaMemcpyHostToDevice), "upload");
    }

    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

    ~OnDevice()
    {
        check(cudaFree(mMemory), "cudaFree");
    }

    void download() const
    {
        check(cudaMemcpy(mHost.data, data, mHost.size, cudaMemcpyDeviceToHost), "download");
    }

    char* data;

private:
    const emulator::Buffer& mHost;
    void* mMemory = nullptr;
};

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
    output.download();
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
