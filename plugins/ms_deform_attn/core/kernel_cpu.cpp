// Cuts a call into work items; see kernel_cpu.h.
#include "kernel_cpu.h"

#include "layout_cpu.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace detr
{
namespace
{

constexpr int kTokensPerItem = 256;
constexpr int kQueriesPerItem = 128;

// Block `item` of a loop over rows of equal length, each cut into blocks: its row, and its part of
// that row.
struct Block
{
    int row;
    int first;
    int last;

    Block(int item, int length, int blockLength)
        : row(item / numBlocks(length, blockLength))
        , first(item % numBlocks(length, blockLength) * blockLength)
        , last(std::min(first + blockLength, length))
    {
    }

    static int numBlocks(int length, int blockLength)
    {
        return (length + blockLength - 1) / blockLength;
    }
};

struct alignas(64) Line
{
    char bytes[64];
};

// Workspace of an item: memory for this many int32 and scalars per padded sample.
std::vector<Line> workspaceFor(const CallLayout& layout, size_t numInts, size_t numScalars)
{
    const size_t perSample = numInts * sizeof(int32_t) + numScalars * layout.kernels().scalarBytes;
    const size_t numBytes = perSample * static_cast<size_t>(layout.call().numPadded);
    return std::vector<Line>((numBytes + sizeof(Line) - 1) / sizeof(Line));
}

void prepareItem(const CallLayout& layout, int item)
{
    const Block block(item, layout.call().params.numTokens, kTokensPerItem);
    layout.kernels().prepare(layout.call(), block.row, block.first, block.last);
}

int numTokenItems(const CallLayout& layout)
{
    const MSDeformAttnParams& p = layout.call().params;
    return layout.isRepacked() ? p.batch * Block::numBlocks(p.numTokens, kTokensPerItem) : 0;
}

} // namespace

struct ForwardCpu::State
{
    CallLayout layout;
};

ForwardCpu::ForwardCpu(const MSDeformAttnParams& params, ValueStorage storage, Isa isa)
    : mState(new State{{params, storage, isa}})
{
}

ForwardCpu::~ForwardCpu() = default;

int ForwardCpu::numPrepareItems() const
{
    return numTokenItems(mState->layout);
}

void ForwardCpu::prepare(int item) const
{
    prepareItem(mState->layout, item);
}

int ForwardCpu::numItems() const
{
    const MSDeformAttnParams& p = mState->layout.call().params;
    return p.batch * p.numHeads * Block::numBlocks(p.numQueries, kQueriesPerItem);
}

void ForwardCpu::run(int item) const
{
    const CallLayout& layout = mState->layout;
    const MSDeformAttnParams& p = layout.call().params;
    const Block block(item, p.numQueries, kQueriesPerItem);
    std::vector<Line> workspace = workspaceFor(layout, 4 * kForwardBlock, 4 * kForwardBlock);
    layout.kernels().forward(layout.call(), block.row / p.numHeads, block.row % p.numHeads,
        block.first, block.last, workspace.data());
}

struct BackwardCpu::State
{
    CallLayout layout;
    Scratch values;     // gradients of the values, by head
    Scratch references; // gradients of the reference points, by head
    BackwardCall call;

    State(const MSDeformAttnParams& p, const MSDeformAttnGradients& gradients, ValueStorage storage,
        Isa isa)
        : layout(p, storage, isa)
        , values(layout.isRepacked() ? layout.valueBytes() : 0)
        , references(gradients.referencePoints == nullptr
                  ? 0
                  : layout.kernels().scalarBytes * static_cast<size_t>(p.numHeads)
                      * numReferences(p) * static_cast<size_t>(p.batch))
        , call{layout.call(), gradients, layout.isRepacked() ? values.data() : gradients.value,
              references.data()}
    {
        if (layout.kernels().backward == nullptr)
        {
            throw std::invalid_argument("no backward kernel for bfloat16");
        }
    }

    // How many numbers the reference points of an image have.
    static size_t numReferences(const MSDeformAttnParams& p)
    {
        return static_cast<size_t>(p.numQueries)
            * static_cast<size_t>(p.numLevels * p.referenceDim);
    }

    // Copies the gradients of some tokens' values from the layout by head to the input's layout.
    void putBack(int image, int first, int last) const
    {
        const MSDeformAttnParams& p = layout.call().params;
        const auto at = [&](void* start, ptrdiff_t element) {
            return static_cast<char*>(start)
                + element * static_cast<ptrdiff_t>(layout.kernels().scalarBytes);
        };
        for (ptrdiff_t head = 0; head < p.numHeads; ++head)
        {
            for (ptrdiff_t token = first; token < last; ++token)
            {
                const ptrdiff_t to =
                    ((static_cast<ptrdiff_t>(image) * p.numTokens + token) * p.numHeads + head)
                    * p.headDim;
                const ptrdiff_t from = image * layout.call().imageStride
                    + head * layout.call().headStride + token * layout.call().tokenStride;
                std::memcpy(at(call.gradients.value, to), at(call.values, from),
                    layout.kernels().scalarBytes * static_cast<size_t>(p.headDim));
            }
        }
    }

    // Sums the gradients of an image's reference points over heads.
    template <typename Scalar>
    void addHeads(int image) const
    {
        const MSDeformAttnParams& p = layout.call().params;
        const size_t count = numReferences(p);
        const size_t before = static_cast<size_t>(image) * count;
        Scalar* const to = static_cast<Scalar*>(call.gradients.referencePoints) + before;
        const Scalar* from =
            static_cast<const Scalar*>(call.references) + before * static_cast<size_t>(p.numHeads);
        std::fill(to, to + count, Scalar(0));
        for (int head = 0; head < p.numHeads; ++head, from += count)
        {
            std::transform(from, from + count, to, to, std::plus<Scalar>());
        }
    }
};

BackwardCpu::BackwardCpu(const MSDeformAttnParams& params, const MSDeformAttnGradients& gradients,
    ValueStorage storage, Isa isa)
    : mState(new State(params, gradients, storage, isa))
{
}

BackwardCpu::~BackwardCpu() = default;

int BackwardCpu::numPrepareItems() const
{
    return numTokenItems(mState->layout);
}

void BackwardCpu::prepare(int item) const
{
    prepareItem(mState->layout, item);
}

int BackwardCpu::numItems() const
{
    const MSDeformAttnParams& p = mState->layout.call().params;
    return p.batch * p.numHeads;
}

void BackwardCpu::run(int item) const
{
    const CallLayout& layout = mState->layout;
    const int numHeads = layout.call().params.numHeads;
    std::vector<Line> workspace = workspaceFor(layout, 4, 9);
    layout.kernels().backward(mState->call, item / numHeads, item % numHeads, workspace.data());
}

int BackwardCpu::numFinishItems() const
{
    const bool hasReferences = mState->call.references != nullptr;
    const int numImages = hasReferences ? mState->layout.call().params.batch : 0;
    return numTokenItems(mState->layout) + numImages;
}

void BackwardCpu::finish(int item) const
{
    const int numTokens = numTokenItems(mState->layout);
    if (item < numTokens)
    {
        const Block block(item, mState->layout.call().params.numTokens, kTokensPerItem);
        mState->putBack(block.row, block.first, block.last);
    }
    else if (mState->layout.kernels().scalarBytes == sizeof(double))
    {
        mState->addHeads<double>(item - numTokens);
    }
    else
    {
        mState->addHeads<float>(item - numTokens);
    }
}

} // namespace detr
