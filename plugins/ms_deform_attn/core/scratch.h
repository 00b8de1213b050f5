// Memory that is kept between calls.
#pragma once

#include <cstddef>

namespace detr
{

// A buffer from a pool of the process, aligned to 2 MiB, given back when it goes out of scope.
// Touching fresh pages for the values of one call would take as long as filling them does.
class Scratch
{
public:
    explicit Scratch(size_t numBytes); // throws std::bad_alloc
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    void* data() const
    {
        return mData;
    }

private:
    void* mData;
    size_t mNumBytes; // of the buffer, which may be larger than what was asked for
};

} // namespace detr
