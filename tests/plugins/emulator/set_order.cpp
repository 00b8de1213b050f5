// In which order the threads of later launches run, for whoever loads the kernels as a library.
#include "fibres.h"

extern "C" __attribute__((visibility("default"))) void setOrder(int isForward)
{
    emulator::setOrder(isForward != 0 ? emulator::Order::kForward : emulator::Order::kBackward);
}
