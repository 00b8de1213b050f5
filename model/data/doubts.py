"""Faults that only a whole data set shows: a wrong box format, too many crowds, leaks."""

from collections import Counter
from collections.abc import Iterator, Sequence

from bundle.terminal import shortened
from model.config import ModelConfig
from model.data.annotations import BoxEntry
from model.data.faults import Fault
from model.data.split import Split

MOST = 0.9  # a property shared by more of the boxes is no accident
AREA_TOLERANCE = 0.01  # relative
# More boxes than this outside of their images are no sloppiness, if all fit inside as centres.
MIN_OUTSIDE, MIN_OUTSIDE_SHARE = 5, 0.05
SHOWN_CLASSES = 10


def doubts(split: Split, model: ModelConfig | None) -> Iterator[Fault]:
    """Faults of a split that no single entry shows."""
    boxes = split.annotations.boxes
    if not boxes:
        return
    num_crowds = sum(box.is_crowd for box in boxes)
    if num_crowds == len(boxes):
        message = (
            "every box is marked as a crowd (iscrowd 1), and crowds are not trained on: set "
            "iscrowd to 0 for boxes around one object"
        )
        yield Fault("all-crowds", None, None, message)
        return
    if num_crowds:
        message = (
            f"boxes marked as crowds (iscrowd 1): {num_crowds} of {len(boxes)} "
            f"({num_crowds / len(boxes):.0%}); they are not trained on"
        )
        yield Fault("crowds", None, None, message, fatal=False)
    yield from _box_format(split)
    yield from _repeated_boxes(boxes)
    yield from _targets(split, model)
    yield from _orientation(split)


def _targets(split: Split, model: ModelConfig | None) -> Iterator[Fault]:
    targets = [box for box in split.annotations.boxes if split.training_box(box) is not None]
    if model is not None:  # to be trained
        targets = [box for box in targets if split.is_trained_on(box.image_id)]
    if not targets:
        if split.files:
            yield Fault("no-targets", None, None, "no annotation can be trained on")
        return
    used = {box.category_id for box in targets}
    empty = [f"{c.id} {c.name}" for c in split.annotations.classes if c.id not in used]
    if empty:
        message = (
            f"classes without a usable box: {len(empty)} of {len(split.annotations.classes)}, "
            f"{_some(empty)}"
        )
        yield Fault("empty-classes", None, None, message, fatal=False)
    if model is not None:
        yield from _full_images(Counter(box.image_id for box in targets), model)


def _repeated_boxes(boxes: Sequence[BoxEntry]) -> Iterator[Fault]:
    counts = Counter((box.image_id, box.category_id, box.bbox) for box in boxes)
    repeated = sum(count - 1 for count in counts.values())
    if repeated:
        (image_id, category_id, bbox), most = counts.most_common(1)[0]
        message = (
            f"boxes with the image, class and sides of another: {repeated} of {len(boxes)}, "
            f"such as [{', '.join(f'{value:.6g}' for value in bbox)}] of class "
            f"{category_id} in image {image_id}, which occurs {most} times: the model learns to "
            "detect such objects more than once; keep one of each"
        )
        yield Fault("repeated-boxes", None, None, message, fatal=False)


def _full_images(num_objects: Counter[int], model: ModelConfig) -> Iterator[Fault]:
    """Images with more objects than the model can find."""
    fullest, most = num_objects.most_common(1)[0]
    for name, limit in (
        ("num_queries", model.num_queries),
        ("num_detections", model.num_detections),
    ):
        num_full = sum(count > limit for count in num_objects.values())
        if num_full:
            message = (
                f"images of more objects than {limit}: {num_full}; image {fullest} has {most}: "
                f"the model will not find them all; raise {name} in the configuration"
            )
            yield Fault("many-objects", None, None, message, fatal=False)


def _box_format(split: Split) -> Iterator[Fault]:
    """Boxes that are corners, centres or fractions of the image, instead of corner and size."""
    boxes = [box for box in split.annotations.boxes if box.image_id in split.files]
    if not boxes:
        return
    first = boxes[0]
    found = f"such as [{', '.join(f'{value:.6g}' for value in first.bbox)}]"
    where = f"of image {first.image_id}"
    if all(0 <= value <= 1 for box in boxes for value in box.bbox):
        message = (
            f"all boxes are between 0 and 1, {found} {where}: fractions of the image's sides; "
            "COCO's format has [x, y, width, height] in pixels"
        )
        yield Fault("normalised-boxes", None, None, message)
    elif _are_corners(split, boxes):
        message = (
            f"boxes seem to be corners [x1, y1, x2, y2], {found} {where}; COCO's format has "
            "[x, y, width, height]: write x2 - x1 and y2 - y1 instead of x2 and y2"
        )
        yield Fault("corner-boxes", None, None, message)
    elif _are_centres(split, boxes):
        message = (
            f"boxes seem to be given by their centres, [cx, cy, width, height], {found} {where}; "
            "COCO's format has the top left corner: write cx - width / 2 and cy - height / 2"
        )
        yield Fault("centre-boxes", None, None, message)


