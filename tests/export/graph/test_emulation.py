from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from bundle.manifest import Manifest
from bundle.preprocess import decode_image, pad_batch, prepare
from export.graph.emulation import Emulation, emulate, open_session

DEMO = Path(__file__).parents[3] / "bundles" / "demo"
CHAIN = """
    <ir_version: 10, opset_import: ["" : 22]>
    chain (float[n] x) => (float[n] y) <TYPE[1] small = {SMALL}, TYPE[1] one = {ONE}> {
        h = Cast <to = CODE> (x)
        sum = Add (h, small)
        difference = Sub (sum, one)
        y = Cast <to = 1> (difference)
    }
"""
TYPES = {
    "fp16": {"TYPE": "float16", "CODE": "10", "ONE": "15360", "SMALL": "3072"},  # 2 ** -12
    "bf16": {"TYPE": "bfloat16", "CODE": "16", "ONE": "16256", "SMALL": "15104"},  # 2 ** -9
}


def chain(precision):
    """(x rounded + small) - 1, where 1 + small rounds to 1."""
    text = CHAIN
    for word, value in TYPES[precision].items():
        text = text.replace(word, value)
    return onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))


@pytest.mark.parametrize("precision", TYPES)
def test_every_operation_is_rounded(precision, tmp_path):
    model = ir.from_proto(chain(precision))
    x = np.array([1.0, 1.01], np.float32)

    computed = emulate(model)
    (y,) = open_session(model, tmp_path).run(None, {"x": x})

    step = {"fp16": 2.0**-10, "bf16": 2.0**-7}[precision]
    assert [value.name for value in computed] == ["h", "sum", "difference"]
    np.testing.assert_array_equal(y, [0.0, np.round(0.01 / step) * step])


def test_the_runtime_alone_rounds_nothing_of_it():
    x = np.array([1.0], np.float32)

    (y,) = ort.InferenceSession(chain("fp16").SerializeToString()).run(None, {"x": x})

    assert y[0] == 2.0**-12


def test_the_largest_numbers_are_reported_with_their_place(tmp_path):
    preprocess = Manifest.load(DEMO).preprocess
    image = decode_image((DEMO / "samples" / "1.png").read_bytes())
    batch = pad_batch([prepare(image, preprocess)[0]], preprocess.min_side)
    emulation = Emulation(DEMO / "model.onnx", "fp16", scratch=tmp_path)

    emulation.run(*batch)
    once = emulation.magnitudes
    emulation.run(np.zeros_like(batch[0]), batch[1])

    assert all(x >= y for x, y in zip(emulation.magnitudes, once, strict=True))
    largest = max(once)
    assert (largest.operator, largest.place) == ("MatMul", "decoder.layers.2.self_attn")
    assert 10 < largest.largest < 1000
    assert {magnitude.place.split(".")[0] for magnitude in once} == {
        *("input", "backbone", "input_proj", "encoder", "queries", "decoder", "box_heads"),
    }
