"""Downloads published weights and turns them into files of this project.

python -m model.weights base|refine|two_stage [--format mmdet2|mmdet3] [--out weights]
python -m model.weights resnet50     the ImageNet backbone that training starts from
"""

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import safetensors.torch
from tqdm import tqdm

from model.checkpoint import first_mismatch, load_checkpoint, write_checkpoint, write_tensors
from model.checkpoints.convert import convert, sha256
from model.checkpoints.published_file import read_published
from model.network.deformable_detr import DeformableDetr

# The eight hex digits in a name are the first of the file's SHA-256.
_MMDET_FILES = {
    ("mmdet2", "base"): "deformable_detr_r50_16x2_50e_coco_20210419_220030-a12b9512.pth",
    ("mmdet2", "refine"): "deformable_detr_refine_r50_16x2_50e_coco_20210419_220503-5f5dff21.pth",
    ("mmdet2", "two_stage"): (
        "deformable_detr_twostage_refine_r50_16x2_50e_coco_20210419_220613-9d28ab72.pth"
    ),
    ("mmdet3", "base"): "deformable-detr_r50_16xb2-50e_coco_20221029_210934-6bc7d21b.pth",
    ("mmdet3", "refine"): "deformable-detr-refine_r50_16xb2-50e_coco_20221022_225303-844e0f93.pth",
    ("mmdet3", "two_stage"): (
        "deformable-detr-refine-twostage_r50_16xb2-50e_coco_20221021_184714-acc8a5ff.pth"
    ),
}
_MMDET_URL = "https://download.openmmlab.com/mmdetection"
_RELEASES = {"mmdet2": "v2.0", "mmdet3": "v3.0"}
_BACKBONE_URL = "https://download.pytorch.org/models"
_BACKBONE_FILE = "resnet50-0676ba61.pth"  # torchvision, IMAGENET1K_V1; V2 gives other results
BACKBONE = "resnet50"
VARIANTS = ("base", "refine", "two_stage")

_ATTEMPTS = 5  # in a row without a new byte
_TIMEOUT_S = 30.0
Sleep = Callable[[float], None]


class _Interrupted(Exception):
    """The server or the line gave way; worth another try."""


def published_url(variant: str, *, file_format: str = "mmdet2", base_url: str | None = None) -> str:
    """Where the weights of a variant, or of "resnet50", are published (or mirrored: base_url)."""
    if variant == BACKBONE:
        return f"{base_url or _BACKBONE_URL}/{_BACKBONE_FILE}"
    name = _MMDET_FILES[file_format, variant]
    directory = f"{_RELEASES[file_format]}/deformable_detr/{name.rsplit('_', 2)[0]}"
    return f"{base_url or _MMDET_URL}/{directory}/{name}"


def fetch_detector(url: str, checkpoint: Path, *, sleep: Sleep = time.sleep) -> None:
    """Downloads a published file to the checkpoint's directory and converts it.

    Does nothing if the checkpoint made of that file is there already.
    """
    source = checkpoint.with_name(url.rsplit("/", 1)[1])
    if checkpoint.is_file():
        digest = load_checkpoint(checkpoint).provenance.get("sha256", "")
        if digest.startswith(_digits(source.name)):
            return
    download(url, source, sleep=sleep)
    write_checkpoint(convert(source), checkpoint)


def fetch_backbone(url: str, path: Path, *, sleep: Sleep = time.sleep) -> None:
    """Downloads torchvision's ResNet-50 and writes its tensors as `backbone.*` to `path`."""
    source = path.with_name(url.rsplit("/", 1)[1])
    download(url, source, sleep=sleep)
    tensors = {
        f"backbone.{name}": tensor
        for name, tensor in read_published(source).tensors.items()
        if not name.startswith("fc.") and not name.endswith(".num_batches_tracked")
    }
    metadata = {"source": source.name, "sha256": sha256(source)}
    write_tensors(path, tensors, metadata)


def backbone_weights(directory: Path) -> Path:
    """The file of ImageNet weights in `directory`; ValueError says how to get it."""
    path = directory / f"{BACKBONE}.safetensors"
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: training starts from ImageNet weights; get them by "
            "make weights VARIANT=resnet50, or start from a checkpoint by --init"
        )
    return path


