"""Detections in COCO's results format, checked entry by entry before they are scored."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bundle.json_file import read_json
from model.data.fields import read_id, read_number

_KEYS = ("image_id", "category_id", "bbox", "score")
# A box that ends this far outside its image was not just rounded or left unclipped.
_OUTSIDE_PX, _OUTSIDE_SHARE = 1.0, 0.05
_MIN_SHARE_OUTSIDE = 0.1  # of all boxes, for the file to be taken as corners
_SCORE_ROUNDING = 1e-6  # of float32: the probabilities of a softmax may add up to a little over 1


def read_results(path: Path, ground_truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Detections in a file of COCO's results format.

    Raises:
        ValueError: not JSON, or refused by `check_results`; names the file.
        OSError: the file cannot be read.
    """
    content = read_json(path.read_bytes(), path)
    try:
        return check_results(content, ground_truth)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_results(content: Any, ground_truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Detections that can be scored, with the data set's whole numbers as ids.

    Ids may be text if the data set's are.

    Args:
        content: what should be a list of {"image_id", "category_id", "bbox": [x, y, width, height]
            in pixels, "score"}.
        ground_truth: a data set in COCO's format, with the known images and categories.

    Raises:
        ValueError: names the first entry that cannot be scored, its field and value, and a remedy.
    """
    if not isinstance(content, list):
        raise ValueError(_not_a_list(content))
    images = {image["id"]: image for image in ground_truth["images"]}
    files = _Ids.of(ground_truth["images"], "file_name")
    names = _Ids.of(ground_truth["categories"], "name")
    checked = []
    for index, entry in enumerate(content):
        try:
            checked.append(_check_entry(entry, files, names))
        except _Foreign as error:
            hint = _shift_hint(content, error.field, error.known) or error.otherwise
            raise ValueError(f"entry {index}: {error}; {hint}") from None
        except ValueError as error:
            raise ValueError(f"entry {index}: {error}") from None
    _refuse_corners(checked, images)
    return checked


def with_text_ids(
    results: Sequence[Mapping[str, Any]], ground_truth: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Detections with the ids of the data set's own file, where those are text."""
    texts = {
        field: {entry["id"]: entry["text_id"] for entry in ground_truth[section]
                if "text_id" in entry}
        for field, section in (("image_id", "images"), ("category_id", "categories"))
    }  # fmt: skip
    return [
        {**entry, **{field: own.get(entry[field], entry[field]) for field, own in texts.items()}}
        for entry in results
    ]


class _Ids(NamedTuple):
    """The images or categories of a data set: names by id, and ids by text id."""

    names: dict[int, str]
    numbers: dict[str, int]

    @classmethod
    def of(cls, entries: Sequence[Mapping[str, Any]], name: str) -> "_Ids":
        return cls(
            {entry["id"]: str(entry.get(name)) for entry in entries},
            {entry["text_id"]: entry["id"] for entry in entries if "text_id" in entry},
        )


class _Foreign(ValueError):
    """An id that the data set lacks; the whole file may show what it means."""

    def __init__(self, field: str, value: int, known: Mapping[int, str], otherwise: str) -> None:
        self.field, self.known, self.otherwise = field, known, otherwise
        some = ", ".join(f"{i} {name}" for i, name in list(known.items())[:5])
        more = ", ..." if len(known) > 5 else ""
        what = "images" if field == "image_id" else "categories"
        super().__init__(
            f"{field} {value} is not among the {what} of the data set, {len(known)} in all "
            f"({some}{more})"
        )


def _check_entry(entry: Any, files: _Ids, names: _Ids) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"is {_show(entry)}; expected an object with {', '.join(_KEYS)}")
    if missing := [key for key in _KEYS if key not in entry]:
        raise ValueError(
            f"{', '.join(missing)} missing; expected COCO's results format, a list of objects "
            f"with {', '.join(_KEYS)}"
        )
    image_id = _whole_number(entry, "image_id", files)
    category_id = _whole_number(entry, "category_id", names)
    if image_id not in files.names:
        raise _Foreign("image_id", image_id, files.names,
                       "were the detections made on another data set or split?")  # fmt: skip
    if category_id not in names.names:
        raise _Foreign("category_id", category_id, names.names,
                       "leave out the detections of other classes, or evaluate on the data set "
                       "they belong to")  # fmt: skip
    _check_box(entry["bbox"])
    _check_score(entry["score"])
    # Other fields are dropped: scoring would evaluate a mask or a caption instead of the box.
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": entry["bbox"],
        "score": entry["score"],
    }


