// Multi-scale deformable attention on the CPU, as work items that any thread pool can run.
//
//     ForwardCpu forward(params, ValueStorage::kFloat32);
//     parallelFor(forward.numPrepareItems(), [&](int i) { forward.prepare(i); });
//     parallelFor(forward.numItems(), [&](int i) { forward.run(i); });
//
// Items of one loop may run in any order, on any threads; the second loop starts when the first
// has ended. The result does not depend on how many threads there were.
#pragma once

#include "params.h"

#include <memory>

namespace detr
{

// Instruction sets that there are kernels for, the best last.
enum class Isa
{
    kPortable,
    kAvx2,
    kAvx512,
};

// The best that this CPU has.
Isa bestIsa();

// How values are kept while they are sampled; sums are float32, or double for kFloat64. Where
// keeping them as bfloat16 would not pay, kBFloat16 keeps float32, which is more exact.
enum class ValueStorage
{
    kFloat32,  // every tensor is float32
    kBFloat16, // every tensor is float32
    kFloat64,  // every tensor is double, also the reference points; portable only
};

class ForwardCpu
{
public:
    // The tensors have to live as long as this object. Throws std::invalid_argument for sizes
    // that no kernel can address, std::bad_alloc without memory.
    ForwardCpu(const MSDeformAttnParams& params, ValueStorage storage, Isa isa = bestIsa());
    ~ForwardCpu();
    ForwardCpu(const ForwardCpu&) = delete;
    ForwardCpu& operator=(const ForwardCpu&) = delete;

    // Items of the first loop, which brings the values of a head together; may be none.
    int numPrepareItems() const;
    void prepare(int item) const;

    // Items of the second loop: a block of queries of one head of one image each.
    int numItems() const;
    void run(int item) const;

private:
    struct State;
    std::unique_ptr<State> mState;
};

// The gradients of a call. A loop over finish() follows the one over run(). Nothing is added in an
// order that depends on threads, so gradients are the same for any number of them.
class BackwardCpu
{
public:
    // As ForwardCpu; the output of the parameters is not used, and kBFloat16 is refused.
    BackwardCpu(const MSDeformAttnParams& params, const MSDeformAttnGradients& gradients,
        ValueStorage storage, Isa isa = bestIsa());
    ~BackwardCpu();
    BackwardCpu(const BackwardCpu&) = delete;
    BackwardCpu& operator=(const BackwardCpu&) = delete;

    int numPrepareItems() const;
    void prepare(int item) const;

    // Items of the second loop: a head of an image each.
    int numItems() const;
    void run(int item) const;

    // Items of the third loop, which puts together what heads have computed; may be none.
    int numFinishItems() const;
    void finish(int item) const;

private:
    struct State;
    std::unique_ptr<State> mState;
};

} // namespace detr
