// Sets how later launches run, when the kernels are loaded as a library, and says where the last one
// did: see fibres.h.
#include "cuda_runtime_api.h"
#include "fibres.h"

extern "C" __attribute__((visibility("default"))) void setOrder(int isForward)
{
    emulator::setOrder(isForward != 0 ? emulator::Order::kForward : emulator::Order::kBackward);
}

extern "C" __attribute__((visibility("default"))) void leaveOut(int line)
{
    emulator::leaveOut(line);
}

extern "C" __attribute__((visibility("default"))) void setDriver(int version)
{
    driverVersion = version;
}

extern "C" __attribute__((visibility("default"))) void* streamOfLaunch()
{
    return lastStream;
}
