"""Bulk detection: every image has exactly one result, whatever happens on the way."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]

import service.detect
from bundle.manifest import Bundle
from bundle.preprocess import pad_batch
from service import bulk_worker
from service.bulk import detect_all, main, make_job, write_coco
from service.bulk_images import Chunk, files_in, find_chunks, open_place, sources
from service.bulk_worker import Job, Worker, write_whole
from service.schemas import DetectQuery
from tests.fakes import POISON, FakeEngine


@pytest.fixture
def photos(tmp_path: Path, png_bytes: bytes) -> Path:
    """Seven images and a file that is none, in two folders."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number in range(7):
        (folder / ("more" if number > 4 else "") / f"{number}.png").write_bytes(png_bytes)
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("not looked at")
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def here(job: Job, out: str, chunks: Sequence[Chunk]) -> Iterator[dict[str, int]]:
    """A run in this process."""
    worker = Worker(job, out, num_threads=1)
    for chunk in chunks:
        worker.work_on(chunk)
        yield {"images": chunk.num_images}


def bulk(
    bundle: Path, place: Path, out: Path, *, run: Any = here, **query: Any
) -> tuple[int, list[Chunk]]:
    """How many images failed, and the chunks of two."""
    chunks = find_chunks([str(place)], chunk_size=2)
    job = make_job(Bundle.load(bundle), chunks, query=DetectQuery(**query))
    return detect_all(job, chunks, out=str(out), run=run), chunks


def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(out / "parts").to_pylist()
    return found


def test_every_image_has_its_detections_or_an_error(toy_bundle, photos, tmp_path, out):
    num_failed, _ = bulk(toy_bundle, photos, out)
    alone = tmp_path / "alone.json"
    service.detect.main([str(photos / "1.png"), "--bundle", str(toy_bundle), "--out", str(alone)])

    found = {Path(row["file_name"]).name: row for row in rows(out)}
    assert num_failed == 1
    assert [row["image_id"] for row in rows(out)] == list(range(8))
    assert found.keys() == {"broken.jpg", *(f"{number}.png" for number in range(7))}
    assert "JPEG, PNG" in found["broken.jpg"].pop("error")
    assert found["broken.jpg"]["detections"] == []
    assert found["5.png"]["error"] is None
    assert (found["5.png"]["width"], found["5.png"]["height"]) == (128, 96)
    assert found["5.png"]["detections"] == json.loads(alone.read_text())["results"][0]["detections"]
    assert found["5.png"]["detections"]


def test_the_next_batch_is_assembled_while_one_runs(
    fake_bundle, photos, out, monkeypatch: pytest.MonkeyPatch
):
    engine, assembled = FakeEngine(max_batch_size=1), []

    def pad(images: Any, min_side: int) -> Any:
        assembled.append(len(images))
        if len(assembled) == 2:
            engine.gate.open()  # until then, the first batch does not end
        return pad_batch(images, min_side)

    def run(job: Job, folder: str, chunks: Sequence[Chunk]) -> Iterator[dict[str, int]]:
        worker = Worker(job, folder, num_threads=1, open_it=lambda *_, **__: engine)
        engine.gate.shut()
        monkeypatch.setattr(bulk_worker, "pad_batch", pad)
        worker.work_on(chunks[0])
        yield {"images": 2}

    with pytest.raises(FileNotFoundError):  # of the other chunks
        bulk(fake_bundle, photos, out, run=run)

    assert assembled == [1, 1]
    assert [row["error"] for row in rows(out)] == [None, None]


