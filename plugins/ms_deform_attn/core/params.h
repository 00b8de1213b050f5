// Sizes and tensors of one call of multi-scale deformable attention; the same for every backend.
#pragma once

#include <cstdint>

namespace detr
{

// Letters as in the documentation: B batch, S tokens, Q queries, M heads, D channels per head,
// L levels, P points per head and level. All tensors are dense and row-major.
struct MSDeformAttnParams
{
    int batch;
    int numTokens;
    int numQueries;
    int numHeads;
    int headDim;
    int numLevels;
    int numPoints;
    int referenceDim; // 2: reference points are (x, y); 4: boxes (cx, cy, w, h)

    const void* value;            // (B, S, M, D) of T
    const int32_t* spatialShapes; // (L, 2): height, width; in the order of S
    const void* referencePoints;  // (B, Q, L, 2 or 4) of float (double if T is), normalised
    const void* samplingOffsets;  // (B, Q, M, L, P, 2) of T: x, y
    const void* attentionLogits;  // (B, Q, M, L, P) of T, before the softmax over (L, P)
    void* output;                 // (B, Q, M * D) of T
};

// Where the gradients of one call come from and go to; T and shapes as above.
struct MSDeformAttnGradients
{
    const void* output;    // read; the others are written, not added to
    void* value;
    void* referencePoints; // null if not wanted
    void* samplingOffsets;
    void* attentionLogits;
};

} // namespace detr
