// Calls of the operator as stored in a file: a Header and the five tensors, one call after another.
#pragma once

#include "kernel_cuda.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <istream>
#include <memory>

namespace emulator
{

struct Header
{
    int32_t type; // the number of a detr::DataType
    int32_t batch, numTokens, numQueries, numHeads, headDim, numLevels, numPoints, referenceDim;
    int32_t shift;        // from a multiple of 16 bytes to value, and to output
    int32_t offsetsShift; // from a multiple of 16 bytes to the offsets
};

// Memory that ends where the tensor does, so that a sanitizer sees whatever is touched beyond.
struct Buffer
{
    std::unique_ptr<char, decltype(&std::free)> memory;
    char* data;
    size_t size;

    Buffer(size_t size, size_t shift)
        : memory(static_cast<char*>(std::malloc(size + shift)), std::free) // aligned to 16
        , data(memory.get() + shift)
        , size(size)
    {
        std::memset(memory.get(), 0xff, size + shift); // NaN in every type
    }

    Buffer(std::istream& file, size_t count, size_t elementSize, size_t shift = 0)
        : Buffer(count * elementSize, shift)
    {
        file.read(data, static_cast<std::streamsize>(size));
    }
};

struct Case
{
    Header header;
    size_t elementSize = header.type == static_cast<int32_t>(detr::DataType::kFloat32) ? 4 : 2;
    size_t b = header.batch, s = header.numTokens, q = header.numQueries, m = header.numHeads;
    size_t d = header.headDim, l = header.numLevels, p = header.numPoints;
    size_t r = header.referenceDim, shift = header.shift;
    Buffer value, spatialShapes, referencePoints, samplingOffsets, attentionLogits, output;

    Case(const Header& header, std::istream& file)
        : header(header)
        , value(file, b * s * m * d, elementSize, shift)
        , spatialShapes(file, l * 2, sizeof(int32_t))
        , referencePoints(file, b * q * l * r, sizeof(float))
        , samplingOffsets(file, b * q * m * l * p * 2, elementSize, header.offsetsShift)
        , attentionLogits(file, b * q * m * l * p, elementSize)
        , output(b * q * m * d * elementSize, shift)
    {
    }

    detr::DataType type() const
    {
        return static_cast<detr::DataType>(header.type);
    }
};

} // namespace emulator