def test_a_parquet_file_brings_bytes_names_and_ids(toy_bundle, png_bytes, tmp_path, out):
    images = tmp_path / "images.parquet"
    table = pa.table({"image": [png_bytes, None, png_bytes], "image_id": [70, 5, 6],
                      "file_name": ["a", "b", "c"]})  # fmt: skip
    pq.write_table(table, images, row_group_size=2)

    num_failed, chunks = bulk(toy_bundle, images, out)

    assert num_failed == 1
    assert [chunk.num_images for chunk in chunks] == [2, 1]
    assert {(row["image_id"], row["file_name"], row["error"] is None) for row in rows(out)} == {
        (70, "a", True), (5, "b", False), (6, "c", True),
    }  # fmt: skip


def test_a_folder_at_an_address_may_have_names_of_any_kind(toy_bundle, png_bytes, tmp_path, out):
    folder = tmp_path / "my photos"
    folder.mkdir()
    (folder / "50% off? #1 Öl.png").write_bytes(png_bytes)

    num_failed, _ = bulk(toy_bundle, folder.as_uri(), out)

    assert num_failed == 0
    assert rows(out)[0]["file_name"].endswith("/my%20photos/50%25%20off%3F%20%231%20%C3%96l.png")


def test_files_in_object_storage_keep_the_options_of_their_address() -> None:
    options = "?endpoint_override=127.0.0.1:1&scheme=http&region=here"
    stored = pyarrow.fs._MockFileSystem()
    stored.create_dir("bucket/photos")
    stored.open_output_stream("bucket/photos/my cat.png").close()
    stored.open_output_stream("bucket/photos/more.parquet").close()

    found = files_in(f"s3://bucket/photos/{options}", stored, path="bucket/photos")

    assert found == [
        f"s3://bucket/photos/more.parquet{options}",
        f"s3://bucket/photos/my%20cat.png{options}",
    ]
    (first, first_path), (second, second_path) = map(open_place, found)
    assert (first_path, second_path) == ("bucket/photos/more.parquet", "bucket/photos/my cat.png")
    assert first is second


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("photos/a b.png", "photos/a b.png"),
        ("s3://bucket/a%20b.png", "s3://bucket/a%20b.png"),
        ("s3://AKID:se%2Fcret@bucket/a.png?region=here", "s3://bucket/a.png"),
        ("abfs://images@account.net/a.png?sig=secret", "abfs://images@account.net/a.png"),
    ],
)
def test_results_name_images_without_the_keys_of_their_addresses(place, name):
    chunk = Chunk(index=0, first_id=0, places=[place], num_images=1)

    (source,) = sources(chunk)

    assert source.name == name
    assert "secret" not in chunk.identity()


def test_a_job_is_the_same_with_new_keys(toy_bundle):
    chunks = [
        Chunk(index=0, first_id=0, places=[f"s3://me:{key}@bucket/a.png"], num_images=1)
        for key in ("old", "new")
    ]

    old, new = (make_job(Bundle.load(toy_bundle), [one], query=DetectQuery()) for one in chunks)

    assert old == new


def test_a_file_in_object_storage_appears_whole_or_not_at_all() -> None:
    """On Arrow's stand-in for it."""
    folder = "mock:///bucket/found"

    def fails(file: Any) -> None:
        file.write(b"half of it")
        raise OSError("the connection broke")

    write_whole(folder, "good.json", write=lambda file: file.write(b"whole"))
    with pytest.raises(OSError, match="the connection broke"):
        write_whole(folder, "bad.json", write=fails)

    system, path = open_place(folder)
    with system.open_input_stream(f"{path}/good.json") as file:
        assert file.read() == b"whole"
    assert system.get_file_info(f"{path}/bad.json").type == pyarrow.fs.FileType.NotFound


class SmallCopies(MemoryFileSystem):
    """Object storage that renames objects of at most ten bytes, as S3 does up to 5 GB."""

    protocol = "small-copies"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        if self.info(path1)["size"] > 10:
            raise OSError("larger than the maximum allowable size for a copy source")
        super().mv(path1, path2)


