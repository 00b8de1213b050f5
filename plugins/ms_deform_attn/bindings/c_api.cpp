// A plain C interface to the CPU kernels, for anything that can load a shared library; torch's side
// of it is plugins/cpu_kernels.py. No exception leaves it: a function returns 0, or 1 and
// keeps a message.
#include "../core/kernel_cpu.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__GNUC__)
#define DETR_EXPORT __attribute__((visibility("default")))
#else
#define DETR_EXPORT
#endif

namespace
{

thread_local std::string lastError;

// Runs body(item) for every item on up to numThreads threads, including this one. Threads live as
// long as the call: starting them takes a few tens of microseconds each, and a fork loses nothing.
template <typename Body>
void parallelFor(int numItems, int numThreads, const Body& body)
{
    std::atomic<int> next{0};
    std::mutex mutex;
    std::exception_ptr failure;
    const auto work = [&] {
        try
        {
            for (int item = next++; item < numItems; item = next++)
            {
                body(item);
            }
        }
        catch (...)
        {
            const std::lock_guard<std::mutex> lock(mutex);
            failure = std::current_exception();
        }
    };
    std::vector<std::thread> others;
    try
    {
        for (int i = 1; i < std::min(numThreads, numItems); ++i)
        {
            others.emplace_back(work);
        }
    }
    catch (const std::system_error&)
    {
        // No more threads can be started: those that were do the work.
    }
    work();
    for (std::thread& thread : others)
    {
        thread.join();
    }
    if (failure != nullptr)
    {
        std::rethrow_exception(failure);
    }
}

// As many threads as were asked for, if the call has enough work for them: a thread hardly pays for
// itself if its share is below this number of sampled channels, about 0.1 ms.
int threadsWorthwhile(const detr::MSDeformAttnParams& p, int numThreads)
{
    constexpr int64_t kSamplesPerThread = 1 << 19;
    const int64_t numSamples = static_cast<int64_t>(p.batch) * p.numQueries * p.numHeads
        * p.numLevels * p.numPoints * p.headDim;
    return static_cast<int>(
        std::clamp<int64_t>(numSamples / kSamplesPerThread, 1, std::max(numThreads, 1)));
}

template <typename Body>
int guarded(const Body& body) noexcept
{
    try
    {
        body();
        return 0;
    }
    catch (const std::exception& error)
    {
        lastError = error.what();
        return 1;
    }
}

} // namespace

extern "C"
{

// Why the last call on this thread returned 1.
DETR_EXPORT const char* detrLastError()
{
    return lastError.c_str();
}

// The best instruction set here, as the number of a detr::Isa.
DETR_EXPORT int detrBestIsa()
{
    return static_cast<int>(detr::bestIsa());
}

// `storage` is the number of a detr::ValueStorage, `isa` that of a detr::Isa.
DETR_EXPORT int detrForward(
    const detr::MSDeformAttnParams* params, int storage, int isa, int numThreads)
{
    return guarded([&] {
        const detr::ForwardCpu forward(
            *params, static_cast<detr::ValueStorage>(storage), static_cast<detr::Isa>(isa));
        const int threads = threadsWorthwhile(*params, numThreads);
        parallelFor(forward.numPrepareItems(), threads, [&](int i) { forward.prepare(i); });
        parallelFor(forward.numItems(), threads, [&](int i) { forward.run(i); });
    });
}

// As detrForward(), with the gradients of the same call.
DETR_EXPORT int detrBackward(const detr::MSDeformAttnParams* params,
    const detr::MSDeformAttnGradients* gradients, int storage, int isa, int numThreads)
{
    return guarded([&] {
        const detr::BackwardCpu backward(*params, *gradients,
            static_cast<detr::ValueStorage>(storage), static_cast<detr::Isa>(isa));
        const int threads = threadsWorthwhile(*params, numThreads);
        parallelFor(backward.numPrepareItems(), threads, [&](int i) { backward.prepare(i); });
        parallelFor(backward.numItems(), threads, [&](int i) { backward.run(i); });
        parallelFor(backward.numFinishItems(), threads, [&](int i) { backward.finish(i); });
    });
}

} // extern "C"