def load_backbone(path: Path, model: DeformableDetr) -> None:
    """Loads ImageNet weights into the model's backbone; ValueError if its sizes are others."""
    tensors = {
        name.removeprefix("backbone."): tensor
        for name, tensor in safetensors.torch.load_file(path).items()
    }
    if fault := first_mismatch(model.backbone.state_dict(), tensors):
        raise ValueError(
            f"{path} does not fit the model's backbone: {fault}; "
            "only ResNet-50 (width 64, blocks 3, 4, 6, 3) can start from it"
        )
    model.backbone.load_state_dict(tensors)


def download(url: str, path: Path, *, sleep: Sleep = time.sleep) -> None:
    """Fetches a file whose name ends in the first hex digits of its SHA-256.

    What has arrived lies in `path`.part: a broken download goes on where it stopped, in this
    call or the next. Tries again, after growing waits, while bytes arrive.

    Raises:
        ValueError: no such file, no way to the server, or wrong content (then .part is gone).
        OSError: the disk is full; .part stays.
    """
    digits = _digits(path.name)
    if path.is_file() and sha256(path).startswith(digits):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    furthest, failures = _size(part), 0
    with httpx.Client(follow_redirects=True, timeout=_TIMEOUT_S) as client:
        while True:
            try:
                _continue(client, url, part)
                break
            except (httpx.TransportError, _Interrupted) as error:
                failures = 1 if _size(part) > furthest else failures + 1
                furthest = max(furthest, _size(part))
                if failures == _ATTEMPTS:
                    raise ValueError(
                        f"cannot download {url} ({error}): check the network or the proxy "
                        f"(HTTPS_PROXY) and run this again, it goes on at byte {_size(part)}; or "
                        f"put the file, fetched elsewhere, at {path}"
                    ) from error
                sleep(2.0 ** (failures - 1))
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise ValueError(f"cannot download {url}: {error}") from error
    if not sha256(part).startswith(digits):
        part.unlink()
        raise ValueError(
            f"{url} is not the published file: its SHA-256 does not begin with "
            f"{digits}; the download was removed, run this again or use another mirror"
        )
    part.replace(path)


def _continue(client: httpx.Client, url: str, part: Path) -> None:
    """One request for the bytes that are missing in `part`, all of them where it is not there."""
    have = _size(part)
    # The digest guards against a file that changed on the server between two requests.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", url, headers=headers) as response:
        status = response.status_code
        span = re.match(r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.headers.get("Content-Range", ""))
        if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            if span is None or int(span[2]) != have:
                part.unlink()
                raise _Interrupted("the part on disk is longer than the file")
            return
        if status == httpx.codes.TOO_MANY_REQUESTS or status >= 500:
            raise _Interrupted(f"the server answers {status}")
        if status not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
            raise ValueError(f"cannot download {url}: the server answers {status}; give another "
                             "place by --base-url")  # fmt: skip
        if status == httpx.codes.OK:
            have = 0  # the server sends the whole file, asked for a part or not
        elif span is None or span[1] != str(have):
            part.unlink()
            raise _Interrupted("the server sends another part than asked for")
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        _append(response, part, have=have, total=total)


def _append(response: httpx.Response, part: Path, *, have: int, total: int | None) -> None:
    label = part.name.removesuffix(".part")
    try:
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(desc=label, initial=have, total=total, unit="B", unit_scale=True) as bar,
        ):
            for chunk in response.iter_raw():
                file.write(chunk)
                bar.update(len(chunk))
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {part} ({error.strerror}): free "
            f"{(total or 2e8) / 1e6:.0f} MB or choose another directory by --out; "
            "run this again and the download goes on",
        ) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _digits(name: str) -> str:
    match = re.search(r"-([0-9a-f]{8})\.pth$", name)
    if match is None:
        raise ValueError(f"{name} does not end in eight hex digits of its SHA-256")
    return match[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; a fault ends in one line on stderr and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m model.weights", description=__doc__)
    parser.add_argument("variant", choices=(*VARIANTS, BACKBONE))
    parser.add_argument("--format", choices=tuple(_RELEASES), default="mmdet2",
                        help="whose published files, of 2021 or 2022")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("weights"))
    parser.add_argument("--base-url", help="a mirror of the place the files are published at")
    args = parser.parse_args(arguments)
    url = published_url(args.variant, file_format=args.format, base_url=args.base_url)
    suffix = "_mmdet3" if args.format == "mmdet3" and args.variant != BACKBONE else ""
    path = args.out / f"{args.variant}{suffix}.safetensors"
    try:
        (fetch_backbone if args.variant == BACKBONE else fetch_detector)(url, path)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(path)


if __name__ == "__main__":
    main()
