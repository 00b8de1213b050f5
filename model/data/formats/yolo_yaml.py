"""The YAML file that describes a data set of Ultralytics or Roboflow."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from model.data.faults import shown
from model.data.formats.source import names_of, read_text
from model.data.place import OutsideError, is_inside

LARGEST_YAML_BYTES = 4_000_000  # with room for the names of many thousand classes
_USUAL_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")


@dataclass(frozen=True)
class YoloYaml:
    """What a YAML file says about a data set."""

    file: Path
    class_names: dict[int, str]
    content: dict[str, Any]
    others: list[Path] = field(default_factory=list)  # that name classes, too

    @property
    def has_keypoints(self) -> bool:
        """Whether keypoints follow the boxes in the label files."""
        return "kpt_shape" in self.content

    def places(self, split: str) -> list[Path]:
        """The folders and lists of a split; none if it is not named or does not exist at all.

        Raises:
            ValueError: only a part of it exists, or it is outside of the data set's folder.
        """
        found = {name: self._find(name) for name in self._named(split)}
        places = [place for place in found.values() if place is not None]
        if places and len(places) < len(found):
            missing = ", ".join(name for name, place in found.items() if place is None)
            raise ValueError(f"{self.file}: {split} names {missing}, which does not exist")
        return places

    def describe(self, split: str) -> str:
        """What the file says about a split that does not exist."""
        named = ", ".join(self._named(split))
        return f"is {named}, and there is no such folder or list" if named else "is not given"

    def _named(self, split: str) -> list[str]:
        content = {str(key).lower(): value for key, value in self.content.items()}
        values = [content[name] for name in names_of(split) if content.get(name)]
        named: Any = values[0] if values else []
        named = [named] if isinstance(named, str) else named
        if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
            raise ValueError(f"{self.file}: expected {split} to be a path or a list of paths")
        return named

    def _find(self, name: str) -> Path | None:
        """A path in the file, even if it starts with folders of another machine.

        Roboflow writes ../train/images for the folder train/images beside the file.
        """
        base, folder = self.file.parent, self.content.get("path") or ""
        parts = Path(name.replace("\\", "/")).parts
        folder = folder.replace("\\", "/") if isinstance(folder, str) else ""
        places = [base / folder / Path(*parts)]
        places += [base / Path(*parts[start:]) for start in range(len(parts))]
        there = [place for place in places if place.exists()]
        found = next((place for place in there if is_inside(place, base)), None)
        if found is None and there:
            raise OutsideError(there[0], base)
        return found


def find_yaml(data_dir: Path) -> YoloYaml | None:
    """The YAML file in a folder that names classes or splits, if any.

    Raises:
        ValueError: it is damaged, or its classes cannot be read.
    """
    usual = [data_dir / name for name in _USUAL_NAMES]
    others = sorted({*data_dir.glob("*.yaml"), *data_dir.glob("*.yml")} - {*usual})
    counted = None
    files = [path for path in (*usual, *others) if path.is_file()]
    for number, file in enumerate(files, start=1):
        content = _load(file)
        if isinstance(content, dict) and "names" in content:
            left = [path for path in files[number:] if _names_splits(path)]
            return YoloYaml(file, _class_names(file, content), content, left)
        if isinstance(content, dict) and "nc" in content:
            counted = counted or (file, content)  # which may be the description of a model
        elif file in usual:
            raise ValueError(f"{file}: expected the classes as names, as Ultralytics writes them")
    if counted is None:
        return None
    file, content = counted
    return YoloYaml(file, _class_names(file, content), content)


def _names_splits(file: Path) -> bool:
    """Whether a file describes a data set, too."""
    try:
        content = _load(file)
    except ValueError:
        return False
    return isinstance(content, dict) and {"names", "train"} <= content.keys()


class _Loader(yaml.BaseLoader):  # type: ignore[misc]  # yaml has no types
    """Reads every scalar as text, and refuses keys that are given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, count in Counter(keys).items():
            if count > 1:
                raise yaml.YAMLError(f"{key} is given {count} times")
        content: dict[Any, Any] = super().construct_mapping(node, deep)
        return content


def _load(file: Path) -> Any:
    """The content, with every scalar as text: a class may be named no, or 1."""
    if file.stat().st_size > LARGEST_YAML_BYTES:
        raise ValueError(f"{file}: too large for a description of a data set")
    try:
        return yaml.load(read_text(file), Loader=_Loader)
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{file}: not valid YAML: {said}") from error
    except RecursionError as error:
        raise ValueError(f"{file}: not valid YAML: {error}") from error


def _class_names(file: Path, content: dict[str, Any]) -> dict[int, str]:
    """Names by index, in order of the index."""
    count, names = content.get("nc"), content.get("names")
    if names is None and isinstance(count, str) and count.isdigit() and len(count) < 6:
        names = [f"class_{index}" for index in range(int(count))]
    if isinstance(names, list):
        names = {str(index): name for index, name in enumerate(names)}
    if not isinstance(names, dict) or not names:
        raise ValueError(
            f"{file}: expected names to be a list, or a mapping of index to name, found "
            f"{shown(names)}"
        )
    for index, name in names.items():
        if not (isinstance(index, str) and index.isascii() and index.isdigit() and len(index) < 10):
            raise ValueError(f"{file}: names has the index {index!r:.80}, expected a whole number")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{file}: expected text as the name of class {index}")
    if isinstance(count, str) and count.isdigit() and int(count) != len(names):
        raise ValueError(f"{file}: nc is {count}, but the number of names is {len(names)}")
    by_index = {int(index): names[index] for index in sorted(names, key=int)}
    if len(by_index) < len(names):
        raise ValueError(f"{file}: names has one index twice, written as {', '.join(names)}")
    return by_index
