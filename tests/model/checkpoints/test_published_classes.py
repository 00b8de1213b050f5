"""Output -> category id -> name: as the training code had it, or said to be assumed."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bundle.manifest import ClassInfo
from model.checkpoints.published_classes import Outputs, read_categories, settle_outputs
from model.checkpoints.published_layouts import COCO_CLASSES
from model.checkpoints.published_settings import Settings

UNSORTED = Path("tests/data/cases/unsorted-ids/classes.json")
COCO_NAMES = tuple(entry.name for entry in COCO_CLASSES)
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Makes an annotation file of (id, name) pairs."""

    def write(*pairs: tuple[int, str]) -> Path:
        path = tmp_path / "classes.json"
        categories = [{"id": i, "name": name} for i, name in pairs]
        path.write_text(json.dumps({"categories": categories}))
        return path

    return write


def _named(*names: str) -> Settings:
    return Settings("config.json", class_names=names)


def _table(outputs: Outputs) -> list[tuple[int, int, str]]:
    return [(output, info.id, info.name)
            for output, info in zip(outputs.kept, outputs.classes, strict=True)]  # fmt: skip


def _classes(outputs: Outputs) -> list[tuple[int, str]]:
    return [(info.id, info.name) for info in outputs.classes]


def test_dense_ids_in_any_order_are_the_outputs() -> None:
    outputs = settle_outputs(3, Settings(), annotations=UNSORTED, index_is_id=True)

    assert _table(outputs) == [(0, 0, "bolt"), (1, 1, "nut"), (2, 2, "washer")]
    assert outputs.assumed is None


def test_mmdetection_numbers_outputs_in_the_order_of_the_file() -> None:
    outputs = settle_outputs(3, Settings(), annotations=UNSORTED, index_is_id=False)

    assert _table(outputs) == [(0, 2, "washer"), (1, 0, "bolt"), (2, 1, "nut")]


def test_mmdetection_leaves_out_categories_that_it_was_not_trained_on(write: Write) -> None:
    annotations = write((0, "tools"), (3, "nut"), (1, "bolt"))

    outputs = settle_outputs(2, _named("bolt", "nut"), annotations=annotations, index_is_id=False)

    assert _table(outputs) == [(0, 3, "nut"), (1, 1, "bolt")]


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_own_classes_in_a_head_of_91_are_picked_by_id(write: Write, order: Sequence[int]) -> None:
    names = {1: "bolt", 2: "nut", 3: "washer"}

    outputs = settle_outputs(
        91, Settings(), annotations=write(*((i, names[i]) for i in order)), index_is_id=True
    )

    assert _table(outputs) == [(1, 1, "bolt"), (2, 2, "nut"), (3, 3, "washer")]


def test_names_that_the_file_gives_its_outputs_place_the_ids(write: Write) -> None:
    annotations = write((3, "washer"), (1, "bolt"), (2, "nut"))

    outputs = settle_outputs(
        3, _named("nut", "bolt", "washer"), annotations=annotations, index_is_id=True
    )

    assert _table(outputs) == [(0, 2, "nut"), (1, 1, "bolt"), (2, 3, "washer")]
    assert outputs.assumed is None


def test_ids_that_are_not_indices_are_taken_in_order_and_said_so(write: Write) -> None:
    outputs = settle_outputs(2, Settings(), annotations=write((7, "a"), (9, "b")), index_is_id=True)

    assert _classes(outputs) == [(7, "a"), (9, "b")]
    assert "order of classes.json" in str(outputs.assumed)


def test_own_names_of_91_outputs_win_over_coco() -> None:
    names = [f"kind {i}" for i in range(91)]

    outputs = settle_outputs(91, _named(*names), annotations=None, index_is_id=True)

    assert _table(outputs) == [(i, i, f"kind {i}") for i in range(91)]
    assert outputs.assumed is None


def test_outputs_that_stand_for_no_class_are_left_out() -> None:
    outputs = settle_outputs(
        4, _named("N/A", "bolt", "", "nut"), annotations=None, index_is_id=True
    )

    assert _table(outputs) == [(1, 1, "bolt"), (3, 3, "nut")]


@pytest.mark.parametrize("filler", ["N/A", "street sign"])
def test_coco_names_of_91_outputs_become_its_80_classes(filler: str) -> None:
    names = {entry.id: entry.name for entry in COCO_CLASSES}
    given = _named(*(names.get(i, filler) for i in range(91)))

    outputs = settle_outputs(91, given, annotations=None, index_is_id=True)

    assert outputs.classes == COCO_CLASSES
    assert outputs.kept == tuple(entry.id for entry in COCO_CLASSES)
    assert outputs.assumed is None


