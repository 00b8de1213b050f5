"""A bundle whose detections anyone can predict from the image: no torch, no training.

Its graph has the inputs and outputs of an exported detector and finds, in every image, the box
around all pixels whose red channel is above 127, and likewise for green and blue. The score is
the brightest such value / 255, or 0 if there is none. Padding is ignored by the mask.
"""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnxruntime
from PIL import Image

from bundle.known_answers import write_known_answers
from bundle.layout import (
    GRAPH_FILES,
    INPUTS,
    KNOWN_ANSWERS_FILE,
    OUTPUTS,
    STANDARD_FORM,
    WEIGHTS_FILES,
)
from bundle.manifest import INPUT_SPECS, ClassInfo, Manifest, output_specs
from bundle.postprocess import RawOutput
from bundle.preprocess import Preprocess, Uint8Array

TOY_CLASSES = (
    ClassInfo(id=10, name="red"),
    ClassInfo(id=20, name="green"),
    ClassInfo(id=30, name="blue"),
)
TOY_PREPROCESS = Preprocess(short_side=64, long_side=128, min_side=32)
TOY_GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
toy (uint8[batch, height, width, 3] images, bool[batch, height, width] padding_mask)
    => (float[batch, 3] scores, int64[batch, 3] labels, float[batch, 3, 4] boxes)
<float white = {255.0}, float dark = {127.0}, float full = {1.0}, int64 step = {1},
 int64 num_classes = {3}, int64[1] k = {3}, float[2] off_on = {0.0, 1.0},
 int64[1] axis_1 = {1}, int64[1] axis_2 = {2}, int64[1] last = {-1}>
{
    is_valid = Not (padding_mask)
    valid = Cast <to = 1> (is_valid)
    valid_rows = ReduceMax <keepdims = 0> (valid, axis_2)
    valid_columns = ReduceMax <keepdims = 0> (valid, axis_1)
    valid_height = ReduceSum (valid_rows, axis_1)
    valid_width = ReduceSum (valid_columns, axis_1)

    levels = Cast <to = 1> (images)
    valid_pixels = Unsqueeze (valid, last)
    valid_levels = Mul (levels, valid_pixels)
    is_bright = Greater (valid_levels, dark)
    bright = Cast <to = 1> (is_bright)
    bright_levels = Mul (valid_levels, bright)
    brightest_of_columns = ReduceMax <keepdims = 0> (bright_levels, axis_1)
    brightest = ReduceMax <keepdims = 0> (brightest_of_columns, axis_1)
    score_of_channel = Div (brightest, white)

    rows = ReduceMax <keepdims = 0> (bright, axis_2)
    columns = ReduceMax <keepdims = 0> (bright, axis_1)
    top = ArgMax <axis = 1, keepdims = 0> (rows)
    left = ArgMax <axis = 1, keepdims = 0> (columns)
    bottom_row = ArgMax <axis = 1, keepdims = 0, select_last_index = 1> (rows)
    right_column = ArgMax <axis = 1, keepdims = 0, select_last_index = 1> (columns)
    bottom = Add (bottom_row, step)
    right = Add (right_column, step)
    x1 = Unsqueeze (left, last)
    y1 = Unsqueeze (top, last)
    x2 = Unsqueeze (right, last)
    y2 = Unsqueeze (bottom, last)
    corners = Concat <axis = -1> (x1, y1, x2, y2)
    corners_px = Cast <to = 1> (corners)
    size = Concat <axis = -1> (valid_width, valid_height, valid_width, valid_height)
    size_of_channel = Unsqueeze (size, axis_1)
    corners_normalised = Div (corners_px, size_of_channel)
    box_of_channel = Clip (corners_normalised, , full)

    scores, labels = TopK <axis = 1> (score_of_channel, k)
    choice = OneHot <axis = -1> (labels, num_classes, off_on)
    boxes = MatMul (choice, box_of_channel)
}
"""
# Silently wrong: its scores are nine tenths of what they are.
SCALED_GRAPH = TOY_GRAPH.replace("white = {255.0}", "white = {283.0}")


def make_toy_bundle(
    directory: Path, *, graph: str = TOY_GRAPH, max_batch_size: int = 4
) -> Manifest:
    """Write the toy bundle, weights file and sample image included, and return its manifest."""
    (directory / "samples").mkdir(parents=True)
    model = onnx.parser.parse_model(graph)
    white = model.graph.initializer[0]  # shapes stay in the graph, which its checker reads
    white.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(white), white.name))
    onnx.save_model(
        model,
        directory / GRAPH_FILES[STANDARD_FORM],
        save_as_external_data=True,
        location=WEIGHTS_FILES[STANDARD_FORM],
        size_threshold=0,
    )
    sample = Image.new("RGB", (64, 48))
    sample.paste((230, 0, 0), (8, 12, 40, 36))
    sample.save(directory / "samples" / "1.png")
    manifest = Manifest(
        name="toy",
        variant="two_stage",
        graphs={STANDARD_FORM: GRAPH_FILES[STANDARD_FORM]},
        inputs=INPUT_SPECS,
        outputs=output_specs(3),
        preprocess=TOY_PREPROCESS,
        classes=TOY_CLASSES,
        num_detections=3,
        max_batch_size=max_batch_size,
        batches="any",
        metrics={"AP": 1.0},
        samples=("samples/1.png",),
    )
    (directory / KNOWN_ANSWERS_FILE).write_bytes(_known_answers(manifest.preprocess))
    return manifest.save(directory)


@cache
def _known_answers(preprocess: Preprocess) -> bytes:
    """What the toy graph says of three images, whatever graph the bundle has."""
    model = onnx.parser.parse_model(TOY_GRAPH).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    with TemporaryDirectory() as directory:
        write_known_answers(
            Path(directory),
            lambda *batch: RawOutput(*session.run(OUTPUTS, dict(zip(INPUTS, batch, strict=True)))),
            preprocess=preprocess,
            images=[_picture(230, 200, 160), _picture(150, 220, 190), _picture(180, 140, 240)],
        )
        return (Path(directory) / KNOWN_ANSWERS_FILE).read_bytes()


def _picture(*brightness: int) -> Uint8Array:
    """(96, 128, 3) uint8 RGB with a red, a green and a blue thing of these values."""
    picture = Image.new("RGB", (128, 96), (40, 40, 40))
    for channel, box in enumerate([(16, 16, 60, 50), (70, 10, 110, 44), (40, 56, 90, 88)]):
        colour = [0, 0, 0]
        colour[channel] = brightness[channel]
        picture.paste(tuple(colour), box)
    return np.asarray(picture)
