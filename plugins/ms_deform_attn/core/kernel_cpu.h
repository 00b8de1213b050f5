// Multi-scale deformable attention on the CPU, as work items that any thread pool can run.
//
//     ForwardCpu forward(params, ValueStorage::kFloat32);
//     parallelFor(forward.numPrepareItems(), [&](int i) { forward.prepare(i); });
//     parallelFor(forward.numItems(), [&](int i) { forward.run(i); });
//
// The items of a loop may run in any order, on any threads; the second loop starts after the first
// has ended. The result does not depend on the number of threads.
#pragma once

#include "params.h"

#include <memory>

namespace detr
{

// Instruction sets that have kernels, the best last.
enum class Isa
{
    kPortable,
    kAvx2,
    kAvx512,
};

// The best one that this CPU has.
Isa bestIsa();

// How values are kept while they are sampled; sums are float32, or double for kFloat64. If bfloat16
// would not pay, kBFloat16 keeps float32, which is more exact.
enum class ValueStorage
{
    kFloat32,  // every tensor is float32
    kBFloat16, // every tensor is float32
    kFloat64,  // every tensor is double, also the reference points; portable only
};

class ForwardCpu
{
public:
    // The tensors must outlive this object. Throws std::invalid_argument for sizes that no kernel
    // can address, std::bad_alloc if memory runs out.
    ForwardCpu(const MSDeformAttnParams& params, ValueStorage storage, Isa isa = bestIsa());
    ~ForwardCpu();
    ForwardCpu(const ForwardCpu&) = delete;
    ForwardCpu& operator=(const ForwardCpu&) = delete;

    // Items of the first loop, which copies each head's values next to each other; may be none.
    int numPrepareItems() const;
    void prepare(int item) const;

    // Items of the second loop: each is a block of queries of one head of one image.
    int numItems() const;
    void run(int item) const;

private:
    struct State;
    std::unique_ptr<State> mState;
};

// The gradients of a call. A loop over finish() follows the one over run(). The order of additions
// does not depend on threads, so gradients are the same for any number of them.
class BackwardCpu
{
public:
    // Like ForwardCpu; params.output is not used, and kBFloat16 is refused.
    BackwardCpu(const MSDeformAttnParams& params, const MSDeformAttnGradients& gradients,
        ValueStorage storage, Isa isa = bestIsa());
    ~BackwardCpu();
    BackwardCpu(const BackwardCpu&) = delete;
    BackwardCpu& operator=(const BackwardCpu&) = delete;

    int numPrepareItems() const;
    void prepare(int item) const;

    // Items of the second loop: each is one head of one image.
    int numItems() const;
    void run(int item) const;

    // Items of the third loop, which combines the results of the heads; may be none.
    int numFinishItems() const;
    void finish(int item) const;

private:
    struct State;
    std::unique_ptr<State> mState;
};

} // namespace detr
