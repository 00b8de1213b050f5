// Sets the order in which threads of later launches run, when the kernels are loaded as a library.
#include "fibres.h"

extern "C" __attribute__((visibility("default"))) void setOrder(int isForward)
{
    emulator::setOrder(isForward != 0 ? emulator::Order::kForward : emulator::Order::kBackward);
}
