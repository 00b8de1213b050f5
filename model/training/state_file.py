"""The file that a run continues from; the state before it is kept, in case it is damaged."""

import io
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.checkpoints.checkpoint_file import write_whole
from model.training.fingerprint import (
    BATCH_FIELDS,
    LENGTHS,
    comparable,
    differences,
    effective_batch,
    splits_of_other_images,
)
from model.training.memory import is_out_of_memory
from model.training.run_directory import LAST
from model.training.training_state import TrainingState

FORMAT_VERSION = 2
log = logging.getLogger(__name__)


@dataclass
class StateFile:
    """OUT/last.training.pt, as one process writes it.

    At every moment, this file or the one before it is a whole state under its own name.

    Attributes:
        is_whole: whether this process has read or written the file. Otherwise it may be damaged,
            and does not replace the one before.
    """

    path: Path
    is_whole: bool = False

    def write(self, state: TrainingState, fingerprint: dict[str, Any]) -> None:
        """Write a state atomically, and keep the one before as `previous`.

        If the disk is full, raises OSError and leaves existing files intact.
        """
        content = io.BytesIO()  # torch's own writer aborts on a full disk; plain writing raises
        saved = {
            "format_version": FORMAT_VERSION, **state.content(), "fingerprint": fingerprint
        }  # fmt: skip
        torch.save(saved, content)
        new = self.path.with_name(f"new.{self.path.name}")
        write_whole(new, content.getvalue())
        if self.is_whole and self.path.exists():
            self.path.replace(previous(self.path))
        new.replace(self.path)
        self.is_whole = True


class DamagedState(ValueError):
    """A file is damaged or not a training state."""


def previous(path: Path) -> Path:
    """The file that keeps the state before the one in `path`."""
    return path.with_name(f"previous.{path.name.removeprefix('last.')}")


def read_last_state(
    path: Path, fingerprint: dict[str, Any]
) -> tuple[Path, dict[str, Any]] | tuple[None, None]:
    """Read the training state in `path`, or the one before if that is damaged.

    Returns:
        The file that was read, and its content; None if there is neither.

    Raises:
        DamagedState: neither can be used.
        ValueError, OSError, MemoryError: as `read_training_state`.
    """
    older = previous(path)
    if not path.exists() and not older.exists():
        return None, None
    try:
        return path, read_training_state(path, fingerprint)
    except DamagedState as error:
        damage = str(error)
    if older.exists():
        try:
            saved = read_training_state(older, fingerprint)
        except DamagedState as error:
            damage += f", and {error}"
        else:
            log.warning("%s; continuing from the state before it, %s", damage, older)
            return older, saved
    raise DamagedState(f"{damage}; {_start_over(path)}")


def read_training_state(path: Path, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """The content of a state file that this run may continue.

    A run may be made longer (more epochs or minutes) or get a limit of minutes, the same data may
    be renamed, and batch_size=auto continues with the size that was chosen.

    Raises:
        DamagedState: no such file, or not a training state.
        ValueError: of another version, or saved by a run with another configuration or data set;
            names what differs.
        OSError, MemoryError: the file cannot be read now; it may be whole.
    """
    if not path.is_file():
        raise DamagedState(f"there is no {path} to resume from; RESUME=auto (--resume) starts over")
    saved = _read(path)
    if saved["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format {saved['format_version']}, this version reads {FORMAT_VERSION}: "
            f"continue with the version that wrote it, or {_start_over(path)}"
        )
    _require_same_run(path, comparable(saved["fingerprint"]), fingerprint)
    if splits := splits_of_other_images(saved["fingerprint"], fingerprint):
        log.warning(
            "image files of %s have changed since %s was saved: the run continues with those of "
            "now; another OUT= (--out) trains on them from the start",
            *(" and ".join(splits), path),
        )
    return saved


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not verify its checksums
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"wrong checksum of {damaged}")
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        _ = saved["format_version"], saved["fingerprint"]
    except OSError as error:
        raise OSError(error.errno, f"cannot read {path} ({error.strerror or error})") from error
    except Exception as error:  # torch raises half a dozen types on a file it cannot read
        if is_out_of_memory(error):
            raise
        raise DamagedState(
            f"{path} is damaged or not a training state ({type(error).__name__}: {error})"
        ) from error
    return saved


def _start_over(path: Path) -> str:
    checkpoint = path.with_name(LAST)
    start = f" from INIT={checkpoint} (--init)" if checkpoint.exists() else ""
    return f"start over{start} with another OUT= (--out)"


def _require_same_run(path: Path, before: dict[str, Any], fingerprint: dict[str, Any]) -> None:
    now = comparable(fingerprint)
    for length in LENGTHS:
        ours, theirs = now["config"][length], before["config"].get(length)
        if ours is not None and (theirs is None or ours > theirs):
            log.info(
                "%s %s instead of %s: learning rates are those of a run of this length from now on",
                *(ours, length, "no limit" if theirs is None else theirs),
            )
            before["config"][length] = ours
    if fingerprint["config"]["fit_batch"] and effective_batch(before) == effective_batch(now):
        now["config"] |= {name: before["config"][name] for name in BATCH_FIELDS}
    if lines := differences(before, now):
        raise ValueError(
            f"{path} was saved by another run and cannot be continued by this one:\n  "
            + "\n  ".join(lines)
            + "\ngo back to the saved values, or start over with another OUT= (--out)"
        )
