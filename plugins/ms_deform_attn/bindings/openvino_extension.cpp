// The op as an extension of OpenVINO: the node MSDeformAttn of the ONNX domain `detr` becomes one
// call of the CPU kernel, on the threads of the stream that runs the graph.
#include "../core/kernel_cpu.h"

#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/frontend/onnx/extension/conversion.hpp>
#include <openvino/op/op.hpp>

#include <tbb/parallel_for.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

namespace ov
{

// Exported by the runtime, but not declared in its wheel: forbids computing `node` in `to`.
OPENVINO_API void disable_conversion(const std::shared_ptr<Node>& node, const element::Type& to);

} // namespace ov

namespace detr
{
namespace
{

enum Input : size_t
{
    kValue,           // (B, S, M, D) float32
    kSpatialShapes,   // (L, 2) int32
    kReferencePoints, // (B, Q, L, 2 or 4) float32
    kSamplingOffsets, // (B, Q, M, L, P, 2) float32
    kAttentionLogits, // (B, Q, M, L, P) float32
    kNumInputs,
};

// Under the hint bf16, keeps everything a number is computed from in float32, back to the last
// matrix products: a bfloat16 near 1 moves in steps of 0.65 pixels on a level 167 wide.
void keepFloat32(ov::Node* node, std::unordered_set<const ov::Node*>& visited)
{
    const std::string type = node->get_type_name();
    const bool isProduct = type == "MatMul" || type == "FullyConnected" || type == "Convolution";
    if (isProduct || !visited.insert(node).second)
    {
        return;
    }
    ov::disable_conversion(node->shared_from_this(), ov::element::f16); // means: or bf16
    for (const ov::Output<ov::Node>& input : node->input_values())
    {
        keepFloat32(input.get_node(), visited);
    }
}

class MSDeformAttn : public ov::op::Op
{
public:
    OPENVINO_OP("MSDeformAttn", "detr");

    MSDeformAttn() = default;

    MSDeformAttn(const ov::OutputVector& inputs, const std::string& valueStorage)
        : Op(inputs)
        , mValueStorage(valueStorage)
    {
        constructor_validate_and_infer_types();
    }

