// The threads of a block as fibres of one thread of the CPU.
#pragma once

#include <cstdint>
#include <functional>

namespace emulator
{

constexpr int kWarpSize = 32;

enum class Barrier
{
    kWarp,
    kBlock,
};

// In which order threads are run: first to last or last to first; warps as well, each as far as it
// comes without the others.
enum class Order
{
    kForward,
    kBackward,
};

void setOrder(Order order);

// Runs `body` once a thread; `enter` is called with the thread's number whenever it goes on. Ends
// the process with a message where threads wait for each other for ever.
void runBlock(unsigned numThreads, const std::function<void(unsigned)>& enter,
    const std::function<void()>& body);

// For a running fibre: waits until all of its warp or block have come to this barrier.
void waitFor(Barrier barrier);

// For a running fibre: its place in its warp.
int lane();

// For a running fibre: what lane `source` has handed over; a barrier of the warp, all of it.
uint32_t exchange(unsigned mask, uint32_t value, int source);

} // namespace emulator
