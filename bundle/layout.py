"""Names that export writes and engines read: files, graph forms, tensors, the operator."""

from typing import Final

# --- files, relative to the bundle's directory

MANIFEST_FILE: Final = "manifest.json"
REPORT_FILE: Final = "report.json"  # what export measured before it accepted the bundle
PLAN_FILE: Final = "model.plan"  # for TensorRT
KNOWN_ANSWERS_FILE: Final = "known-answers.npz"  # what engines are tested on before they serve
CACHE_FOLDER: Final = "cache"  # engines may write to it; not part of what was verified
SAMPLES_FOLDER: Final = "samples"

# --- forms of a graph, as the manifest names them

STANDARD_FORM: Final = "standard"  # standard operators only
PLUGIN_FORM: Final = "plugin"  # with nodes of the operator below
HALF_FORM: Final = "tensorrt"  # the plugin form, in half precision wherever that is allowed
GRAPH_FILES: Final = {
    STANDARD_FORM: "model.onnx",
    PLUGIN_FORM: "model.plugin.onnx",
    HALF_FORM: "model.tensorrt.onnx",
}
WEIGHTS_FILES: Final = {
    STANDARD_FORM: "weights.bin",
    PLUGIN_FORM: "weights.bin",
    HALF_FORM: "weights.tensorrt.bin",
}

# --- tensors of every graph; `bundle.manifest` has their types and shapes

IMAGES: Final = "images"
PADDING_MASK: Final = "padding_mask"
INPUTS: Final = (IMAGES, PADDING_MASK)
OUTPUTS: Final = ("scores", "labels", "boxes")

# --- multi-scale deformable attention in ONNX and TensorRT

OPERATOR: Final = "MSDeformAttn"
OPERATOR_DOMAIN: Final = "detr"
