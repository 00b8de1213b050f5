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

// The order in which threads run, first to last or last to first. The same goes for warps, each of
// which runs until it has to wait for another.
enum class Order
{
    kForward,
    kBackward,
};

void setOrder(Order order);

// Later launches do not wait at barriers on this line of their source; 0 is no line.
void leaveOut(int line);

// Runs `body` once per thread; `enter` is called with the thread's number whenever it starts or
// resumes. Ends the process with a message if threads wait for each other for ever.
void runBlock(unsigned numThreads, const std::function<void(unsigned)>& enter,
    const std::function<void()>& body);

// For a running fibre: waits until its whole warp or block has reached this barrier.
void waitFor(Barrier barrier, int line);

// For a running fibre: its place in its warp.
int lane();

// For a running fibre: the value that lane `source` passed. A barrier for the whole warp.
uint32_t exchange(unsigned mask, uint32_t value, int source);

} // namespace emulator