def _not_a_list(content: Any) -> str:
    inner = ""
    if isinstance(content, dict):
        inner = f" with {', '.join(list(content)[:5])}" if content else " without entries"
        inner += _list_hint(content)
    return (
        f"holds {_kind(content)}{inner}; expected COCO's results format, a list of "
        f"objects with {', '.join(_KEYS)}"
    )


def _list_hint(content: Mapping[str, Any]) -> str:
    """Where in an object the detections seem to be."""
    if not content.keys().isdisjoint(_KEYS):
        return ", which seems to be one detection; write [ before and ] behind it"
    counts = {
        key: sum(field in value[0] for field in _KEYS) if value else 1
        for key, value in content.items()
        if isinstance(value, list) and all(isinstance(entry, dict) for entry in value)
    }
    likeliest = max((key for key in counts if counts[key]), key=lambda key: counts[key], default="")
    return f"; write the list {likeliest!r} alone" if likeliest else ""


def _is_number(value: Any) -> bool:
    return not isinstance(value, str) and read_number(value) is not None


def _whole_number(entry: Mapping[str, Any], field: str, ids: _Ids) -> int:
    value = entry[field]
    number = read_id(value)
    if isinstance(number, str):
        number = ids.numbers.get(number)
    if number is not None:
        return number
    meant = next((str(i) for i, name in ids.names.items() if name == value), None)
    remedy = f"its id is {meant}" if meant else "write the id as a number"
    raise ValueError(f"{field} is {_show(value)}; expected a whole number: {remedy}")


def _check_box(value: Any) -> None:
    if not (isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))):
        raise ValueError(
            f"bbox is {_show(value)}; expected [x, y, width, height], four finite numbers in pixels"
        )
    if min(value[2:]) < 0:
        raise ValueError(
            f"bbox is {_show(value)}, of negative width or height; expected [x, y, width, height] "
            "with x and y at the top left: subtract the smaller corner from the larger"
        )


def _check_score(value: Any) -> None:
    if not _is_number(value):
        raise ValueError(
            f"score is {_show(value)}; expected a finite number, by which detections are ranked"
        )
    if not -_SCORE_ROUNDING <= value <= 1 + _SCORE_ROUNDING:
        raise ValueError(
            f"score is {_show(value)}; expected a number from 0 to 1, by which thresholds are "
            "chosen: divide percentages by 100, take the sigmoid of logits"
        )


def _shift_hint(content: Sequence[Any], field: str, known: Mapping[int, Any]) -> str | None:
    """Advice if another numbering explains every id of a field; else None."""
    values = {entry.get(field) for entry in content if isinstance(entry, dict)
              and isinstance(entry.get(field), int | float | str)}  # fmt: skip
    for shift in (1, -1):
        if all(isinstance(v, int | float) and v + shift in known for v in values):
            way = "one too low: add 1" if shift == 1 else "one too high: subtract 1"
            return f"every {field} of the file seems {way}"
    if values <= set(range(len(known))):
        return f"{field} seems to count from 0 in the data set's order: write its ids instead"
    return None


def _refuse_corners(results: Sequence[Mapping[str, Any]], images: Mapping[int, Any]) -> None:
    """Raise ValueError if boxes leave their images, but none would as [x1, y1, x2, y2]."""
    outside: list[int] = []
    for index, entry in enumerate(results):
        height, width = (images[entry["image_id"]].get(side) for side in ("height", "width"))
        if not (_is_number(height) and _is_number(width)):
            return
        x, y, right, bottom = entry["bbox"]
        fits = x <= right <= width + _OUTSIDE_PX and y <= bottom <= height + _OUTSIDE_PX
        if not fits:
            return
        limits = ((x + right, width), (y + bottom, height))
        if any(end > side * (1 + _OUTSIDE_SHARE) + _OUTSIDE_PX for end, side in limits):
            outside.append(index)
    if len(outside) > _MIN_SHARE_OUTSIDE * len(results):
        first = results[outside[0]]
        image = images[first["image_id"]]
        raise ValueError(
            f"entry {outside[0]}: bbox is {_show(first['bbox'])}, which as [x, y, width, height] "
            f"sticks out of image {first['image_id']} ({image['width']}x{image['height']}), like "
            f"{len(outside)} of {len(results)} boxes, but as corners [x1, y1, x2, y2] every box "
            "fits: write [x1, y1, x2 - x1, y2 - y1]"
        )


def _kind(value: Any) -> str:
    kinds = {dict: "an object", str: "text", type(None): "null"}
    return kinds.get(type(value), f"the value {value}")


def _show(value: Any) -> str:
    """A JSON value as it appears in the file."""
    if isinstance(value, dict):
        return "an object"
    text = json.dumps(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"the text {text}" if isinstance(value, str) else text