@pytest.fixture
def object_storage(monkeypatch: pytest.MonkeyPatch) -> SmallCopies:
    storage = SmallCopies()
    opened = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(storage)), "/found"
    monkeypatch.setattr(bulk_worker, "open_place", lambda _: opened)
    monkeypatch.setattr(bulk_worker, "LARGEST_MOVED_BYTES", 10)
    return storage


@pytest.mark.parametrize("content", [b"small", b"larger than may be copied" * 10])
def test_a_file_too_large_to_be_renamed_is_streamed_to_its_name(
    object_storage: SmallCopies, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_worker, "_PIECE_BYTES", 100)

    write_whole("found", "results.json", write=lambda file: file.write(content))

    assert object_storage.cat_file("/found/results.json") == content
    assert object_storage.find("/found") == ["/found/results.json"]


def test_a_large_file_whose_streaming_breaks_does_not_show_half_of_it(
    object_storage: SmallCopies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_worker, "_PIECE_BYTES", "broken")

    with pytest.raises(TypeError):
        write_whole("found", "results.json", write=lambda file: file.write(b"large" * 10))

    assert not object_storage.exists("/found/results.json")


def test_images_in_structs_have_ids_by_their_order(toy_bundle, png_bytes, tmp_path, out):
    images = tmp_path / "images.parquet"
    pq.write_table(pa.table({"image": [{"bytes": png_bytes, "path": "x"}] * 2}), images)

    bulk(toy_bundle, f"file://{images}", out)  # type: ignore[arg-type]

    assert [row["image_id"] for row in rows(out)] == [0, 1]
    assert all(row["detections"] for row in rows(out))


def test_a_run_that_was_stopped_resumes_where_it_was(toy_bundle, photos, out):
    def stopped(job: Job, folder: str, chunks: Sequence[Chunk]) -> Iterator[dict[str, int]]:
        yield from here(job, folder, chunks[:2])
        raise KeyboardInterrupt

    done_later: list[int] = []

    def rest(job: Job, folder: str, chunks: Sequence[Chunk]) -> Iterator[dict[str, int]]:
        done_later.extend(chunk.index for chunk in chunks)
        yield from here(job, folder, chunks)

    with pytest.raises(KeyboardInterrupt):
        bulk(toy_bundle, photos, out, run=stopped)
    bulk(toy_bundle, photos, out, run=rest)

    assert done_later == [2, 3]
    assert [row["image_id"] for row in rows(out)] == list(range(8))
    assert sorted(path.name for path in out.iterdir()) == ["job.json", "parts"]


def test_results_of_another_job_are_not_mixed_in(toy_bundle, photos, out):
    bulk(toy_bundle, photos, out)

    with pytest.raises(ValueError, match="differs in threshold: choose another --out"):
        bulk(toy_bundle, photos, out, threshold=0.9)

    (photos / "new.png").write_bytes((photos / "1.png").read_bytes())
    with pytest.raises(ValueError, match="differs in images, num_images"):
        bulk(toy_bundle, photos, out)


def test_an_image_that_the_engine_fails_on_fails_alone(fake_bundle, encode, scene, tmp_path, out):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "good.png").write_bytes(encode(scene, "PNG"))
    (folder / "poison.png").write_bytes(encode(np.full_like(scene, POISON), "PNG"))

    def run(job: Job, folder: str, chunks: Sequence[Chunk]) -> Iterator[dict[str, int]]:
        worker = Worker(job, folder, num_threads=1, open_it=lambda *_, **__: FakeEngine())
        worker.work_on(chunks[0])
        yield {"images": 2}

    num_failed, _ = bulk(fake_bundle, folder, out, run=run)

    good, poisoned = rows(out)
    assert num_failed == 1
    assert good["detections"]
    assert poisoned["error"] == "a poisoned image"


def test_coco_results_are_one_list(toy_bundle, photos, out):
    _, chunks = bulk(toy_bundle, photos, out)

    write_coco(str(out), chunks)

    entries = json.loads((out / "results.json").read_text())
    assert len(entries) == sum(len(row["detections"]) for row in rows(out)) > 7
    assert entries[0].keys() == {"image_id", "category_id", "bbox", "score"}
    assert not (out / "unfinished").exists()


