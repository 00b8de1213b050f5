import json
from itertools import islice
from pathlib import Path

import pytest

from bundle.layout import REPORT_FILE
from bundle.manifest import Bundle
from export.judge.answers import engines_on_cpu, judge_answers
from export.judge.refusal import Refused
from tests.toy_bundle import SCALED_GRAPH, make_toy_bundle


def test_every_engine_of_a_cpu_is_tried_alone_and_padded(toy_bundle: Path) -> None:
    bundle = Bundle.load(toy_bundle)

    reports = judge_answers(bundle, engines_on_cpu(bundle))

    assert [report["runtime"] for report in reports] == ["onnxruntime", "openvino"]
    assert min(report["tries"] for report in reports) >= 3 + bundle.manifest.max_batch_size
    assert max(report["score"] for report in reports) < 1e-5


def test_the_demo_has_the_report_that_export_writes(toy_bundle: Path) -> None:
    bundle = Bundle.load(toy_bundle)

    (written,) = judge_answers(bundle, islice(engines_on_cpu(bundle), 1))

    kept = json.loads(Path("bundles/demo", REPORT_FILE).read_text())["known_answers"]
    assert [entry.keys() for entry in kept] == [written.keys()] * 2


def test_an_engine_that_does_not_give_the_answers_is_refused_by_name(tmp_path: Path) -> None:
    make_toy_bundle(tmp_path / "wrong", graph=SCALED_GRAPH)
    bundle = Bundle.load(tmp_path / "wrong")

    with pytest.raises(
        Refused, match=r"^onnxruntime \(fp32, graph standard\) .* got red 0\.\d+ at"
    ):
        judge_answers(bundle, engines_on_cpu(bundle))
