"""JPEGs decoded on a GPU, beside the CPU: pixels, damage, AP, and an engine at work meanwhile."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bundle.device_image import Decode
from bundle.manifest import Bundle
from bundle.preprocess import Preprocess, UndecodableImage, decode_image, pad_batch, prepare
from engines.base import Engine
from engines.decoders import open_decoder
from engines.load import GpuOptions, open_engine
from export.judge.verify import photographs
from model.data.digits import CLASSES, DigitsDataset, write_coco
from model.data.evaluation_data import decoded_by, open_evaluation_data
from model.evaluation.evaluation import evaluate
from plugins.gpu_kernels import gpu_kernels
from tests.bundle.image_files import Encode, exif_of
from tests.engines.gpu.nvimagecodec import HAS_NVIMAGECODEC

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "bundles" / "demo"
FILES = sorted((ROOT / "tests" / "data" / "coco_fixture12" / "images").rglob("*.jpg"))
FULL_SIZE = Preprocess()
MOST_APART = 2.0  # grey levels, on average


@pytest.fixture(scope="module")
def decode() -> Decode:
    if not torch.cuda.is_available() or not HAS_NVIMAGECODEC:
        pytest.skip("left out, without PyTorch with CUDA and nvImageCodec: decoding on a GPU")
    return open_decoder("gpu")


def assert_alike(decode: Decode, data: bytes) -> None:
    image = decode(data)
    assert not isinstance(image, np.ndarray), "it was decoded on the CPU"
    (found, geometry), (right, same) = (
        prepare(one, FULL_SIZE) for one in (image, decode_image(data))
    )
    assert geometry == same
    assert np.abs(found.astype(np.int16) - right).mean() < MOST_APART


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_photographs_look_alike(decode: Decode, path: Path) -> None:
    assert_alike(decode, path.read_bytes())


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_every_kind_of_file_does(
    decode: Decode, encode: Encode, subsampling: str, progressive: bool, orientation: int
) -> None:
    options = {"subsampling": subsampling, "progressive": progressive}

    assert_alike(decode, encode(photographs()[0], "JPEG", exif=exif_of(orientation), **options))


def test_grey_does(decode: Decode, encode: Encode) -> None:
    assert_alike(decode, encode(photographs()[0][:, :, 0], "JPEG"))


def test_damage_is_refused_as_on_the_cpu(decode: Decode) -> None:
    data = FILES[0].read_bytes()
    for place in range(2000, len(data) - 2000, len(data) // 20):
        with pytest.raises(UndecodableImage) as expected:
            decode_image(data[:place])
        with pytest.raises(UndecodableImage) as caught:
            decode(data[:place])
        assert str(caught.value) == str(expected.value)


def test_ap_is_kept(decode: Decode, tmp_path: Path) -> None:
    write_coco(DigitsDataset("val", num_images=60), tmp_path)
    for path in (tmp_path / "images" / "val").iterdir():
        Image.open(path).save(path, "JPEG")  # the name does not matter
    data = open_evaluation_data(tmp_path, "val", classes=CLASSES)
    bundle = Bundle.load(DEMO)
    engine = open_engine(bundle, engine="onnxruntime")

    aps = [
        evaluate(
            engine.run,
            data,
            preprocess=bundle.manifest.preprocess,
            classes=CLASSES,
            read=decoded_by(data, by),
        ).numbers["AP"]
        for by in (decode_image, decode)
    ]

    engine.close()
    assert aps[0] > 0.5
    assert aps[1] == pytest.approx(aps[0], abs=0.01)


@pytest.fixture
def engine() -> Iterator[Engine]:
    if gpu_kernels() is None:
        pytest.skip("left out, without nvcc and without Triton: decoding beside an engine")
    engine = open_engine(Bundle.load(DEMO), engine="torch-cuda", gpu=GpuOptions(max_graphs=4))
    yield engine
    engine.close()


def test_an_engine_that_captures_graphs_and_a_decoder_do_not_disturb_each_other(
    decode: Decode, engine: Engine
) -> None:
    photo = photographs()[0]
    sizes = [(96 + 8 * number, 128) for number in range(8)]
    batches = [pad_batch([np.ascontiguousarray(photo[:h, :w])]) for h, w in sizes] * 4
    files = [path.read_bytes() for path in FILES] * 4
    alone = [engine.run(*batch) for batch in batches]
    pixels = [prepare(decode(data), FULL_SIZE)[0] for data in files]

    with ThreadPoolExecutor(9) as pool:
        decoded = [pool.submit(lambda data: prepare(decode(data), FULL_SIZE)[0], d) for d in files]
        found = [engine.run(*batch) for batch in batches]

    for one, other in zip(alone, found, strict=True):
        for part in one._fields:
            np.testing.assert_array_equal(getattr(one, part), getattr(other, part))
    for future, expected in zip(decoded, pixels, strict=True):
        np.testing.assert_array_equal(future.result(), expected)