@pytest.mark.parametrize("place", ["missing", "empty"])
def test_a_place_without_images_is_reported(tmp_path, place):
    (tmp_path / "empty").mkdir()

    with pytest.raises(ValueError, match=place):
        find_chunks([str(tmp_path / place)], chunk_size=2)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"picture": [b"x"]}, "expected a column 'image', got the columns picture"),
        ({"image": ["x"]}, "expected a column 'image' of bytes, .* got string"),
        ({"image": [{"path": "x"}]}, "expected a column 'image' of bytes, .* got struct"),
        ({"image": [b"x"], "image_id": ["7"]}, "expected a column 'image_id' of whole numbers"),
        ({"image": [b"x"], "image_id": [7.5]}, "expected a column 'image_id' of whole numbers"),
        ({"image": [b"x"], "file_name": [7]}, "expected a column 'file_name' of text, got int64"),
    ],
)
def test_a_table_without_the_columns_of_images_is_refused_at_once(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "other.parquet")

    with pytest.raises(ValueError, match=rf"other\.parquet: {message}"):
        find_chunks([str(tmp_path)], chunk_size=2)


def test_a_file_whose_name_is_no_text_is_named(tmp_path):
    (tmp_path / os.fsdecode(b"\xe9t\xe9.png")).write_bytes(b"")

    with pytest.raises(ValueError, match=r"names of files in UTF-8, got b'.*/\\xe9t\\xe9\.png'"):
        find_chunks([str(tmp_path)], chunk_size=2)


def test_a_damaged_table_is_named(tmp_path):
    (tmp_path / "half.parquet").write_bytes(b"PAR1 and no more")

    with pytest.raises(ValueError, match=r"half\.parquet: not a Parquet file"):
        find_chunks([str(tmp_path)], chunk_size=2)


def test_a_row_without_an_id_is_reported(tmp_path):
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": [b"x", b"x"], "image_id": [1, None]}), path)
    (chunk,) = find_chunks([path], chunk_size=2)

    with pytest.raises(ValueError, match=r"a\.parquet: expected an image_id in every row"):
        list(sources(chunk))


def test_an_image_that_is_named_twice_has_one_result(photos):
    (whole,) = find_chunks([str(photos), str(photos / "1.png"), f"{photos}/"], chunk_size=99)

    assert whole.num_images == 8


def test_a_wrong_call_is_one_line(toy_bundle, photos, out, capsys):
    bulk(toy_bundle, photos, out, threshold=0.9)
    options = ["--out", str(out), "--bundle", str(toy_bundle), "--chunk-size", "2"]

    assert main([str(photos), *options]) == 2
    assert "error: " in (message := capsys.readouterr().err.splitlines()[-1])
    assert "differs in threshold" in message
    assert main([str(photos / "missing"), *options]) == 2
    assert capsys.readouterr().err.startswith("error: nothing found at ")
    with pytest.raises(SystemExit):
        main([str(photos), *options, "--threshold", "7"])
    assert "threshold: Input should be" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(photos), *options, "--chunk-size", "-1"])
    assert "--chunk-size: expected 1 or more, got -1" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["found", "photos", "photos/found"])
def test_a_run_that_is_done_only_writes_what_is_asked_for(
    toy_bundle, photos, tmp_path, folder, capsys
):
    out = tmp_path / folder
    bulk(toy_bundle, photos, out)
    options = ["--out", str(out), "--bundle", str(toy_bundle), "--chunk-size", "2"]

    status = main([str(photos), *options, "--format", "coco"])

    assert status == 1  # one image was none, in the run before
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == f"images that failed: 1 of 8; `error` in {out}/parts says why"
    assert json.loads((out / "results.json").read_text())
