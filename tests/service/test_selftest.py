"""An engine that is silently wrong is never ready, and the command says how far it is off."""

import asyncio
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from bundle.manifest import Bundle
from bundle.postprocess import RawOutput
from bundle.preprocess import BoolArray
from engines.cpu.onnxruntime_engine import OnnxRuntimeEngine
from service.app import create_app
from service.selftest import main
from service.settings import Settings
from tests.faults import FAULTS, Fault, FaultyEngine
from tests.server_process import Process
from tests.toy_bundle import SCALED_GRAPH, make_toy_bundle


@pytest.fixture
def wrong_bundle(tmp_path: Path) -> Path:
    """A bundle whose graph gives scores that are too low."""
    make_toy_bundle(tmp_path / "wrong", graph=SCALED_GRAPH)
    return tmp_path / "wrong"


@pytest.mark.anyio
@pytest.mark.parametrize("fault", FAULTS)
async def test_an_engine_that_is_silently_wrong_is_never_ready(
    toy_bundle: Path, fault: Fault
) -> None:
    right = OnnxRuntimeEngine(Bundle.load(toy_bundle), threads=1)
    is_stopped = asyncio.Event()
    app = create_app(
        Settings(bundle=toy_bundle),
        lambda *_: FaultyEngine(right, fault),
        on_failure=is_stopped.set,
    )
    async with app.router.lifespan_context(app):
        await app.state.startup
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            ready = await client.get("/readyz")
            metrics = (await client.get("/metrics")).text

    assert ready.status_code == 503
    assert is_stopped.is_set()
    assert "does not give the bundle's known answers; image 1" in app.state.serving.failure
    assert 'detr_selftest_passed{model="toy"} 0.0' in metrics


def less_sure_alone(output: RawOutput, padding_mask: BoolArray) -> RawOutput:
    """Scores a little lower where an image is alone in its batch."""
    return output._replace(scores=output.scores - np.float32(1e-4 * (len(padding_mask) == 1)))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fault", "least", "most"),
    [(lambda output, _: output, 0, 0.01), (less_sure_alone, 0.09, 0.11)],
    ids=["right", "a little off in some tries"],
)
async def test_the_metrics_tell_how_close_the_worst_answers_were(
    toy_bundle: Path, fault: Fault, least: float, most: float
) -> None:
    right = OnnxRuntimeEngine(Bundle.load(toy_bundle), threads=1)
    app = create_app(Settings(bundle=toy_bundle), lambda *_: FaultyEngine(right, fault))
    async with app.router.lifespan_context(app):
        await app.state.startup
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            metrics = (await client.get("/metrics")).text

    ratios = re.findall(r'detr_selftest_error_ratio\{error="(\w+)",model="toy"\} (\S+)', metrics)
    assert 'detr_selftest_passed{model="toy"} 1.0' in metrics
    assert [name for name, _ in ratios] == ["score", "shift", "box_px", "lost"]
    assert least <= max(float(ratio) for _, ratio in ratios) < most


def test_a_process_whose_engine_is_wrong_ends_with_status_1_and_one_message(
    start: Callable[..., Process], wrong_bundle: Path
) -> None:
    status, log = start(bundle=wrong_bundle).end()

    assert status == 1
    (message,) = re.findall(r"^.*cannot serve: .*$", log, flags=re.M)
    assert re.search(
        r"image 1 \(64x85\) alone, .* FAILED; expected red 0\.902 at .*, got red 0\.813 at .*; see "
        rf"all with `python -m service\.selftest --bundle {wrong_bundle}`; remove {wrong_bundle}"
        "/cache if it exists, .*`make export`",
        message,
    )
    assert "Traceback" not in log


def test_the_command_prints_every_image_with_its_errors(
    toy_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["--bundle", str(toy_bundle)])

    lines = capsys.readouterr().out.splitlines()
    assert status == 0
    assert "openvino" in lines[0]
    assert len(lines) == 8
    assert all(re.match(r"image \d .*: score .*/0\.001, .*: passed$", line) for line in lines[1:])


def test_the_command_tries_the_engine_that_the_settings_name(
    toy_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETR_ENGINE", "onnxruntime")
    monkeypatch.setenv("DETR_BUNDLE", str(toy_bundle))

    status = main([])

    assert status == 0
    assert capsys.readouterr().out.startswith(f"{toy_bundle}: onnxruntime, fp32")


def test_the_command_shows_what_is_wrong_and_fails(
    wrong_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["--bundle", str(wrong_bundle)])

    output = capsys.readouterr().out
    assert status == 1
    assert output.count("FAILED") == 7
    assert "expected red 0.902" in output


def test_the_command_says_why_nothing_could_be_tried(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "toy"
    shutil.copytree(toy_bundle, bundle)
    (bundle / "weights.bin").write_bytes(b"other")

    status = main(["--bundle", str(bundle)])

    assert status == 2
    assert "weights.bin: expected SHA-256" in capsys.readouterr().err


def test_a_wrong_setting_is_named_in_one_line_and_a_secret_is_not_shown(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETR_PORT", "http")
    monkeypatch.setenv("DETR_ADMIN_KEY", "hush")

    status = main(["--bundle", str(toy_bundle)])

    shown = capsys.readouterr().err
    assert status == 2
    assert re.fullmatch(r"error: DETR_PORT: .*, got 'http'; DETR_ADMIN_KEY: .*\n", shown)
    assert "hush" not in shown
