// Runs the calls of the operator in a file and writes their outputs to another.
//
//     run_cases fused|per_channel forward|backward LINE INPUT OUTPUT
//
// The kernels run without the barrier on this line of their source, unless it is 0. Prints one line per call: the launch's grid and what it returned.
#include "cases.h"
#include "cuda_runtime.h"

#include <cstdio>
#include <fstream>
#include <string>

extern "C" cudaError_t detrLaunchPerChannel(
    const detr::MSDeformAttnParams* params, detr::DataType type, cudaStream_t stream);

int main(int argc, char** argv)
{
    if (argc != 6)
    {
        std::fprintf(stderr, "expected five arguments\n");
        return EXIT_FAILURE;
    }
    const bool isFused = std::string(argv[1]) == "fused";
    emulator::setOrder(std::string(argv[2]) == "forward" ? emulator::Order::kForward
                                                         : emulator::Order::kBackward);
    emulator::leaveOut(std::atoi(argv[3]));
    std::ifstream input(argv[4], std::ios::binary);
    std::ofstream output(argv[5], std::ios::binary);
    emulator::Header h;
    while (input.read(reinterpret_cast<char*>(&h), sizeof(h)))
    {
        const emulator::Case call(h, input);
        const detr::MSDeformAttnParams params{h.batch, h.numTokens, h.numQueries, h.numHeads,
            h.headDim, h.numLevels, h.numPoints, h.referenceDim, call.value.data,
            reinterpret_cast<const int32_t*>(call.spatialShapes.data), call.referencePoints.data,
            call.samplingOffsets.data, call.attentionLogits.data, call.output.data};
        gridDim = dim3(0, 0, 0);
        const cudaError_t error = isFused
            ? detr::launchMSDeformAttn(params, call.type(), nullptr)
            : detrLaunchPerChannel(&params, call.type(), nullptr);
        std::printf("%u %u %u %s\n", gridDim.x, gridDim.y, gridDim.z, cudaGetErrorString(error));
        output.write(call.output.data, static_cast<std::streamsize>(call.output.size));
    }
    return EXIT_SUCCESS;
}
