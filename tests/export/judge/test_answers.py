import json
from itertools import islice
from pathlib import Path

import pytest
import torch

from bundle.layout import REPORT_FILE
from bundle.manifest import Bundle
from engines.base import Engine
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from engines.gpu.torch_cuda import open_on_cpu
from export.judge import answers
from export.judge.answers import (
    engines_in_torch,
    engines_on_cpu,
    find_torch_cuda,
    judge_answers,
)
from export.judge.refusal import Refused
from export.recipe import try_engines
from plugins import cpu_kernels
from tests.toy_bundle import SCALED_GRAPH, make_toy_bundle

DEMO = Path("bundles/demo")


def test_every_engine_of_a_cpu_is_tried_alone_and_padded(toy_bundle: Path) -> None:
    bundle = Bundle.load(toy_bundle)

    reports = judge_answers(bundle, engines_on_cpu(bundle))

    assert [report["runtime"] for report in reports] == ["onnxruntime", "openvino"]
    assert min(report["tries"] for report in reports) >= 3 + bundle.manifest.max_batch_size
    assert max(report["score"] for report in reports) < 1e-5


def test_the_demo_has_the_report_that_export_writes(toy_bundle: Path) -> None:
    bundle = Bundle.load(toy_bundle)

    (written,) = judge_answers(bundle, islice(engines_on_cpu(bundle), 1))

    kept = json.loads((DEMO / REPORT_FILE).read_text())["known_answers"]
    assert [entry.keys() for entry in kept] == [written.keys()] * 2


def test_an_engine_that_does_not_give_the_answers_is_refused_by_name(tmp_path: Path) -> None:
    make_toy_bundle(tmp_path / "wrong", graph=SCALED_GRAPH)
    bundle = Bundle.load(tmp_path / "wrong")

    with pytest.raises(
        Refused, match=r"^onnxruntime \(fp32, graph standard\) .* got red 0\.\d+ at"
    ):
        judge_answers(bundle, engines_on_cpu(bundle))


@pytest.mark.skipif(not cpu_kernels.instruction_sets(), reason="there was no C++ compiler")
def test_torch_cuda_gives_the_answers_of_the_demo() -> None:
    bundle = Bundle.load(DEMO)

    (report,) = judge_answers(bundle, engines_in_torch(bundle, open_on_cpu))

    assert (report["runtime"], report["graph"]) == ("torch-cuda", "plugin")
    assert report["score"] < 1e-4


def test_an_export_reports_torch_cuda_beside_the_engines_of_a_cpu(toy_bundle: Path) -> None:
    bundle = Bundle.load(toy_bundle)

    reports = try_engines(bundle, None, open_torch=OnnxRuntimeEngine)

    assert [report["runtime"] for report in reports] == ["onnxruntime", "openvino", "onnxruntime"]


def test_torch_cuda_is_refused_if_it_does_not_give_the_answers(tmp_path: Path) -> None:
    make_toy_bundle(tmp_path / "wrong", graph=SCALED_GRAPH)
    bundle = Bundle.load(tmp_path / "wrong")

    with pytest.raises(Refused, match=r"does not give the bundle's known answers"):
        judge_answers(bundle, engines_in_torch(bundle, OnnxRuntimeEngine))


def test_a_gpu_on_which_torch_cuda_does_not_start_is_no_reason_to_refuse(
    toy_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def open_torch(bundle: Bundle) -> Engine:
        raise ValueError("the GPU has too little memory")

    reports = judge_answers(
        Bundle.load(toy_bundle), engines_in_torch(Bundle.load(toy_bundle), open_torch)
    )

    assert reports == []
    assert caplog.messages == [
        "the engine torch-cuda was not tested: the GPU has too little memory"
    ]


def test_torch_cuda_is_not_asked_for_int8(toy_bundle: Path) -> None:
    bundle = Bundle.load(toy_bundle).with_manifest(precision="int8")

    assert list(engines_in_torch(bundle, OnnxRuntimeEngine)) == []


@pytest.mark.parametrize(
    ("has_gpu", "has_kernels"), [(False, True), (True, False), (True, True)], ids=str
)
def test_torch_cuda_needs_a_gpu_and_kernels(
    monkeypatch: pytest.MonkeyPatch, has_gpu: bool, has_kernels: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(answers, "gpu_kernels", lambda: object() if has_kernels else None)

    assert (find_torch_cuda() is not None) == (has_gpu and has_kernels)
