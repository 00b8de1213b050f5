#include "scratch.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace detr
{
namespace
{

constexpr size_t kAlignment = size_t{1} << 21; // a huge page

struct Buffer
{
    void* data;
    size_t numBytes;
};

struct Pool
{
    std::mutex mutex;
    std::vector<Buffer> free;
};

// Never destroyed: a thread may return a buffer while the process ends.
Pool& pool()
{
    static Pool* const instance = new Pool;
    return *instance;
}

Buffer allocate(size_t numBytes)
{
    void* const data = std::aligned_alloc(kAlignment, numBytes);
    if (data == nullptr)
    {
        throw std::bad_alloc();
    }
#if defined(__linux__)
    madvise(data, numBytes, MADV_HUGEPAGE); // only advice: nothing is lost if it is ignored
#endif
    return {data, numBytes};
}

} // namespace

// Takes the smallest free buffer that is large enough; otherwise a new one replaces a free one, so
// the pool never holds more buffers than there were calls at once.
Scratch::Scratch(size_t numBytes)
    : mData(nullptr)
    , mNumBytes(0)
{
    if (numBytes == 0)
    {
        return;
    }
    Pool& shared = pool();
    void* outgrown = nullptr;
    {
        const std::lock_guard<std::mutex> lock(shared.mutex);
        auto best = shared.free.end();
        for (auto it = shared.free.begin(); it != shared.free.end(); ++it)
        {
            if (it->numBytes >= numBytes
                && (best == shared.free.end() || it->numBytes < best->numBytes))
            {
                best = it;
            }
        }
        if (best != shared.free.end())
        {
            mData = best->data;
            mNumBytes = best->numBytes;
            shared.free.erase(best);
            return;
        }
        if (!shared.free.empty())
        {
            outgrown = shared.free.back().data;
            shared.free.pop_back();
        }
    }
    std::free(outgrown);
    const Buffer fresh = allocate((numBytes + kAlignment - 1) / kAlignment * kAlignment);
    mData = fresh.data;
    mNumBytes = fresh.numBytes;
}

Scratch::~Scratch()
{
    if (mData == nullptr)
    {
        return;
    }
    Pool& shared = pool();
    const std::lock_guard<std::mutex> lock(shared.mutex);
    shared.free.push_back({mData, mNumBytes});
}

} // namespace detr
