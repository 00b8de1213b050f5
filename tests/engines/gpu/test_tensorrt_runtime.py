import logging
import sys
from pathlib import Path

import pytest

from engines.gpu.tensorrt_runtime import (
    TensorRTError,
    load_plugin,
    load_tensorrt,
    log_of,
    require,
)
from tests.fake_tensorrt import FakeTensorRT


def test_a_package_that_is_not_installed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)

    with pytest.raises(ValueError, match=r"TensorRT cannot be loaded .*install .*DETR_ENGINE"):
        load_tensorrt()


def test_a_library_that_is_missing_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.11: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ValueError, match=r"cannot be loaded \(libnvinfer\.so\.11: cannot open\)"):
        load_tensorrt()


@pytest.mark.parametrize("version", ["8.6.1", "10.0.1", "12.0.0.1"])
def test_a_version_that_the_engine_is_not_written_for_is_refused(
    trt: FakeTensorRT, version: str
) -> None:
    trt.__version__ = version

    with pytest.raises(ValueError, match=rf"expected TensorRT 10\.1 to 11, got {version}"):
        load_tensorrt()


@pytest.mark.parametrize("version", ["10.1.0.27", "10.16.1.11", "11.4.0.106"])
def test_both_major_versions_are_taken(trt: FakeTensorRT, version: str) -> None:
    trt.__version__ = version

    assert load_tensorrt() is trt


def test_an_error_carries_what_tensorrt_logged_and_is_not_told_twice(trt: FakeTensorRT) -> None:
    log = log_of(trt)
    log.log(trt.ILogger.ERROR, "first")
    log.log(trt.ILogger.INTERNAL_ERROR, "second")
    log.log(trt.ILogger.ERROR, "first")

    with pytest.raises(TensorRTError, match=r"^the build failed: first; second$"):
        require(trt, None, call="the build")
    with pytest.raises(TensorRTError, match="gave no reason"):
        require(trt, False, call="the build")


def test_an_outcome_is_handed_on(trt: FakeTensorRT) -> None:
    assert require(trt, 0, call="a call") == 0


def test_what_tensorrt_says_reaches_the_log(
    trt: FakeTensorRT, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    log = log_of(trt)

    for severity in (trt.ILogger.ERROR, trt.ILogger.WARNING, trt.ILogger.VERBOSE):
        log.log(severity, "something")

    levels = [record.levelname for record in caplog.records if record.message == "something"]
    assert levels == ["ERROR", "INFO", "DEBUG"]


def test_a_process_has_one_log(trt: FakeTensorRT) -> None:
    assert log_of(trt) is log_of(trt)


def test_a_plugin_is_loaded_once(tmp_path: Path, trt: FakeTensorRT) -> None:
    (tmp_path / "plugin.so").write_text("MSDeformAttn")

    load_plugin(trt, tmp_path / "plugin.so")
    load_plugin(trt, tmp_path / "plugin.so")

    assert len(trt.registry.all_creators) == 1


def test_a_plugin_built_for_another_version_is_refused(tmp_path: Path, trt: FakeTensorRT) -> None:
    (tmp_path / "plugin.so").write_text("")  # it loads, and registers nothing

    with pytest.raises(
        ValueError,
        match=r"plugin\.so: TensorRT 11.* no operator MSDeformAttn .*another version.*make plugins",
    ):
        load_plugin(trt, tmp_path / "plugin.so")


def test_a_plugin_that_does_not_load_is_refused_with_the_reason(
    tmp_path: Path, trt: FakeTensorRT
) -> None:
    with pytest.raises(ValueError, match=r"missing\.so: cannot open shared object file"):
        load_plugin(trt, tmp_path / "missing.so")
