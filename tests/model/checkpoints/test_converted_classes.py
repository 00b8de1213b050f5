"""Which outputs of a published head are kept, and which class each one stands for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bundle.manifest import ClassInfo
from model.checkpoint import main
from model.checkpoints.checkpoint_file import load_checkpoint
from model.checkpoints.convert import convert
from model.checkpoints.published_layouts import COCO_CLASSES
from tests.data.parity.make_checkpoint import (
    NAMES,
    checkpoint,
    hf_tensors,
)
from tests.model.checkpoints.published import (
    authors,
    numbered_head,
    variants,
)


@variants
def test_91_outputs_become_the_80_classes_of_coco(
    write: Callable[[Any], Path], variant: str
) -> None:
    converted = convert(write({"model": authors(variant, numbered_head(91))}))

    ids = torch.tensor([float(entry.id) for entry in COCO_CLASSES])
    state = converted.state_dict
    assert converted.classes == COCO_CLASSES
    assert converted.config.model.num_classes == 80
    assert torch.equal(state["class_heads.0.bias"], ids)
    assert torch.equal(state["class_heads.0.weight"], ids[:, None].expand(-1, 256))


def test_the_encoder_head_keeps_its_output_0(write: Callable[[Any], Path]) -> None:
    converted = convert(write({"model": authors("twostage", numbered_head(91))}))

    bias = converted.state_dict["queries.class_head.bias"]
    assert bias.shape == (80,)
    assert bias[:4].tolist() == [0 + 3 / 8, 2 + 3 / 8, 3 + 3 / 8, 4 + 3 / 8]  # head 3 of 0..3


def test_class_names_of_mmdet_are_kept_with_ids_from_1(write: Callable[[Any], Path]) -> None:
    converted = convert(write(checkpoint("base", "mmdet2")))

    assert [entry.name for entry in converted.classes] == list(NAMES)
    assert [entry.id for entry in converted.classes] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("spelling", ["classes", "CLASSES"])
def test_coco_names_of_mmdet_get_coco_ids(write: Callable[[Any], Path], spelling: str) -> None:
    content = checkpoint("base", "mmdet3")
    for key, tensor in content["state_dict"].items():
        if "cls_branches" in key:
            content["state_dict"][key] = torch.zeros(80, *tensor.shape[1:])
    content["meta"] = {"dataset_meta": {spelling: [entry.name for entry in COCO_CLASSES]}}

    converted = convert(write(content))

    assert converted.classes == COCO_CLASSES
    assert converted.provenance["classes"].startswith(f"meta.dataset_meta.{spelling}, which")


def test_names_of_version_2_are_said_to_be_in_meta(write: Callable[[Any], Path]) -> None:
    content = checkpoint("base", "mmdet2")

    assert content["meta"]["CLASSES"]
    assert convert(write(content)).provenance["classes"] == "meta.CLASSES"


def test_class_names_of_a_file_do_not_control_the_terminal(
    write: Callable[[Any], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = checkpoint("base", "mmdet2")
    content["meta"]["CLASSES"] = ["\x1b[2Jbolt\r\n", *NAMES[1:]]
    destination = tmp_path / "converted.safetensors"

    main(["convert", str(write(content)), str(destination)])
    main(["show", str(destination)])

    shown = capsys.readouterr().out
    assert shown.count(r"0 -> 1 -> \x1b[2Jbolt\r\n") == 2
    assert "\x1b" not in shown


def test_outputs_of_the_authors_are_category_ids(write: Callable[[Any], Path]) -> None:
    converted = convert(write(checkpoint("base", "authors")))

    assert converted.classes[0] == ClassInfo(id=0, name="class 0")
    assert converted.classes[6] == ClassInfo(id=6, name="class 6")


def _annotations(directory: Path, ids: list[int]) -> Path:
    path = directory / "instances.json"
    categories = [{"id": i, "name": f"thing {i}", "supercategory": "x"} for i in ids]
    path.write_text(json.dumps({"categories": categories, "images": [], "annotations": []}))
    return path


def test_an_annotation_file_names_the_outputs(tmp_path: Path, write: Callable[[Any], Path]) -> None:
    ids = [3, 5, 7, 9, 11, 13, 15]

    converted = convert(
        write(checkpoint("base", "mmdet2")), annotations=_annotations(tmp_path, ids)
    )

    assert [entry.id for entry in converted.classes] == ids
    assert converted.provenance["options"]["classes"] == "instances.json"


def test_an_annotation_file_picks_the_outputs_of_the_authors_heads(
    tmp_path: Path, write: Callable[[Any], Path]
) -> None:
    source = write({"model": authors("base", numbered_head(7))})

    converted = convert(source, annotations=_annotations(tmp_path, [1, 2, 4]))

    assert converted.state_dict["class_heads.0.bias"].tolist() == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("text", ["{}", "[]", '{"categories": [{"id": 1}]}'])
def test_a_file_of_class_names_must_be_coco_annotations(
    tmp_path: Path, write: Callable[[Any], Path], text: str
) -> None:
    (tmp_path / "x.json").write_text(text)

    with pytest.raises(ValueError, match=r"x\.json is not a COCO annotation file"):
        convert(write(checkpoint("base", "mmdet2")), annotations=tmp_path / "x.json")


def test_too_few_names_are_refused(tmp_path: Path, write: Callable[[Any], Path]) -> None:
    source = write(checkpoint("base", "mmdet2"))

    with pytest.raises(ValueError, match=r"number of its classes is 7, of names 2; .*--classes"):
        convert(source, annotations=_annotations(tmp_path, [1, 2]))


UNSORTED = Path("tests/data/cases/unsorted-ids/classes.json")


def test_outputs_with_ids_in_any_order_are_reported_when_converted(
    tmp_path: Path, write: Callable[[Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = write({"model": authors("base", numbered_head(3))})
    destination = tmp_path / "x.safetensors"

    main(["convert", str(source), str(destination), "--classes", str(UNSORTED)])

    converted = load_checkpoint(destination)
    printed = capsys.readouterr().out
    assert (
        "output -> id -> name\n     0 -> 0 -> bolt\n     1 -> 1 -> nut\n     2 -> 2 -> w" in printed
    )
    assert [entry.name for entry in converted.classes] == ["bolt", "nut", "washer"]
    assert converted.state_dict["class_heads.0.bias"].tolist() == [0.0, 1.0, 2.0]


def test_own_names_of_a_hugging_face_head_of_91_win_over_coco(
    tmp_path: Path, write: Callable[[Any], Path]
) -> None:
    names = {str(i): f"kind {i}" for i in range(91)}
    (tmp_path / "config.json").write_text(json.dumps({"id2label": names}))
    tensors = authors("base", numbered_head(91))

    converted = convert(write(hf_tensors(tensors, version=4)))

    assert converted.classes[90] == ClassInfo(id=90, name="kind 90")
    assert converted.config.model.num_classes == 91