    // "f32" or "bf16": how values are kept while they are sampled. Tensors are float32 in both.
    bool visit_attributes(ov::AttributeVisitor& visitor) override
    {
        visitor.on_attribute("value_storage", mValueStorage);
        return true;
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override
    {
        return std::make_shared<MSDeformAttn>(inputs, mValueStorage);
    }

    void validate_and_infer_types() override
    {
        NODE_VALIDATION_CHECK(this, get_input_size() == kNumInputs, "expected 5 inputs, got ",
            get_input_size());
        NODE_VALIDATION_CHECK(this, mValueStorage == "f32" || mValueStorage == "bf16",
            "expected value_storage f32 or bf16, got ", mValueStorage);
        std::vector<ov::PartialShape> shapes;
        for (size_t input = 0; input < kNumInputs; ++input)
        {
            const ov::element::Type& found = get_input_element_type(input);
            const ov::element::Type expected
                = input == kSpatialShapes ? ov::element::i32 : ov::element::f32;
            NODE_VALIDATION_CHECK(this, found.compatible(expected), "expected ", expected,
                " in input ", input, ", got ", found);
            shapes.push_back(get_input_partial_shape(input));
        }
        set_output_type(0, ov::element::f32, outputShape(shapes));
        if (mValueStorage == "bf16")
        {
            // Every time, because transformations replace marked nodes with unmarked ones.
            std::unordered_set<const ov::Node*> visited;
            keepFloat32(get_input_node_ptr(kReferencePoints), visited);
        }
    }

    bool has_evaluate() const override
    {
        return true;
    }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override
    {
        std::vector<ov::PartialShape> shapes;
        for (const ov::Tensor& input : inputs)
        {
            shapes.emplace_back(input.get_shape());
        }
        outputs[0].set_shape(outputShape(shapes).to_shape());
        const ov::Shape& value = inputs[kValue].get_shape();
        const ov::Shape& points = inputs[kReferencePoints].get_shape();
        const ov::Shape& logits = inputs[kAttentionLogits].get_shape();
        const int32_t* const sizes = inputs[kSpatialShapes].data<int32_t>();
        int64_t numTokens = 0;
        for (size_t level = 0; level < points[2]; ++level)
        {
            numTokens += int64_t{sizes[2 * level]} * sizes[2 * level + 1];
        }
        NODE_VALIDATION_CHECK(this, numTokens == static_cast<int64_t>(value[1]),
            "expected as many tokens as spatial_shapes say, ", numTokens, ", got ", value[1]);

        MSDeformAttnParams params{};
        params.batch = static_cast<int>(value[0]);
        params.numTokens = static_cast<int>(value[1]);
        params.numQueries = static_cast<int>(points[1]);
        params.numHeads = static_cast<int>(value[2]);
        params.headDim = static_cast<int>(value[3]);
        params.numLevels = static_cast<int>(points[2]);
        params.numPoints = static_cast<int>(logits[4]);
        params.referenceDim = static_cast<int>(points[3]);
        params.value = inputs[kValue].data();
        params.spatialShapes = sizes;
        params.referencePoints = inputs[kReferencePoints].data();
        params.samplingOffsets = inputs[kSamplingOffsets].data();
        params.attentionLogits = inputs[kAttentionLogits].data();
        params.output = outputs[0].data();
        ForwardCpu forward(
            params, mValueStorage == "bf16" ? ValueStorage::kBFloat16 : ValueStorage::kFloat32);
        tbb::parallel_for(0, forward.numPrepareItems(), [&](int item) { forward.prepare(item); });
        tbb::parallel_for(0, forward.numItems(), [&](int item) { forward.run(item); });
        return true;
    }

private:
    // (B, Q, M * D), if the inputs agree on every size that they share.
    ov::PartialShape outputShape(std::vector<ov::PartialShape> shapes) const
    {
        constexpr int64_t kRanks[kNumInputs] = {4, 2, 4, 6, 5};
        for (size_t input = 0; input < kNumInputs; ++input)
        {
            NODE_VALIDATION_CHECK(this, shapes[input].merge_rank(kRanks[input]), "expected rank ",
                kRanks[input], " in input ", input, ", got ", shapes[input]);
        }
        const ov::PartialShape& value = shapes[kValue];
        const ov::PartialShape& levels = shapes[kSpatialShapes];
        const ov::PartialShape& points = shapes[kReferencePoints];
        const ov::PartialShape& offsets = shapes[kSamplingOffsets];
        const ov::Dimension any;
        ov::PartialShape shared = shapes[kAttentionLogits]; // (B, Q, M, L, P)
        bool agree = levels[1].compatible(2) && offsets[5].compatible(2)
            && (points[3].compatible(2) || points[3].compatible(4));
        for (const ov::PartialShape& other :
            {ov::PartialShape{offsets[0], offsets[1], offsets[2], offsets[3], offsets[4]},
                ov::PartialShape{value[0], any, value[2], levels[0], any},
                ov::PartialShape{points[0], points[1], any, points[2], any}})
        {
            agree = ov::PartialShape::merge_into(shared, other) && agree;
        }
        NODE_VALIDATION_CHECK(this, agree, "inputs disagree: value ", value, ", spatial_shapes ",
            levels, ", reference_points ", points, ", sampling_offsets ", offsets,
            ", attention_logits ", shapes[kAttentionLogits]);
        return {shared[0], shared[1], shared[2] * value[3]};
    }

    std::string mValueStorage{"f32"};
};

ov::OutputVector fromOnnx(const ov::frontend::NodeContext& node)
{
    ov::OutputVector inputs;
    for (int input = 0; input < static_cast<int>(node.get_input_size()); ++input)
    {
        inputs.push_back(node.get_input(input));
    }
    return std::make_shared<MSDeformAttn>(inputs, "f32")->outputs();
}

} // namespace
} // namespace detr

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({
    std::make_shared<ov::OpExtension<detr::MSDeformAttn>>(), // reads compiled graphs
    std::make_shared<ov::frontend::onnx::ConversionExtension>(
        "MSDeformAttn", "detr", detr::fromOnnx),
}));