@pytest.mark.parametrize(("count", "index_is_id"), [(91, True), (80, True), (80, False)])
def test_coco_is_assumed_of_unnamed_outputs_and_said_to_be(count: int, index_is_id: bool) -> None:
    outputs = settle_outputs(count, Settings(), annotations=None, index_is_id=index_is_id)

    assert outputs.classes == COCO_CLASSES
    assert f"names none of its outputs, {count} in all: COCO's" in str(outputs.assumed)


@pytest.mark.parametrize(("index_is_id", "first"), [(True, 0), (False, 1)])
def test_names_are_made_of_ids_and_said_to_be(index_is_id: bool, first: int) -> None:
    outputs = settle_outputs(2, Settings(), annotations=None, index_is_id=index_is_id)

    expected = [(first, f"class {first}"), (first + 1, f"class {first + 1}")]
    assert _classes(outputs) == expected
    assert f"ids from {first} to {first + 1}" in str(outputs.assumed)


def test_names_of_mmdetection_come_without_ids_which_are_said_to_be_assumed() -> None:
    outputs = settle_outputs(2, _named("bolt", "nut"), annotations=None, index_is_id=False)

    assert _classes(outputs) == [(1, "bolt"), (2, "nut")]
    assert "not their ids: 1 to 2 were assumed" in str(outputs.assumed)


@pytest.mark.parametrize("index_is_id", [True, False])
def test_coco_names_in_order_need_no_assumption(index_is_id: bool) -> None:
    outputs = settle_outputs(80, _named(*COCO_NAMES), annotations=None, index_is_id=index_is_id)

    assert outputs.classes == COCO_CLASSES
    assert outputs.assumed is None


@pytest.mark.parametrize("index_is_id", [True, False])
def test_another_number_of_classes_is_refused(write: Write, index_is_id: bool) -> None:
    annotations = write((1, "a"), (2, "b"), (30, "c"))

    with pytest.raises(ValueError, match=r"number of its classes is 7, of names 3; .*--classes"):
        settle_outputs(7, Settings(), annotations=annotations, index_is_id=index_is_id)
    with pytest.raises(ValueError, match=r"number of its classes is 7, of names 2; .*--classes"):
        settle_outputs(7, _named("a", "b"), annotations=None, index_is_id=index_is_id)


def test_an_id_that_appears_twice_is_refused(write: Write) -> None:
    with pytest.raises(ValueError, match="several categories with the id 0"):
        settle_outputs(2, Settings(), annotations=write((0, "a"), (0, "b")), index_is_id=True)


def test_more_than_one_category_of_a_name_is_placed_by_id(write: Write) -> None:
    annotations = write((1, "nut"), (0, "nut"))

    outputs = settle_outputs(2, _named("nut", "nut"), annotations=annotations, index_is_id=True)

    assert _table(outputs) == [(0, 0, "nut"), (1, 1, "nut")]
    assert isinstance(outputs.classes[0], ClassInfo)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"categories": []}', "has no categories"),
        (
            '{"categories": [{"id": "6fa4", "name": "a"}]}',
            "is not a COCO annotation file .category .*'6fa4'",
        ),
        (
            '{"categories": [{"id": 0, "name": null}]}',
            "is not a COCO annotation file .category .*None",
        ),
        ('{"categories": [7]}', "is not a COCO annotation file .category 7"),
        ('{"categories": 7}', "is not a COCO annotation file"),
        ("[1]", "is not a COCO annotation file"),
        ("null", "is not a COCO annotation file"),
        ('{"categories": {"1": "a"}}', "is not a COCO annotation file"),
        ("{", "not valid JSON"),
        ("[" * 99999, "not valid JSON"),
    ],
)
def test_categories_of_another_form_are_named_in_one_line(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "odd.json").write_text(text)

    with pytest.raises(ValueError, match=rf"odd\.json:? {message}") as error:
        read_categories(tmp_path / "odd.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_categories_may_be_in_any_encoding_and_named_by_numbers(
    tmp_path: Path, encoding: str
) -> None:
    text = '{"categories": [{"id": "3", "name": "weiß"}, {"id": 4.0, "name": 7}]}'
    (tmp_path / "x.json").write_text(text, encoding=encoding)

    classes = read_categories(tmp_path / "x.json")

    assert [(info.id, info.name) for info in classes] == [(3, "weiß"), (4, "7")]


@pytest.mark.parametrize("index_is_id", [True, False])
@pytest.mark.parametrize("names", [("a", "b", "a"), ("a", " ", "b")])
def test_names_that_tell_no_classes_apart_are_said(
    names: tuple[str, ...], index_is_id: bool, write: Write
) -> None:
    annotations = write(*enumerate(names))

    outputs = settle_outputs(3, Settings(), annotations=annotations, index_is_id=index_is_id)

    assert len(outputs.classes) == 3
    assert "empty or given several times were kept" in str(outputs.assumed)