def _are_corners(split: Split, boxes: list[BoxEntry]) -> bool:
    """Judge by the stated areas, or by boxes that leave the image but would not as corners."""
    telling = [box for box in boxes if box.stated_area is not None]
    by_corners = sum(_is_area(box, _corner_area(box)) for box in telling)
    by_sides = sum(_is_area(box, box.bbox[2] * box.bbox[3]) for box in telling)
    if by_corners > MOST * len(telling) and by_sides < by_corners / 2:
        return True
    as_corners = ((x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in (box.bbox for box in boxes))
    num_inside = sum(
        _is_inside(split, box.image_id, as_corner)
        for box, as_corner in zip(boxes, as_corners, strict=True)
    )
    return num_inside >= MOST * len(boxes) and _num_outside(split, boxes) > len(boxes) / 2


def _are_centres(split: Split, boxes: list[BoxEntry]) -> bool:
    """Judge by boxes that leave the image, while all of them would be inside as centres."""
    if _num_outside(split, boxes) < max(MIN_OUTSIDE, MIN_OUTSIDE_SHARE * len(boxes)):
        return False
    as_centres = ((x - w / 2, y - h / 2, w, h) for x, y, w, h in (box.bbox for box in boxes))
    return all(
        _is_inside(split, box.image_id, as_centre)
        for box, as_centre in zip(boxes, as_centres, strict=True)
    )


def _num_outside(split: Split, boxes: list[BoxEntry]) -> int:
    return sum(not _is_inside(split, box.image_id, box.bbox) for box in boxes)


def _corner_area(box: BoxEntry) -> float:
    x1, y1, x2, y2 = box.bbox
    return max(x2 - x1, 0) * max(y2 - y1, 0)


def _is_area(box: BoxEntry, area: float) -> bool:
    return abs((box.stated_area or 0) - area) <= AREA_TOLERANCE * area


def _is_inside(split: Split, image_id: int, bbox: tuple[float, float, float, float]) -> bool:
    """Whether a box [x, y, width, height] is inside its image, give or take a pixel."""
    x, y, box_width, box_height = bbox
    height, width = split.size(image_id)
    is_box = box_width > 0 and box_height > 0
    return (
        is_box and x >= 0 and y >= 0 and x + box_width <= width + 1 and y + box_height <= height + 1
    )


def _orientation(split: Split) -> Iterator[Fault]:
    """Images that EXIF turns without the annotations telling which version boxes refer to."""
    turned = []
    for image in split.images:
        header = split.files[image.id].header
        is_told = image.size is not None and header.stored_size != header.size
        if header.orientation > 1 and not is_told:
            turned.append(image.id)
    if turned:
        message = (
            "images mirrored or turned by their EXIF orientation, which no size in the annotations "
            f"shows: {len(turned)}, the first is image {turned[0]}; make sure that their boxes "
            "were drawn on the image as displayed"
        )
        yield Fault("turned-images", None, None, message, fatal=False)


def other_classes(train: Split, val: Split) -> Iterator[Fault]:
    """Classes that only one of the splits has, compared by id and name in any order."""
    ours, theirs = ([f"{info.id} {info.name}" for info in split.annotations.classes]
                    for split in (train, val))  # fmt: skip
    if unknown := [entry for entry in theirs if entry not in ours]:
        message = (
            f"{_some(unknown)} of val are not classes of train, which has {_some(ours)}: give both "
            "splits one list of categories, with the same ids and names"
        )
        yield Fault("other-classes", None, None, message)
    elif missing := [entry for entry in ours if entry not in theirs]:
        message = (
            f"{_some(missing)} of train are not classes of val: AP will say nothing about them"
        )
        yield Fault("other-classes", None, None, message, fatal=False)


def _some(entries: list[str]) -> str:
    rest = f", ... ({len(entries)})" if len(entries) > SHOWN_CLASSES else ""
    return f"{', '.join(map(shortened, entries[:SHOWN_CLASSES]))}{rest}"


def shared_images(train: Split, val: Split) -> list[Fault]:
    """Validation images that are also training images, compared by content."""
    digests = {file.digest: file.path for file in train.files.values()}
    shared = [file.path for file in val.files.values() if file.digest in digests]
    if not shared:
        return []
    message = (
        f"validation images that are training images too: {len(shared)} of {len(val.files)}, such "
        f"as {shared[0]}; AP will say too little about new images; validate on others"
    )
    return [Fault("shared-images", None, None, message, fatal=False)]
