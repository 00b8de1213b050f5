"""python -m service.bulk: detect in millions of images, with Ray Data, on any number of nodes.

Images come from folders, Parquet files or object storage. Results are Parquet files in the output's
`parts/`, one per chunk of images, and with --format coco also one COCO results file. The same
command resumes a run that was stopped. If a worker dies, its chunk is done again, into the same
file: every image has exactly one result.

Exit status: 0; 1 if images could not be read or run (the others are done, and `error` says why);
2 if nothing could be done; 130 after Ctrl-C.
"""

if __name__ == "__main__":  # before the imports that take long
    from bundle.command import begin_command, raise_at_ctrl_c

    begin_command()

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.fs
import pyarrow.parquet as pq
from pydantic import ValidationError
from tqdm import tqdm

from bundle.manifest import Bundle
from bundle.terminal import printable
from bundle.validation import describe_faults
from engines.base import EngineFailure
from service.bulk_images import Chunk, find_chunks, open_place, public_name
from service.bulk_worker import PARTS, UNFINISHED, Job, Worker, part_name, write_whole
from service.schemas import DetectQuery, ModelRef

JOB_FILE = "job.json"
RESULTS_FILE = "results.json"

# Goes through chunks, and yields the number of images of each.
Run = Callable[[Job, str, Sequence[Chunk]], Iterable[dict[str, int]]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    for option in ("workers", "cpus", "chunk_size"):
        if getattr(args, option) < 1:
            parser.error(
                f"--{option.replace('_', '-')}: expected 1 or more, got {getattr(args, option)}"
            )
    try:
        query = DetectQuery(
            threshold=args.threshold, num_detections=args.num_detections, nms_iou=args.nms_iou
        )
        chunks = find_chunks(
            args.places,
            chunk_size=args.chunk_size,
            results=f"{open_place(args.out)[1]}/{PARTS}",
        )
        job = make_job(Bundle.load(args.bundle), chunks, query=query)
        run = with_ray(args.workers, num_cpus=args.cpus, address=args.address)
        num_failed = detect_all(job, chunks, out=args.out, run=run)
        if args.format == "coco":
            write_coco(args.out, chunks)
    except ValidationError as error:
        parser.error(describe_faults(error))
    except (ValueError, OSError, EngineFailure, RuntimeError) as error:
        sys.stderr.write(printable(f"error: {error}\n"))
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: the same command resumes from here\n")
        return 130
    if num_failed:
        place = f"{public_name(args.out)}/{PARTS}"
        share = f"{num_failed} of {job.num_images}"
        sys.stderr.write(printable(f"images that failed: {share}; `error` in {place} says why\n"))
    return 1 if num_failed else 0


def make_job(bundle: Bundle, chunks: Sequence[Chunk], *, query: DetectQuery) -> Job:
    """The job that the arguments describe.

    Raises:
        ValueError: more detections are asked for than the model has.
    """
    digest = hashlib.sha256("".join(chunk.identity() for chunk in chunks).encode())
    return Job(
        bundle=bundle.directory.absolute(),
        model=ModelRef.from_manifest(bundle.manifest),
        images=digest.hexdigest(),
        num_images=sum(chunk.num_images for chunk in chunks),
        threshold=query.threshold,
        num_detections=query.most_detections(bundle.manifest),
        nms_iou=query.nms_iou,
    )


def detect_all(job: Job, chunks: Sequence[Chunk], *, out: str, run: Run) -> int:
    """Do what has not been done yet; returns how many images failed, also in earlier runs.

    Raises:
        ValueError: the folder has results of another job.
    """
    system, path = open_place(out)
    _claim(job, out)
    done = {
        info.base_name for info in system.get_file_info(pyarrow.fs.FileSelector(f"{path}/{PARTS}"))
    }
    left = [chunk for chunk in chunks if part_name(chunk.index) not in done]
    num_done = job.num_images - sum(chunk.num_images for chunk in left)
    with tqdm(total=job.num_images, initial=num_done, unit="image") as progress:
        for outcome in run(job, out, left) if left else ():
            progress.update(outcome["images"])
    remove_unfinished(out)
    return sum(row["error"] is not None for chunk in chunks for row in _rows(out, chunk, ["error"]))


def remove_unfinished(out: str) -> None:
    """Remove files that dead workers left unfinished; call it only while nobody is writing."""
    system, path = open_place(out)
    if system.get_file_info(f"{path}/{UNFINISHED}").type == pyarrow.fs.FileType.Directory:
        system.delete_dir(f"{path}/{UNFINISHED}")


def _claim(job: Job, out: str) -> None:
    """Write what the folder is for, or check that it is for the same job."""
    system, path = open_place(out)
    system.create_dir(f"{path}/{PARTS}")
    if system.get_file_info(f"{path}/{JOB_FILE}").type == pyarrow.fs.FileType.NotFound:
        text = job.model_dump_json(indent=2).encode()
        write_whole(out, JOB_FILE, write=lambda file: file.write(text))
        return
    with system.open_input_stream(f"{path}/{JOB_FILE}") as file:
        before = json.loads(file.read())
    now = job.model_dump(mode="json")
    differing = [name for name in now if before.get(name) != now[name]]
    if differing:
        raise ValueError(
            f"{public_name(out)} has results of another job, which differs in "
            f"{', '.join(differing)}: choose another --out, or remove it"
        )


def with_ray(
    num_workers: int, *, num_cpus: int, address: str | None = None, worker: type[Worker] = Worker
) -> Run:
    """Run with workers of `num_cpus` cores on a Ray cluster; by default on this machine alone."""

    def run(job: Job, out: str, chunks: Sequence[Chunk]) -> Iterator[dict[str, int]]:
        import ray  # takes seconds
        import ray.data
        from ray.exceptions import RayError

        if not ray.is_initialized():
            ray.init(address)
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"chunk": chunk.model_dump_json()} for chunk in chunks]
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            worker,
            fn_constructor_args=(job, out),
            fn_constructor_kwargs={"num_threads": num_cpus},
            batch_size=1,
            num_cpus=num_cpus,
            compute=ray.data.ActorPoolStrategy(size=min(num_workers, len(rows))),
        )
        try:
            yield from results.iter_rows()
        except RayError as error:  # its last line is the worker's error; the log has the rest
            raise RuntimeError(str(error).strip().splitlines()[-1]) from error

    return run


