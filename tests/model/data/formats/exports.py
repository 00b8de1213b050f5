"""One small data set, written as every tool exports it.

The boxes are (x, y, width, height) in pixels of images of 64 x 48; classes are sorted by name.
"""

import json
from pathlib import Path
from typing import Any

from PIL import Image

WIDTH, HEIGHT = 64, 48
CLASSES = ["bolt", "cap nut", "washer"]
Boxes = list[tuple[str, tuple[int, int, int, int]]]
TRAIN: dict[str, Boxes] = {
    "a.png": [("bolt", (4, 6, 20, 10)), ("cap nut", (30, 8, 12, 24))],
    "b.png": [("washer", (16, 12, 32, 24))],
    "empty.png": [],
}
VAL: dict[str, Boxes] = {
    "c.png": [("cap nut", (8, 3, 40, 36)), ("cap nut", (1, 1, 16, 12))],
    "d.png": [("bolt", (32, 24, 8, 8))],
}
SPLITS = {"train": TRAIN, "val": VAL}
ALL = TRAIN | VAL


def write_images(folder: Path, names: dict[str, Boxes]) -> None:
    """Every image has a grey of its own, so that no two files are equal."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (WIDTH, HEIGHT), (ord(name[0]),) * 3).save(folder / name)


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def corners(box: tuple[int, int, int, int]) -> list[tuple[int, int]]:
    x, y, w, h = box
    return [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]


def coco_content(images: dict[str, Boxes], *, with_boxes: bool = True) -> dict[str, Any]:
    numbered = list(enumerate(images.items(), start=1))
    objects = [(key, label, box) for key, (_, boxes) in numbered for label, box in boxes]
    return {
        "images": [
            {"id": key, "file_name": name, "height": HEIGHT, "width": WIDTH}
            for key, (name, _) in numbered
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image_id,
                "category_id": CLASSES.index(label),
                **({"bbox": list(box)} if with_boxes else {"segmentation": [polygon(box)]}),
            }
            for number, (image_id, label, box) in enumerate(objects, start=1)
        ],
        "categories": [{"id": key, "name": name} for key, name in enumerate(CLASSES)],
    }


def polygon(box: tuple[int, int, int, int]) -> list[int]:
    return [value for corner in corners(box) for value in corner]


def coco(folder: Path) -> None:
    for split, images in SPLITS.items():
        write(folder / "annotations" / f"instances_{split}.json", json.dumps(coco_content(images)))
        write_images(folder / split, images)


def coco_of_segmentation(folder: Path) -> None:
    for split, images in SPLITS.items():
        content = coco_content(images, with_boxes=False)
        write(folder / f"{split}.json", json.dumps(content))
        write_images(folder / "images" / split, images)


def coco_of_roboflow(folder: Path) -> None:
    for split, images in {"train": TRAIN, "valid": VAL}.items():
        content = json.dumps(coco_content(images))
        write(folder / split / "_annotations.coco.json", content)
        write_images(folder / split, images)


def yolo_line(label: str, box: tuple[int, int, int, int]) -> str:
    x, y, w, h = box
    values = ((x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT)
    return f"{CLASSES.index(label)} " + " ".join(f"{value:.6f}" for value in values)


def yolo_polygon(label: str, box: tuple[int, int, int, int]) -> str:
    points = " ".join(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in corners(box))
    return f"{CLASSES.index(label)} {points}"


def yolo_of_roboflow(folder: Path) -> None:
    """The paths of data.yaml lead out of the folder, and labels have spaces at their ends."""
    write(
        folder / "data.yaml",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 3\n"
        f"names: {CLASSES}\n\nroboflow:\n  workspace: mine\n  version: 1\n",
    )
    for split, images in {"train": TRAIN, "valid": VAL}.items():
        write_images(folder / split / "images", images)
        for name, boxes in images.items():
            text = "".join(yolo_line(*box) + " \n" for box in boxes)
            write(folder / split / "labels" / Path(name).with_suffix(".txt"), text)


def yolo_of_ultralytics(folder: Path) -> None:
    """Polygons, names as a mapping, a path of another machine, and no file where no object is."""
    names = "".join(f"  {key}: {name}\n" for key, name in enumerate(CLASSES))
    write(
        folder / "bolts.yaml",
        "path: ../datasets/bolts  # root\ntrain: images/train\nval:\n  - images/val\n"
        f"names:\n{names}",
    )
    for split, images in SPLITS.items():
        write_images(folder / "images" / split, images)
        for name, boxes in images.items():
            text = "\n".join(yolo_polygon(*box) for box in boxes)
            label_file = folder / "labels" / split / Path(name).with_suffix(".txt")
            write(label_file, text) if boxes else None


def yolo_of_darknet(folder: Path) -> None:
    """As CVAT's export YOLO 1.1 has it: lists of images, and labels beside them."""
    write(folder / "obj.names", "\n".join(CLASSES) + "\n")
    for split, images in SPLITS.items():
        data = f"obj_{split}_data"
        write(folder / f"{split}.txt", "".join(f"data/{data}/{name}\n" for name in images))
        write_images(folder / data, images)
        for name, boxes in images.items():
            text = "".join(yolo_line(*box) + "\n" for box in boxes)
            write(folder / data / Path(name).with_suffix(".txt"), text)


