import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bundle.manifest import Bundle
from export.published import main, published_bundle
from model.checkpoints.checkpoint_file import load_checkpoint
from model.checkpoints.published_urls import digest_prefix, published_url
from tests.data.parity.make_checkpoint import checkpoint
from tests.file_server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def exports() -> list[str]:
    """The variants of the checkpoints that were exported."""
    return []


@pytest.fixture
def export(toy_bundle: Path, exports: list[str]) -> Callable[[Path, Path], None]:
    """Stands in for the export, which takes a minute."""

    def export(checkpoint: Path, directory: Path) -> None:
        exports.append(load_checkpoint(checkpoint).config.model.variant)
        shutil.copytree(toy_bundle, directory, dirs_exist_ok=True)

    return export


def test_a_published_detector_becomes_a_bundle_once_with_progress(
    tmp_path: Path,
    server: Server,
    export: Callable[[Path, Path], None],
    exports: list[str],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level("INFO", "export")
    url = server.put(checkpoint("twostage", "mmdet2"))

    first = published_bundle(url, tmp_path / "two_stage.safetensors", export=export)
    told = [record.message for record in caplog.records if record.levelname == "INFO"]
    bar = capsys.readouterr().err
    caplog.clear()
    second = published_bundle(url, tmp_path / "two_stage.safetensors", export=export)

    assert first == second == tmp_path / f"two_stage-{url[-12:-4]}"
    assert Bundle.load(first).directory == first
    assert exports == ["two_stage"]
    assert len(server.requests) == 1
    assert [message.split()[0] for message in told] == ["downloading", "exporting"]
    assert f"{url.rsplit('/', 1)[1]}: 100%" in bar
    assert (caplog.messages, capsys.readouterr().err) == ([], "")


def test_the_second_start_needs_no_network_and_no_pytorch(tmp_path: Path, toy_bundle: Path) -> None:
    directory = tmp_path / f"two_stage-{digest_prefix(published_url('two_stage'))}"
    shutil.copytree(toy_bundle, directory)
    program = (
        "import sys; from export.published import main; "
        f"status = main(['two_stage', '--out', {str(tmp_path)!r}, '--base-url', 'http://[::1]:1']);"
        "sys.exit(status or 'torch' in sys.modules)"
    )

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{directory}\n"


def test_other_weights_of_the_variant_become_another_bundle(
    tmp_path: Path, server: Server, export: Callable[[Path, Path], None], exports: list[str]
) -> None:
    path = tmp_path / "base.safetensors"

    first = published_bundle(server.put(checkpoint("base", "mmdet2")), path, export=export)
    second = published_bundle(server.put(checkpoint("refine", "mmdet2")), path, export=export)

    assert first != second
    assert exports == ["base", "refine"]


def test_an_export_that_fails_is_tried_again_without_another_download(
    tmp_path: Path, server: Server, export: Callable[[Path, Path], None], exports: list[str]
) -> None:
    def fails(checkpoint: Path, directory: Path) -> None:
        raise KeyboardInterrupt

    url = server.put(checkpoint("base", "mmdet2"))
    with pytest.raises(KeyboardInterrupt):
        published_bundle(url, tmp_path / "base.safetensors", export=fails)

    published_bundle(url, tmp_path / "base.safetensors", export=export)

    assert exports == ["base"]
    assert len(server.requests) == 1


@pytest.mark.parametrize("file", ["manifest.json", "model.onnx"])
def test_a_damaged_bundle_is_made_again(
    tmp_path: Path,
    server: Server,
    export: Callable[[Path, Path], None],
    exports: list[str],
    file: str,
) -> None:
    url = server.put(checkpoint("base", "mmdet2"))
    directory = published_bundle(url, tmp_path / "base.safetensors", export=export)
    (directory / file).write_bytes(b"{}")

    published_bundle(url, tmp_path / "base.safetensors", export=export)

    assert Bundle.load(directory).directory == directory
    assert exports == ["base", "base"]


def test_a_server_with_other_content_ends_the_command_in_one_line(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.content = b"no weights"

    status = main(["two_stage", "--out", str(tmp_path), "--base-url", server.url])

    out, err = capsys.readouterr()
    assert status == 1
    assert out == ""
    assert "is not the published file" in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
