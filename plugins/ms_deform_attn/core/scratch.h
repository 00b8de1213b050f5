// Memory that is kept between calls.
#pragma once

#include <cstddef>

namespace detr
{

// A buffer from the process's pool, aligned to 2 MiB and returned when it goes out of scope.
// Touching fresh pages for the values of a call would take as long as filling them.
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
    size_t mNumBytes; // of the buffer, which may be larger than requested
};

} // namespace detr
