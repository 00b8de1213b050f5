"""Downloads against a real HTTP server that misbehaves in the ways servers do."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import safetensors.torch
import torch

from model.checkpoints.checkpoint_file import load_checkpoint
from model.checkpoints.download import download
from model.checkpoints.fetch import fetch_backbone, fetch_detector
from model.checkpoints.published_urls import published_url
from model.config import ModelConfig, TrainConfig
from model.configs import base, finetune, refine, small, tiny
from model.network.deformable_detr import DeformableDetr
from model.training.starting_weights import check_start, load_backbone, starting_file
from model.weights import main
from tests.data.parity.make_checkpoint import checkpoint
from tests.file_server import Server

CONTENT = bytes(range(256)) * 4096  # 1 MiB
NAME = f"weights-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(CONTENT)
    yield server
    server.close()


@pytest.fixture
def waits() -> list[float]:
    """The waits between tries, none of which is really waited for."""
    return []


@pytest.fixture
def fetch(server: Server, waits: list[float]) -> Callable[[Path], None]:
    """Downloads NAME from the server to a path."""
    return partial(download, f"{server.url}/{NAME}", sleep=waits.append)


def test_a_download_arrives_whole(
    tmp_path: Path, server: Server, fetch: Callable[[Path], None]
) -> None:
    path = tmp_path / "new" / NAME

    fetch(path)

    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


def test_what_is_there_is_not_fetched_again(
    tmp_path: Path, server: Server, fetch: Callable[[Path], None]
) -> None:
    (tmp_path / NAME).write_bytes(CONTENT)

    fetch(tmp_path / NAME)

    assert server.requests == []


def test_a_damaged_file_that_is_there_is_fetched_again(
    tmp_path: Path, server: Server, fetch: Callable[[Path], None]
) -> None:
    (tmp_path / NAME).write_bytes(CONTENT[:-1])

    fetch(tmp_path / NAME)

    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_broken_connection_resumes_where_it_stopped(
    tmp_path: Path, server: Server, waits: list[float], fetch: Callable[[Path], None]
) -> None:
    server.breaks = [300_000, 200_000]

    fetch(tmp_path / NAME)

    assert (tmp_path / NAME).read_bytes() == CONTENT
    starts = [wanted for _, wanted in server.requests]
    assert starts == [None, "bytes=300000-", "bytes=500000-"]
    assert waits == [1.0, 1.0]


def test_a_later_call_resumes_where_an_earlier_one_stopped(
    tmp_path: Path, server: Server, fetch: Callable[[Path], None]
) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:1000])

    fetch(tmp_path / NAME)

    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert server.requests == [(f"/{NAME}", "bytes=1000-")]


def test_a_server_without_ranges_starts_over(
    tmp_path: Path, server: Server, fetch: Callable[[Path], None]
) -> None:
    server.has_ranges = False
    server.breaks = [300_000]

    fetch(tmp_path / NAME)

    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_a_range_that_was_not_asked_for_is_not_appended(
    tmp_path: Path, server: Server, fetch: Callable[[Path], None]
) -> None:
    server.wrong_range = True
    server.breaks = [300_000]

    fetch(tmp_path / NAME)

    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [None, "bytes=300000-", None]


@pytest.mark.parametrize("surplus", [b"", b"more"], ids=["complete", "too long"])
def test_a_part_with_nothing_left_to_fetch_ends_well(
    tmp_path: Path, fetch: Callable[[Path], None], surplus: bytes
) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT + surplus)

    fetch(tmp_path / NAME)

    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_busy_server_is_asked_again_after_growing_waits(
    tmp_path: Path, server: Server, waits: list[float], fetch: Callable[[Path], None]
) -> None:
    server.statuses = [503, 500, 429]

    fetch(tmp_path / NAME)

    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert waits == [1.0, 2.0, 4.0]


def test_a_server_that_stays_broken_is_given_up_and_the_part_kept(
    tmp_path: Path, server: Server, waits: list[float], fetch: Callable[[Path], None]
) -> None:
    server.breaks = [1000, 0, 0, 0, 0, 0]

    with pytest.raises(ValueError, match=r"check the network or the proxy.*resumes at byte 1000"):
        fetch(tmp_path / NAME)

    assert (tmp_path / f"{NAME}.part").read_bytes() == CONTENT[:1000]
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_a_server_without_ranges_that_always_breaks_is_given_up(
    tmp_path: Path, server: Server, waits: list[float], fetch: Callable[[Path], None]
) -> None:
    server.has_ranges = False
    server.breaks = [1000] * 9

    with pytest.raises(ValueError, match="cannot download"):
        fetch(tmp_path / NAME)

    assert len(waits) == 4


def test_no_server_at_all_says_so(
    tmp_path: Path, server: Server, waits: list[float], fetch: Callable[[Path], None]
) -> None:
    server.close()

    with pytest.raises(ValueError, match=r"cannot download http.*check the network"):
        fetch(tmp_path / NAME)

    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_a_file_that_is_not_there_is_not_asked_for_again(
    tmp_path: Path, server: Server, fetch: Callable[[Path], None]
) -> None:
    server.statuses = [404]

    with pytest.raises(ValueError, match=r"the server answers 404; .*--base-url"):
        fetch(tmp_path / NAME)

    assert len(server.requests) == 1
    assert list(tmp_path.iterdir()) == []


def test_wrong_content_is_removed_and_named(
    tmp_path: Path, server: Server, fetch: Callable[[Path], None]
) -> None:
    server.content = CONTENT[::-1]

    with pytest.raises(ValueError, match=r"SHA-256 does not begin with [0-9a-f]{8}; .*removed"):
        fetch(tmp_path / NAME)

    assert list(tmp_path.iterdir()) == []


def test_a_name_without_digits_cannot_be_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="eight hex digits"):
        fetch_detector("http://127.0.0.1/model.pth", tmp_path / "model.safetensors")


def test_a_full_disk_keeps_what_arrived(
    tmp_path: Path, full_disk: None, fetch: Callable[[Path], None]
) -> None:
    with pytest.raises(OSError, match=r"free 1 MB .*resume the download"):
        fetch(tmp_path / NAME)

    kept = (tmp_path / f"{NAME}.part").read_bytes()
    assert kept
    assert CONTENT.startswith(kept)


def test_a_detector_is_fetched_and_converted_once(tmp_path: Path, server: Server) -> None:
    url = server.put(checkpoint("refine", "mmdet2"))
    path = tmp_path / "refine.safetensors"

    fetch_detector(url, path)
    fetch_detector(url, path)

    assert load_checkpoint(path).config.model.variant == "refine"
    assert load_checkpoint(path).provenance["source"] == url.rsplit("/", 1)[1]
    assert len(server.requests) == 1


def test_the_backbone_is_fetched_and_loaded(tmp_path: Path, server: Server) -> None:
    model = DeformableDetr(tiny().model)
    published = {name: torch.rand_like(x) for name, x in model.backbone.state_dict().items()}
    extra = {"fc.weight": torch.zeros(1), "bn1.num_batches_tracked": torch.tensor(0)}
    url = server.put(published | extra)

    fetch_backbone(url, tmp_path / "resnet50.safetensors")
    load_backbone(tmp_path / "resnet50.safetensors", model)

    stored = safetensors.torch.load_file(tmp_path / "resnet50.safetensors")
    assert stored.keys() == {f"backbone.{name}" for name in published}
    loaded = model.backbone.state_dict()
    assert all(torch.equal(loaded[name], x) for name, x in published.items())


def test_a_backbone_of_another_size_is_refused(tmp_path: Path, server: Server) -> None:
    published = DeformableDetr(tiny().model).backbone.state_dict()
    fetch_backbone(server.put(published), tmp_path / "resnet50.safetensors")
    other = DeformableDetr(ModelConfig(num_classes=1, backbone_width=5))

    with pytest.raises(ValueError, match=r"does not fit the model's backbone: .*conv1\.weight"):
        load_backbone(tmp_path / "resnet50.safetensors", other)


def with_backbone(block: Literal["basic", "bottleneck"], *blocks: int) -> TrainConfig:
    model = ModelConfig(backbone_block=block, backbone_blocks=blocks)  # type: ignore[arg-type]
    return replace(base(), model=model)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (base(), "resnet50"),
        (refine(), "resnet50"),
        (with_backbone("basic", 2, 2, 2, 2), "resnet18"),
        (with_backbone("basic", 3, 4, 6, 3), "resnet34"),
        (with_backbone("bottleneck", 3, 4, 23, 3), "resnet101"),
        (finetune(), "two_stage"),
    ],
)
def test_weights_that_a_run_starts_from_are_fetched_once(
    config: TrainConfig, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fetched: list[str] = []

    def fetch(wanted: str, path: Path) -> None:
        path.parent.mkdir()
        path.touch()
        fetched.append(wanted)

    check_start(config, None, fetch=fetch)
    check_start(config, None, fetch=fetch)

    assert fetched == [name]
    assert starting_file(config, None) == Path("weights") / f"{name}.safetensors"


@pytest.mark.parametrize("changes", [{"backbone_width": 32}, {"backbone_blocks": (3, 3, 3, 3)}])
def test_a_backbone_that_nobody_published_has_no_weights_to_start_from(
    changes: dict[str, Any],
) -> None:
    config = replace(base(), model=ModelConfig(**changes))

    with pytest.raises(ValueError, match=r"only for width 64 and resnet18: backbone_block=basic"):
        check_start(config, None, fetch=None)


def test_nothing_is_fetched_for_a_run_with_weights_of_its_own_or_none(tmp_path: Path) -> None:
    def fetch(name: str, path: Path) -> None:
        raise AssertionError(name)

    init = tmp_path / "mine.safetensors"
    init.touch()

    check_start(finetune(), init, fetch=fetch)
    check_start(small(), None, fetch=fetch)


@pytest.mark.parametrize(("config", "variant"), [(base(), "resnet50"), (finetune(), "two_stage")])
def test_missing_weights_say_how_to_get_them(
    config: TrainConfig, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def unreachable(name: str, path: Path) -> None:
        raise ValueError("cannot download: check the network")

    with pytest.raises(ValueError, match=rf"is missing; .*make weights VARIANT={variant}, .*INIT"):
        check_start(config, None, fetch=None)
    with pytest.raises(ValueError, match=rf"check the network; or get it with .*{variant}.*=small"):
        check_start(config, None, fetch=unreachable)


@pytest.mark.parametrize(
    ("variant", "file_format", "address"),
    [
        (
            "base",
            "mmdet2",
            "v2.0/deformable_detr/deformable_detr_r50_16x2_50e_coco/"
            "deformable_detr_r50_16x2_50e_coco_20210419_220030-a12b9512.pth",
        ),
        (
            "two_stage",
            "mmdet3",
            "v3.0/deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco/"
            "deformable-detr-refine-twostage_r50_16xb2-50e_coco_20221021_184714-acc8a5ff.pth",
        ),
    ],
)
def test_addresses_are_those_of_the_published_files(
    variant: str, file_format: str, address: str
) -> None:
    published = published_url(variant, file_format=file_format)
    mirrored = published_url(variant, file_format=file_format, base_url="http://mirror")

    assert published == f"https://download.openmmlab.com/mmdetection/{address}"
    assert mirrored == f"http://mirror/{address}"


@pytest.mark.parametrize("variant", ["base", "refine", "two_stage", "resnet50", "resnet18"])
def test_a_mirror_with_other_content_ends_the_command(
    tmp_path: Path, server: Server, variant: str
) -> None:
    with pytest.raises(SystemExit, match=r"^error: .*not the published file"):
        main([variant, "--out", str(tmp_path), "--base-url", server.url])

    assert list(tmp_path.iterdir()) == []
