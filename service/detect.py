"""python -m service.detect: detect objects in files and folders, with the JSON of POST /detect.

Exit status: 0 on success, 1 if some image could not be read (the others have results), 2 if a path
is missing or there is no result at all, 130 after Ctrl-C. The output file is written once, at the
end, completely or not at all.
"""

if __name__ == "__main__":  # before the imports that take long
    from bundle.command import begin_command, raise_at_ctrl_c

    begin_command()

import argparse
import sys
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError
from tqdm import tqdm

from bundle.atomic import make_place_for, write_atomically
from bundle.detect import detect
from bundle.folder import files_below
from bundle.image_formats import UNREAD_SUFFIXES
from bundle.manifest import Bundle
from bundle.preprocess import (
    DATASET_SUFFIXES,
    SERVED_SUFFIXES,
    UndecodableImage,
    UnsupportedImage,
    decode_image,
)
from bundle.regular_file import require_file
from bundle.terminal import encodable, printable
from bundle.validation import describe_faults
from engines.base import EngineFailure
from engines.load import open_engine
from engines.self_check import require_known_answers
from service.image_ids import read_image_ids
from service.render import ImageFormat, render
from service.schemas import (
    DEFAULT_NUM_DETECTIONS,
    DetectQuery,
    ImageResult,
    ModelRef,
    OutputFormat,
    detections_json,
    image_result,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        query = DetectQuery(
            threshold=args.threshold,
            num_detections=args.num_detections,
            nms_iou=args.nms_iou,
            tile=args.tile,
            format=args.format,
        )
    except ValidationError as error:
        parser.error(describe_faults(error))
    if args.out and args.out.is_dir():
        parser.error(f"OUT= (--out): expected a file, got the folder {args.out}")
    if args.draw and args.draw.exists() and not args.draw.is_dir():
        parser.error(f"--draw: expected a folder, got the file {args.draw}")
    missing = [str(path) for path in args.paths if not path.exists()]
    if missing:
        hint = (
            "; a path with spaces is quoted: PATHS='\"my photos\" more'" if args.paths[1:] else ""
        )
        parser.error(f"no such file or folder: {', '.join(missing)}{hint}")
    images = find_images(args.paths)
    if not images:
        parser.error(f"no {', '.join(SERVED_SUFFIXES)} files in {', '.join(map(str, args.paths))}")
    try:
        _tell_left_out(args.paths)
        ids = read_image_ids(args.annotations, images) if args.annotations else range(len(images))
        return _run(
            list(zip(ids, images, strict=True)),
            Bundle.load(args.bundle),
            query,
            out=args.out,
            draw_dir=args.draw,
        )
    except (ValueError, OSError, EngineFailure) as error:
        _say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        _say("interrupted: no results written")
        return 130


def find_images(paths: Iterable[Path]) -> list[Path]:
    """The given paths in order, each folder replaced by the images below it, sorted."""
    images: list[Path] = []
    for path in paths:
        images += _of_kind(path, SERVED_SUFFIXES) if path.is_dir() else [path]
    return images


def _of_kind(folder: Path, suffixes: Container[str]) -> list[Path]:
    return sorted(file for file in files_below(folder) if file.suffix.lower() in suffixes)


def _tell_left_out(paths: Iterable[Path]) -> None:
    """Say how many images in folders have other formats."""
    suffixes = {*DATASET_SUFFIXES, *UNREAD_SUFFIXES} - {*SERVED_SUFFIXES}
    others = [file for path in paths if path.is_dir() for file in _of_kind(path, suffixes)]
    if others:
        _say(
            f"left out: {len(others)} images of formats that are not accepted, such as "
            f"{others[0]}; convert them to JPEG or PNG"
        )


def _run(
    images: list[tuple[int, Path]],
    bundle: Bundle,
    query: DetectQuery,
    *,
    out: Path | None,
    draw_dir: Path | None,
) -> int:
    if out:
        make_place_for(out)
    if draw_dir:
        draw_dir.mkdir(parents=True, exist_ok=True)
    results = _detect_all(images, bundle, query, draw_dir)
    if not results:
        _say("error: no image could be read; no results written")
        return 2
    content = detections_json(
        results, model=ModelRef.from_manifest(bundle.manifest), output_format=query.format
    )
    if out:
        write_atomically(out, content + b"\n")
        _say(f"{out}: {len(results)} of {len(images)} images")
    else:
        sys.stdout.write(content.decode() + "\n")
    return 0 if len(results) == len(images) else 1


def _detect_all(
    images: list[tuple[int, Path]], bundle: Bundle, query: DetectQuery, draw_dir: Path | None
) -> list[ImageResult]:
    """The results of all images but those that fail, each of which is reported."""
    manifest = bundle.manifest
    most_detections = query.most_detections(manifest)
    engine = open_engine(bundle)
    require_known_answers(engine, bundle)
    results: list[ImageResult] = []
    for image_id, path in tqdm(images, unit="image"):
        try:
            image = decode_image(require_file(path).read_bytes())
            (detections,) = detect(
                engine.run,
                [image],
                preprocess=manifest.preprocess,
                threshold=manifest.lowest_scores(query.threshold),
                top_k=most_detections,
                nms_iou=query.nms_iou,
                tile_px=query.tile,
            )
        except (UndecodableImage, UnsupportedImage, OSError, EngineFailure) as error:
            _say(f"{path}: {error}")
            continue
        results.append(
            image_result(
                detections,
                image_id=image_id,
                file_name=encodable(path),
                size=(image.shape[0], image.shape[1]),
                classes=manifest.classes,
            )
        )
        if draw_dir:
            drawing = render(
                image, detections, classes=manifest.classes, image_format=ImageFormat.JPEG
            )
            write_atomically(draw_dir / f"{image_id:05d}-{path.stem}.jpg", drawing)
    engine.close()
    return results


def _say(line: str) -> None:
    tqdm.write(printable(line), file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service.detect",
        description="Detect objects in images and print the JSON that POST /detect answers.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="image, or folder searched recursively",
    )
    parser.add_argument(
        "--bundle", type=Path, default=Path("bundles/demo"), help="default: %(default)s"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="lowest score kept (default: the bundle's, for each class)",
    )
    parser.add_argument(
        "--num-detections",
        "--top-k",
        type=int,
        metavar="N",
        help="most detections kept per image, up to the model's limit (default: "
        f"{DEFAULT_NUM_DETECTIONS}, or that limit)",
    )
    parser.add_argument(
        "--nms-iou",
        type=float,
        metavar="IOU",
        help="of overlapping boxes of one class, keep only the best (default: keep all)",
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="cut larger images into tiles of this side, to find small objects (default: no tiles)",
    )
    _add_output_options(parser)
    return parser


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write there, not to stdout")
    parser.add_argument(
        "--draw", type=Path, metavar="DIR", help="write each image with its boxes into this folder"
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE.json",
        help="COCO annotations to take image ids from (default: ids count from 0)",
    )
    parser.add_argument(
        "--format",
        choices=[str(choice) for choice in OutputFormat],
        default=str(DetectQuery().format),
        help="detections, or coco: a COCO results list",
    )


if __name__ == "__main__":
    raise_at_ctrl_c()
    sys.exit(main())
