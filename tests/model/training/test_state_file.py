"""The file that a run resumes from, and the one before it."""

import errno
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.configs import base, demo, tiny
from model.network.deformable_detr import DeformableDetr
from model.training.fingerprint import run_fingerprint
from model.training.run_directory import LAST, STATE_FILE
from model.training.state_file import StateFile, previous, read_last_state, read_training_state
from model.training.training_state import TrainingState
from tests.model.runs import PowerCut

SUMMARY = {"classes": ["cat", "dog"], "train_images": 3}
FINGERPRINT = run_fingerprint(tiny(), SUMMARY)


def test_a_full_disk_leaves_the_state_of_before(tmp_path: Path, request) -> None:
    config = tiny()
    fingerprint = run_fingerprint(config, SUMMARY)
    state = TrainingState.start(DeformableDetr(config.model), config)
    path = tmp_path / "last.training.pt"
    StateFile(path).write(state, fingerprint)
    before = path.read_bytes()
    request.getfixturevalue("full_disk")
    state.progress.step = 5

    with pytest.raises(OSError, match=r"cannot write .*last\.training\.pt") as error:
        StateFile(path).write(state, fingerprint)

    assert "existing file of that name is unchanged" in str(error.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    config = demo()
    fingerprint = run_fingerprint(config, SUMMARY)
    state = TrainingState.start(DeformableDetr(config.model), config)
    state.progress.best_value = 0.5
    state.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)  # as of a run in float16
    StateFile(tmp_path / "state.pt").write(state, fingerprint)

    other = TrainingState.start(DeformableDetr(config.model), config)
    other.scaler = torch.amp.GradScaler("cpu")
    other.restore(read_training_state(tmp_path / "state.pt", fingerprint))

    assert other.progress == state.progress
    assert other.scaler.get_scale() == 256
    for name, tensor in state.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], tensor)


@pytest.mark.parametrize("config", [base(), demo(), tiny()])
def test_a_fingerprint_is_plain_and_compares(config, tmp_path: Path) -> None:
    fingerprint = run_fingerprint(config, SUMMARY)
    torch.save(fingerprint, tmp_path / "fingerprint.pt")

    assert torch.load(tmp_path / "fingerprint.pt", weights_only=True) == fingerprint
    assert fingerprint["config"]["model"]["variant"] == config.model.variant.value


@pytest.mark.parametrize("changes", [{}, {"tf32": True}], ids=["default", "changed"])
def test_a_setting_that_a_saved_run_did_not_know_had_its_default(
    tmp_path: Path, changes: dict
) -> None:
    config = tiny()
    state = TrainingState.start(DeformableDetr(config.model), config)
    old = run_fingerprint(config, SUMMARY)
    del old["config"]["tf32"], old["config"]["model"]["denoising_queries"]
    StateFile(tmp_path / "state.pt").write(state, old)
    now = run_fingerprint(replace(config, **changes), SUMMARY)

    with (
        pytest.raises(ValueError, match="tf32: False saved, True now") if changes else nullcontext()
    ):
        read_training_state(tmp_path / "state.pt", now)


@pytest.mark.parametrize("num_renames", [0, 1, 2])
def test_wherever_a_save_ends_a_whole_state_is_left(
    num_renames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / STATE_FILE
    config = tiny()
    fingerprint = run_fingerprint(config, SUMMARY)
    state = TrainingState.start(DeformableDetr(config.model), config)
    file = StateFile(path)
    for step in (1, 2):
        state.progress.step = step
        file.write(state, fingerprint)
    path.write_bytes(b"damaged")
    state.progress.step = 3
    renames = iter([Path.replace] * num_renames)

    def replace_until_the_cut(source: Path, target: Path) -> Path:
        rename = next(renames, None)
        if rename is None:
            raise PowerCut
        return rename(source, target)

    with monkeypatch.context() as patch, suppress(PowerCut):
        patch.setattr(Path, "replace", replace_until_the_cut)
        StateFile(path).write(state, fingerprint)
    _, saved = read_last_state(path, fingerprint)

    assert saved is not None
    assert saved["progress"]["step"] == (1 if num_renames < 2 else 3)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.EIO, "Input/output error"),
            r"cannot read .*pt \(Input/output",
        ),
        (PermissionError(errno.EACCES, "Permission denied"), r"cannot read .*Permission denied"),
        (MemoryError("1 GB"), "1 GB"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "can't allocate memory"),
    ],
)
def test_a_state_that_cannot_be_read_for_now_is_not_called_damaged(
    error: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    path = tmp_path / STATE_FILE
    for place in (path, previous(path)):
        StateFile(place).write(small_state(), FINGERPRINT)
    monkeypatch.setattr(torch, "load", fail)

    with pytest.raises(type(error), match=message):
        read_last_state(path, FINGERPRINT)


def test_two_damaged_states_come_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / STATE_FILE
    for place in (path, previous(path), tmp_path / LAST):
        place.write_bytes(b"damaged")

    with pytest.raises(ValueError, match=r"last.* is damaged.*, and .*previous") as error:
        read_last_state(path, FINGERPRINT)

    start = f"start over from INIT={tmp_path / LAST} (--init) with another OUT= (--out)"
    assert start in str(error.value)


def test_a_state_of_another_version_comes_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / STATE_FILE
    torch.save({"format_version": 1, "fingerprint": FINGERPRINT}, path)

    with pytest.raises(ValueError, match=r"has format 1, .*that wrote it, or start over"):
        read_last_state(path, FINGERPRINT)


def small_state() -> TrainingState:
    config = tiny()
    return TrainingState.start(DeformableDetr(config.model), config)
