"""Reads annotation files of COCO's format as the formats of data sets are read."""

import os
from pathlib import Path

from model.data.annotations import Annotations, parse_annotations
from model.data.formats.coco import coco_source
from model.data.split import Split, open_split


def read_annotations(annotation_file: Path) -> Annotations:
    return parse_annotations(coco_source(annotation_file, annotation_file.parent))


def read_split(annotation_file: Path, image_dir: Path, *, decode: bool = False) -> Split:
    data_dir = Path(os.path.commonpath([annotation_file.parent, image_dir]))
    return open_split(
        read_annotations(annotation_file), image_dir, data_dir=data_dir, decode=decode
    )
