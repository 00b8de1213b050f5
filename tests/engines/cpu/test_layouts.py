"""How threads share a batch is measured once, unless the settings say it."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.manifest import Bundle
from bundle.preprocess import decode_image, pad_batch, prepare
from engines.base import Mode
from engines.cpu import openvino_compile
from engines.cpu.openvino_engine import OpenVinoEngine

DEMO = Path(__file__).parents[3] / "bundles" / "demo"
WHOLE, SPLIT = "1 x 2 threads", "2 x 1 threads"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    directory = tmp_path_factory.mktemp("bundles") / "demo"
    return Bundle.load(shutil.copytree(DEMO, directory, ignore=shutil.ignore_patterns("cache")))


@pytest.fixture
def open_demo(demo: Bundle, monkeypatch: pytest.MonkeyPatch) -> Callable[..., OpenVinoEngine]:
    """Open the demo with two threads, where this layout is measured as the fastest."""

    def open_demo(fastest: str | None = None, *, mode: Mode = "auto") -> OpenVinoEngine:
        def choose(_: Path, ways: Mapping[str, Callable[[], object]], **__: Any) -> str:
            for run in ways.values():
                run()
            assert list(ways) == [WHOLE, SPLIT]
            assert fastest is not None, "measured"
            return fastest

        monkeypatch.setattr(openvino_compile, "measure_fastest", choose)
        return OpenVinoEngine(demo, threads=2, mode=mode)

    return open_demo


def test_a_batch_is_split_where_that_is_faster_and_answers_stay_the_same(
    open_demo: Callable[..., OpenVinoEngine], demo: Bundle
) -> None:
    preprocess = demo.manifest.preprocess
    photos = [decode_image(file.read_bytes()) for file in sorted(demo.directory.glob("samples/*"))]
    images, padding_mask = pad_batch(
        [prepare(photo, preprocess)[0] for photo in photos[:3]], preprocess.min_side
    )
    whole, split = open_demo(WHOLE), open_demo(SPLIT)

    expected = [whole.run(images[:size], padding_mask[:size]) for size in (1, 2, 3)]
    found = [split.run(images[:size], padding_mask[:size]) for size in (1, 2, 3)]

    assert (whole.info.streams, split.info.streams) == (1, 2)
    assert whole.max_batch_size == split.max_batch_size == demo.manifest.max_batch_size
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-5)


def test_threads_parts_and_what_stands_in_the_padding_change_no_bit(demo: Bundle) -> None:
    sizes = [(128, 97), (61, 160)]
    photos = [np.random.randint(0, 256, (*size, 3), np.uint8) for size in sizes]
    images, padding_mask = pad_batch(photos)
    noise = np.random.randint(0, 256, images.shape, np.uint8)
    dirty = np.where(padding_mask[..., None], noise, images)
    layouts: list[tuple[int, Mode]] = [(1, "latency"), (2, "latency"), (2, "throughput")]
    engines = [OpenVinoEngine(demo, threads=threads, mode=mode) for threads, mode in layouts]

    expected, *others = (
        engine.run(pixels, padding_mask) for engine in engines for pixels in (images, dirty)
    )

    for output in others:
        for found, same in zip(output, expected, strict=True):
            np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize(("mode", "streams"), [("latency", 1), ("throughput", 2)])
def test_a_mode_that_was_asked_for_is_not_measured(
    open_demo: Callable[..., OpenVinoEngine], mode: Mode, streams: int
) -> None:
    assert open_demo(mode=mode).info.streams == streams


def test_the_first_start_measures_and_the_second_takes_its_answer(
    open_demo: Callable[..., OpenVinoEngine], demo: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first = OpenVinoEngine(demo, threads=2, mode="auto")

    second = open_demo()

    assert second.info == first.info
    assert "measured on this machine, layout: 1 x 2 threads" in caplog.text


def test_nothing_is_measured_where_the_answer_cannot_be_kept(
    open_demo: Callable[..., OpenVinoEngine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(openvino_compile, "read_fastest", lambda *_, **__: None)
    caplog.set_level("INFO")

    engine = open_demo()

    assert engine.info.streams == 1
    assert "not measured: the bundle cannot be written to" in caplog.text


@pytest.mark.parametrize(
    ("threads", "may_halve", "max_streams", "expected"),
    [
        (1, True, 16, [(1, 1)]),
        (2, True, 16, [(2, 1), (2, 2)]),
        (4, True, 16, [(4, 1), (2, 1), (4, 2), (4, 4)]),
        (16, False, 16, [(16, 1), (16, 4), (16, 16)]),
        (64, True, 16, [(64, 1), (32, 1), (64, 16)]),
        (2, True, 1, [(2, 1)]),
    ],
)
def test_layouts_fit_the_threads_and_the_largest_batch(
    threads: int, may_halve: bool, max_streams: int, expected: list[tuple[int, int]]
) -> None:
    layouts = openvino_compile._layouts(threads, may_halve=may_halve, max_streams=max_streams)

    assert list(layouts.values()) == expected
