"""Image ids from a COCO annotation file."""

from collections.abc import Sequence
from pathlib import Path, PurePath

from bundle.json_file import read_json
from bundle.regular_file import require_file
from service.names import did_you_mean


def read_image_ids(annotation_file: Path, paths: Sequence[Path]) -> list[int]:
    """The id of every path: that of the entry in `images` whose `file_name` the path ends with.

    If a `file_name` has folders that the path lacks, only the last part has to match.

    Raises:
        ValueError: not such a file, or a path that matches no entry or several.
        OSError: it cannot be read.
    """
    by_name = _read_names(annotation_file)
    by_last_part: dict[str, set[int]] = {}
    for name, image_id in by_name.items():
        by_last_part.setdefault(PurePath(name).name, set()).add(image_id)
    return [_id_of(path, by_name, by_last_part, file=annotation_file) for path in paths]


def _read_names(annotation_file: Path) -> dict[str, int]:
    content = read_json(require_file(annotation_file).read_bytes(), annotation_file)
    try:
        pairs = [(image["file_name"], image["id"]) for image in content["images"]]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{annotation_file}: expected COCO's annotations, a JSON object whose list `images` "
            f"has an id and a file_name in every entry ({type(error).__name__}: {error})"
        ) from error
    for name, image_id in pairs:
        if not isinstance(name, str) or type(image_id) is not int:
            raise ValueError(
                f"{annotation_file}: expected a file_name that is text and an id that is a whole "
                f"number, got {name!r} and {image_id!r}"
            )
    by_name: dict[str, int] = {}
    for name, image_id in pairs:
        if by_name.setdefault(str(PurePath(name)), image_id) != image_id:
            raise ValueError(
                f"{annotation_file}: images {by_name[str(PurePath(name))]} and {image_id} have one "
                f"file_name, {name!r}; write their folders, too"
            )
    return by_name


def _id_of(
    path: Path, by_name: dict[str, int], by_last_part: dict[str, set[int]], *, file: Path
) -> int:
    parts = path.absolute().parts
    for start in range(len(parts)):  # the longest matching name
        image_id = by_name.get(str(PurePath(*parts[start:])))
        if image_id is not None:
            return image_id
    ids = by_last_part.get(path.name, set())
    if len(ids) == 1:
        return next(iter(ids))
    if ids:
        raise ValueError(
            f"{path}: {file} has {len(ids)} images of that name, in several folders; name the "
            "folder that holds those folders, or its parent"
        )
    raise ValueError(
        f"{path}: no image of {file} has that name: "
        f"{did_you_mean(path.name, by_last_part)}without an annotation file, ids are counted from 0"
    )
