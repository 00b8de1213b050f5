"""Which class each output of a published model stands for: output -> category id -> name.

Projects number outputs in two ways. For the authors and Hugging Face, an output's index is the
category's id; mmdetection numbers the categories in the order of the annotation file.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bundle.json_file import read_json
from bundle.manifest import ClassInfo
from model.checkpoints.published_layouts import COCO_CLASSES
from model.checkpoints.published_settings import Settings

NUM_COCO_OUTPUTS = 91  # of heads whose output's index is COCO's category id
_NO_CLASS = ("", "n/a", "none", "background", "no object", "no-object")
Names = Sequence[str]


@dataclass(frozen=True)
class Outputs:
    """The outputs that stand for a class.

    Attributes:
        kept: their indices in the published head, ascending.
        classes: what they stand for, in that order.
        source: where ids and names come from.
        assumed: what the file does not say and was assumed, in a sentence; or None.
    """

    kept: tuple[int, ...]
    classes: tuple[ClassInfo, ...]
    source: str
    assumed: str | None = None


def settle_outputs(
    count: int, settings: Settings, *, annotations: Path | None, index_is_id: bool
) -> Outputs:
    """Which class each output of a head stands for.

    Args:
        count: outputs of the published head.
        settings: the file's settings, with class names if it has any.
        annotations: COCO annotation file that the model was trained on, or None.
        index_is_id: whether the training code numbers outputs by category id.

    Raises:
        ValueError: the classes do not fit the number of outputs, or `annotations` names none.
    """
    if annotations is not None:
        classes = read_categories(annotations)
        read = _by_annotations if index_is_id else _by_order
        outputs = read(classes, count, settings, annotations.name)
    elif settings.class_names:
        outputs = _by_names(
            settings.class_names, count, settings.names_from, index_is_id=index_is_id
        )
    else:
        outputs = _unnamed(count, index_is_id=index_is_id)
    if outputs is None:
        number = len(classes) if annotations else len(settings.class_names or ())
        raise ValueError(
            f"the number of its classes is {count}, of names {number}; give the names with "
            "--classes and the annotation file it was trained on"
        )
    return _doubt_names(outputs)


def _doubt_names(outputs: Outputs) -> Outputs:
    """The outputs, with a sentence about names that tell no classes apart."""
    counts = Counter(entry.name.strip() for entry in outputs.classes)
    doubtful = [repr(name)[:50] for name, count in counts.items() if count > 1 or not name]
    if not doubtful:
        return outputs
    sentence = (
        f"names that are empty or given several times were kept: {', '.join(doubtful[:5])}; give "
        "better ones with --classes"
    )
    return replace(outputs, assumed="; ".join(filter(None, (outputs.assumed, sentence))))


def read_categories(annotations: Path) -> tuple[ClassInfo, ...]:
    """The categories of a COCO annotation file, in its order; ValueError for any other file."""
    content = read_json(annotations.read_bytes(), annotations)
    categories = content.get("categories") if isinstance(content, dict) else None
    if not isinstance(categories, list):
        raise ValueError(
            f"{annotations} is not a COCO annotation file: it has no list of categories"
        )
    classes = tuple(_category(annotations, entry) for entry in categories)
    if not classes:
        raise ValueError(f"{annotations} has no categories")
    ids = [entry.id for entry in classes]
    if repeated := [i for i in ids if ids.count(i) > 1]:
        raise ValueError(f"{annotations} has several categories with the id {repeated[0]}")
    return classes


def _category(annotations: Path, entry: Any) -> ClassInfo:
    try:
        name = entry["name"]
        return ClassInfo(id=entry["id"], name=str(name) if isinstance(name, int) else name)
    except (ValidationError, LookupError, TypeError):
        raise ValueError(
            f"{annotations} is not a COCO annotation file (category {entry!r}, expected a whole "
            "number as id, and a name)"
        ) from None


def _by_annotations(
    classes: Sequence[ClassInfo], count: int, settings: Settings, file_name: str
) -> Outputs | None:
    """The outputs if the index is the id; names that the file gives its outputs take precedence."""
    names = settings.class_names or ()
    if len(names) == count and all(names.count(entry.name) == 1 for entry in classes):
        by_output = {names.index(entry.name): entry for entry in classes}
        source = f"{file_name}, by the names in {settings.names_from}"
    elif all(0 <= entry.id < count for entry in classes):
        by_output = {entry.id: entry for entry in classes}
        source = f"{file_name}, by id"
    elif len(classes) == count:
        assumed = "the ids are not the outputs' indices, so the outputs are assumed to be in the "
        return Outputs(tuple(range(count)), tuple(classes), file_name,
                       f"{assumed}order of {file_name}")  # fmt: skip
    else:
        return None
    kept = tuple(sorted(by_output))
    return Outputs(kept, tuple(by_output[output] for output in kept), source)


def _by_order(
    classes: Sequence[ClassInfo], count: int, settings: Settings, file_name: str
) -> Outputs | None:
    """The outputs if they follow the annotation file, limited to the categories that are named."""
    named = [entry for entry in classes if entry.name in (settings.class_names or ())]
    used = named if len(named) == count else classes
    if len(used) != count:
        return None
    assumed = None
    if settings.class_names and len(named) != count:
        assumed = f"{settings.names_from} names other classes; those of {file_name} were assumed"
    return Outputs(tuple(range(count)), tuple(used), f"{file_name}, in its order", assumed)


def _by_names(names: Names, count: int, where: str, *, index_is_id: bool) -> Outputs | None:
    if len(names) != count:
        return None
    every = tuple(range(count))
    if tuple(names) == tuple(entry.name for entry in COCO_CLASSES):
        return Outputs(every, COCO_CLASSES, f"{where}, which names COCO's classes")
    if not index_is_id:
        classes = tuple(ClassInfo(id=i, name=name) for i, name in enumerate(names, start=1))
        assumed = f"{where} names the classes but not their ids: 1 to {count} were assumed"
        return Outputs(every, classes, where, assumed)
    if all(entry.id < count and names[entry.id] == entry.name for entry in COCO_CLASSES):
        kept = tuple(entry.id for entry in COCO_CLASSES)
        return Outputs(kept, COCO_CLASSES, f"{where}, which names COCO's classes")
    kept = tuple(i for i, name in enumerate(names) if name.strip().lower() not in _NO_CLASS)
    return Outputs(kept, tuple(ClassInfo(id=i, name=names[i]) for i in kept), where)


def _unnamed(count: int, *, index_is_id: bool) -> Outputs:
    remedy = "give the right ones with --classes"
    kept = tuple(range(count))
    if count == len(COCO_CLASSES) or (index_is_id and count == NUM_COCO_OUTPUTS):
        if count == NUM_COCO_OUTPUTS:
            kept = tuple(entry.id for entry in COCO_CLASSES)
        assumed = (
            f"the file names none of its outputs, {count} in all: COCO's classes were assumed; "
            f"{remedy}"
        )
        return Outputs(kept, COCO_CLASSES, "assumed", assumed)
    first = 0 if index_is_id else 1
    classes = tuple(ClassInfo(id=first + i, name=f"class {first + i}") for i in kept)
    assumed = (
        f"the file names none of its outputs, {count} in all: ids from {first} to "
        f"{first + count - 1} and names made from them were assumed; {remedy}"
    )
    return Outputs(kept, classes, "assumed", assumed)