def voc_xml(name: str, boxes: Boxes, first: int) -> str:
    """`first` is 1 where corners are pixels, counted from 1, and 0 where they are edges."""
    objects = "".join(
        f"<object><name>{label}</name><pose>Unspecified</pose><bndbox><xmin>{x + first}</xmin>"
        f"<xmax>{x + w}</xmax><ymin>{y + first}</ymin><ymax>{y + h}</ymax></bndbox></object>"
        for label, (x, y, w, h) in boxes
    )
    return (
        f"<annotation><folder>JPEGImages</folder><filename>{name}</filename><size><width>{WIDTH}"
        f"</width><height>{HEIGHT}</height><depth>3</depth></size>{objects}</annotation>"
    )


def voc(folder: Path) -> None:
    for split, images in SPLITS.items():
        write_images(folder / "JPEGImages", images)
        stems = "".join(f"{Path(name).stem}\n" for name in images)
        write(folder / "ImageSets" / "Main" / f"{split}.txt", stems)
        for name, boxes in images.items():
            file = folder / "Annotations" / Path(name).with_suffix(".xml")
            write(file, voc_xml(name, boxes, first=1))


def voc_of_roboflow(folder: Path) -> None:
    """XML beside the images; corners are edges, which the one of a.png at half a pixel tells."""
    for split, images in {"train": TRAIN, "valid": VAL}.items():
        write_images(folder / split, images)
        for name, boxes in images.items():
            text = voc_xml(name, boxes, first=0).replace("<xmin>4<", "<xmin>3.9999<")
            write(folder / split / Path(name).with_suffix(".xml"), text)


def cvat_image(name: str, boxes: Boxes, subset: str) -> str:
    """The first object of an image as a polygon, others as boxes."""
    shapes = [
        f'<polygon label="{label}" source="manual" occluded="0" points="'
        + ";".join(f"{px:.2f},{py:.2f}" for px, py in corners((x, y, w, h)))
        + '" z_order="0"></polygon>'
        if number == 0
        else f'<box label="{label}" source="manual" occluded="0" xtl="{x}.00" ytl="{y}.00" '
        f'xbr="{x + w}.00" ybr="{y + h}.00" z_order="0"><attribute name="new">1</attribute></box>'
        for number, (label, (x, y, w, h)) in enumerate(boxes)
    ]
    return (
        f'<image id="0" name="{name}" subset="{subset}" task_id="7" width="{WIDTH}" '
        f'height="{HEIGHT}">{"".join(shapes)}</image>'
    )


