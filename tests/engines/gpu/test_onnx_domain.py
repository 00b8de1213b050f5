from pathlib import Path

import onnx
import pytest

from engines.gpu.onnx_domain import rename_domain

DEMO = Path(__file__).parents[3] / "bundles" / "demo"


def test_operators_of_the_domain_are_renamed_and_nothing_else() -> None:
    data = (DEMO / "model.plugin.onnx").read_bytes()
    expected = onnx.ModelProto.FromString(data)
    own = [node for node in expected.graph.node if node.domain == "detr"]
    for named in (*own, *[opset for opset in expected.opset_import if opset.domain == "detr"]):
        named.domain = "trt.plugins"

    renamed = onnx.ModelProto.FromString(rename_domain(data, "detr", "trt.plugins"))

    assert len(own) == 4
    assert renamed == expected


def test_a_domain_that_does_not_occur_leaves_every_byte() -> None:
    data = (DEMO / "model.plugin.onnx").read_bytes()

    assert rename_domain(data, "other", "trt.plugins") == data


def test_a_shorter_name_and_back_give_the_same_model() -> None:
    data = (DEMO / "model.plugin.onnx").read_bytes()

    there = rename_domain(data, "detr", "x")

    assert rename_domain(there, "x", "detr") == data


@pytest.mark.parametrize("data", [b"\x3a\x05ab", b"\x3f", b"\x80", b"\x3a\xff"], ids=repr)
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="expected a serialized ONNX model"):
        rename_domain(data, "detr", "trt.plugins")
