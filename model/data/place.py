"""What a data set names: only inside of its folder, and in any spelling of accents."""

import os
import unicodedata
from pathlib import Path


class OutsideError(ValueError):
    """A data set names a file outside of its folder; says what to do."""

    def __init__(self, path: Path, data_dir: Path) -> None:
        super().__init__(
            f"{path} is outside of the data set's folder {data_dir} and was not read: move it into "
            "the folder, or name a symbolic link there (ln -s)"
        )


def folder_name(directory: Path) -> str:
    """The name of a folder, also where it is given as `.` or `..`."""
    return Path(os.path.abspath(directory)).name


def spellings(name: str) -> list[str]:
    """A name as it is, and with its accents composed and decomposed, as macOS stores them."""
    return list(dict.fromkeys([name, *(unicodedata.normalize(f, name) for f in ("NFC", "NFD"))]))


def is_inside(path: Path, data_dir: Path) -> bool:
    """Whether a path leads into a folder; a symbolic link in it may lead anywhere."""
    plain = Path(os.path.abspath(path))
    return plain.is_relative_to(os.path.abspath(data_dir)) or plain.is_relative_to(
        os.path.realpath(data_dir)
    )