def cvat(folder: Path) -> None:
    """A project with the subsets Train and Validation."""
    labels = "".join(
        f"<label><name>{name}</name><color>#fff</color><type>any</type></label>" for name in CLASSES
    )
    subsets = {"Train": TRAIN, "Validation": VAL}
    images = [
        cvat_image(name, boxes, subset)
        for subset, part in subsets.items()
        for name, boxes in part.items()
    ]
    write(
        folder / "annotations.xml",
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><project>'
        f"<id>1</id><labels>{labels}</labels></project></meta>{''.join(images)}</annotations>",
    )
    for subset, part in subsets.items():
        write_images(folder / "images" / subset, part)


def labelme(folder: Path) -> None:
    """Two opposite corners, in any order, for rectangles; paths as Windows writes them."""
    for split, images in SPLITS.items():
        write_images(folder / split / "images", images)
        for name, boxes in images.items():
            shapes: list[dict[str, Any]] = [
                {"label": label, "points": [corners(box)[2], corners(box)[0]], "group_id": None,
                 "description": "", "shape_type": "rectangle", "flags": {}, "mask": None}
                for label, box in boxes
            ]  # fmt: skip
            content = {
                "version": "5.5.0", "flags": {}, "shapes": shapes,
                "imagePath": f"..\\images\\{name}", "imageData": "iVBORw0KGgo=",
                "imageHeight": HEIGHT, "imageWidth": WIDTH,
            }  # fmt: skip
            write(folder / split / "json" / f"{Path(name).stem}.json", json.dumps(content))


def label_studio_region(label: str, box: tuple[int, int, int, int]) -> dict[str, Any]:
    x, y, w, h = box
    return {
        "original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0,
        "value": {"x": x / WIDTH * 100, "y": y / HEIGHT * 100, "width": w / WIDTH * 100,
                  "height": h / HEIGHT * 100, "rotation": 0, "rectanglelabels": [label]},
        "id": "Dx_aB3ob9R", "from_name": "label", "to_name": "image", "type": "rectanglelabels",
        "origin": "manual",
    }  # fmt: skip


def label_studio(folder: Path) -> None:
    """Not divided; the images were uploaded, and are here under their own names."""
    tasks = [
        {
            "id": number,
            "annotations": [
                {"id": number, "result": [label_studio_region(*box) for box in boxes],
                 "was_cancelled": False, "ground_truth": False}
            ],
            "file_upload": f"1a2b3c4d-{name}", "drafts": [], "predictions": [],
            "data": {"image": f"/data/upload/1/1a2b3c4d-{name}"},
        }
        for number, (name, boxes) in enumerate(ALL.items(), start=1)
    ]  # fmt: skip
    write(folder / "project-1-at-2025-01-02-03-04-0a1b2c3d.json", json.dumps(tasks))
    write_images(folder / "images", ALL)


def label_studio_yolo(folder: Path) -> None:
    """Label Studio's own export as YOLO: not divided, with classes.txt."""
    write(folder / "classes.txt", "\n".join(CLASSES))
    write(folder / "notes.json", json.dumps({"categories": [], "info": {"version": "1.0"}}))
    write_images(folder / "images", ALL)
    for name, boxes in ALL.items():
        text = "".join(yolo_line(*box) + "\n" for box in boxes)
        write(folder / "labels" / Path(name).with_suffix(".txt"), text)


def label_studio_coco(folder: Path) -> None:
    """Label Studio's export as COCO: not divided, with names that Windows wrote."""
    content = json.dumps(coco_content({f"images\\{name}": ALL[name] for name in ALL}))
    write(folder / "result.json", content)
    write_images(folder / "images", ALL)


DIVIDED = [
    coco, coco_of_segmentation, coco_of_roboflow, yolo_of_roboflow, yolo_of_ultralytics,
    yolo_of_darknet, voc, voc_of_roboflow, cvat, labelme,
]  # fmt: skip
WHOLE = [label_studio, label_studio_yolo, label_studio_coco]
