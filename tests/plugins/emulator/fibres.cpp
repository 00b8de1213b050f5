// Fibres made of POSIX contexts; the address sanitizer is told of every switch of stacks.
#include "fibres.h"

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <ucontext.h>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator
{
namespace
{

constexpr size_t kStackBytes = 256 * 1024;

enum class State
{
    kReady,
    kAtWarpBarrier,
    kAtBlockBarrier,
    kDone,
};

struct Fibre
{
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStackBytes]};
    State state;
    uint32_t handedOver[2]; // in two successive shuffles, as some lanes may be one ahead
    int numShuffles;
};

std::vector<Fibre> fibres; // reused by every block, to keep their stacks
unsigned current;
ucontext_t scheduler;
const std::function<void()>* currentBody;
Order currentOrder = Order::kForward;
int lineLeftOut = 0;
const void* schedulerStack;
size_t schedulerStackBytes;

// Switches to another stack; what the sanitizer knows of the current one is kept in `from`.
void switchContexts(
    ucontext_t& from, ucontext_t& to, const void* stack, size_t bytes, bool isLast = false)
{
#if defined(__SANITIZE_ADDRESS__)
    void* fakeStack = nullptr;
    __sanitizer_start_switch_fiber(isLast ? nullptr : &fakeStack, stack, bytes);
    swapcontext(&from, &to);
    __sanitizer_finish_switch_fiber(fakeStack, &schedulerStack, &schedulerStackBytes);
#else
    static_cast<void>(stack);
    static_cast<void>(bytes);
    static_cast<void>(isLast);
    swapcontext(&from, &to);
#endif
}

void leave(State state)
{
    Fibre& fibre = fibres[current];
    fibre.state = state;
    switchContexts(fibre.context, scheduler, schedulerStack, schedulerStackBytes,
        state == State::kDone);
}

void start()
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &schedulerStack, &schedulerStackBytes);
#endif
    (*currentBody)();
    leave(State::kDone);
}

bool isAll(State state, unsigned first, unsigned last)
{
    for (unsigned i = first; i < last; ++i)
    {
        if (fibres[i].state != state)
        {
            return false;
        }
    }
    return true;
}

bool release(State state, unsigned first, unsigned last)
{
    if (!isAll(state, first, last))
    {
        return false;
    }
    for (unsigned i = first; i < last; ++i)
    {
        fibres[i].state = State::kReady;
    }
    return true;
}

// The i-th of `count` in the current order.
unsigned inOrder(unsigned i, unsigned count)
{
    return currentOrder == Order::kForward ? i : count - 1 - i;
}

// Runs the warp of threads [first, last) until none can continue without another warp.
void runWarp(unsigned first, unsigned last, const std::function<void(unsigned)>& enter)
{
    do
    {
        for (unsigned i = 0; i < last - first; ++i)
        {
            current = first + inOrder(i, last - first);
            Fibre& fibre = fibres[current];
            if (fibre.state == State::kReady)
            {
                enter(current);
                switchContexts(scheduler, fibre.context, fibre.stack.get(), kStackBytes);
            }
        }
    } while (release(State::kAtWarpBarrier, first, last));
}

} // namespace

void setOrder(Order order)
{
    currentOrder = order;
}

void leaveOut(int line)
{
    lineLeftOut = line;
}

void runBlock(unsigned numThreads, const std::function<void(unsigned)>& enter,
    const std::function<void()>& body)
{
    if (fibres.size() < numThreads)
    {
        fibres.resize(numThreads);
    }
    currentBody = &body;
    for (unsigned i = 0; i < numThreads; ++i)
    {
        Fibre& fibre = fibres[i];
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.get();
        fibre.context.uc_stack.ss_size = kStackBytes;
        fibre.context.uc_link = nullptr;
        makecontext(&fibre.context, start, 0);
        fibre.state = State::kReady;
        fibre.numShuffles = 0;
    }
    const unsigned numWarps = (numThreads + kWarpSize - 1) / kWarpSize;
    do
    {
        for (unsigned i = 0; i < numWarps; ++i)
        {
            const unsigned first = inOrder(i, numWarps) * kWarpSize;
            runWarp(first, std::min(first + kWarpSize, numThreads), enter);
        }
    } while (release(State::kAtBlockBarrier, 0, numThreads));
    if (!isAll(State::kDone, 0, numThreads))
    {
        std::fprintf(stderr, "threads wait at barriers that others never come to\n");
        std::exit(EXIT_FAILURE);
    }
}

void waitFor(Barrier barrier, int line)
{
    if (line != lineLeftOut)
    {
        leave(barrier == Barrier::kWarp ? State::kAtWarpBarrier : State::kAtBlockBarrier);
    }
}

int lane()
{
    return static_cast<int>(current % kWarpSize);
}

uint32_t exchange(unsigned mask, uint32_t value, int source)
{
    if (mask != 0xffffffffu)
    {
        std::fprintf(stderr, "only shuffles of whole warps are emulated\n");
        std::exit(EXIT_FAILURE);
    }
    const unsigned self = current;
    const int turn = fibres[self].numShuffles++ % 2;
    fibres[self].handedOver[turn] = value;
    leave(State::kAtWarpBarrier);
    return fibres[self - static_cast<unsigned>(lane()) + static_cast<unsigned>(source)]
        .handedOver[turn];
}

} // namespace emulator