def write_coco(out: str, chunks: Sequence[Chunk]) -> None:
    """All detections as one list, for `loadRes` of a COCO evaluator."""

    def write(file: Any) -> None:
        separator = "[\n"
        for entry in _coco_entries(out, chunks):
            file.write((separator + json.dumps(entry)).encode())
            separator = ",\n"
        file.write(b"[]\n" if separator == "[\n" else b"\n]\n")

    write_whole(out, RESULTS_FILE, write=write)
    remove_unfinished(out)


def _coco_entries(out: str, chunks: Sequence[Chunk]) -> Iterator[dict[str, Any]]:
    for chunk in chunks:
        for row in _rows(out, chunk):
            for found in row["detections"]:
                yield {
                    "image_id": row["image_id"],
                    "category_id": found["category_id"],
                    "bbox": found["bbox"],
                    "score": found["score"],
                }


def _rows(out: str, chunk: Chunk, columns: list[str] | None = None) -> list[dict[str, Any]]:
    system, path = open_place(out)
    table = pq.read_table(
        f"{path}/{PARTS}/{part_name(chunk.index)}", columns=columns, filesystem=system
    )
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service.bulk",
        description="Detect objects in any number of images, with Ray Data.",
    )
    add: Callable[..., Any] = parser.add_argument
    add("places", nargs="+", metavar="PLACE", help="folder, image or Parquet file; path or address")
    add("--out", required=True, metavar="FOLDER", help="path or address of the results")
    add(
        "--bundle",
        type=Path,
        default=Path("bundles/demo"),
        help="a directory that every node has (default: %(default)s)",
    )
    add("--format", choices=["parquet", "coco"], default="parquet", help="default: %(default)s")
    add("--threshold", type=float, help="lowest score kept (default: each class's best)")
    add("--num-detections", type=int, metavar="N", help="most detections kept per image")
    add("--nms-iou", type=float, metavar="IOU", help="see python -m service.detect")
    add("--workers", type=int, default=1, help="one engine each (default: %(default)s)")
    add("--cpus", type=int, default=1, help="cores per worker (default: %(default)s)")
    add("--chunk-size", type=int, default=256, metavar="N", help="how many images are done again "
        "at most if a worker dies (default: %(default)s)")  # fmt: skip
    add("--address", help="of the Ray cluster; by default a new one on this machine")
    return parser


if __name__ == "__main__":
    raise_at_ctrl_c()
    sys.exit(main())
