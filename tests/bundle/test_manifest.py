import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle.manifest import ClassInfo, Manifest
from bundle.model_name import is_model_name
from bundle.preprocess import Preprocess
from bundle.tensorrt_plan import Fingerprint, TensorRTPlan, default_profiles
from bundle.thresholds import OperatingPoint, Thresholds
from tests.toy_bundle import TOY_CLASSES, make_toy_bundle


@pytest.fixture
def bundle(toy_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the toy bundle that a test may damage."""
    return Path(shutil.copytree(toy_bundle, tmp_path / "toy"))


@pytest.fixture
def edit(bundle: Path) -> Callable[..., None]:
    """Change fields of the copy's manifest behind its back."""

    def edit(**fields: Any) -> None:
        path = bundle / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit


def refuse(name: str, error: OSError) -> Callable[..., Any]:
    """Path.open, which fails for files of this name."""
    really_open = Path.open

    def open_or_fail(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == name:
            raise error
        return really_open(path, *args, **kwargs)

    return open_or_fail


def test_a_saved_manifest_loads_as_it_was(tmp_path: Path) -> None:
    saved = make_toy_bundle(tmp_path / "toy")

    assert Manifest.load(tmp_path / "toy") == saved


def test_thresholds_come_back_as_they_were(bundle: Path) -> None:
    thresholds = Thresholds(
        overall=OperatingPoint(threshold=0.4, precision=0.5, recall=1),
        by_class={20: OperatingPoint(threshold=0.7, precision=1, recall=0.25)},
    )

    Manifest.load(bundle).model_copy(update={"thresholds": thresholds}).save(bundle)

    loaded = Manifest.load(bundle)
    assert loaded.thresholds == thresholds
    assert loaded.lowest_scores().tolist() == pytest.approx([0.4, 0.7, 0.4])
    assert loaded.lowest_scores(0.1).tolist() == pytest.approx([0.1] * 3)


def test_a_bundle_from_before_there_were_thresholds_starts_at_a_fixed_one(bundle: Path) -> None:
    content = json.loads((bundle / "manifest.json").read_text())
    del content["thresholds"]
    (bundle / "manifest.json").write_text(json.dumps(content))

    assert Manifest.load(bundle).lowest_scores().tolist() == pytest.approx([0.3] * 3)


def test_padding_is_not_trusted_in_a_bundle_that_does_not_say_it_may_be(bundle: Path) -> None:
    content = json.loads((bundle / "manifest.json").read_text())
    del content["batches"]
    (bundle / "manifest.json").write_text(json.dumps(content))

    assert Manifest.load(bundle).batches == "equal_shapes"


@pytest.mark.parametrize(
    ("weights", "assumed"),
    [
        ({"assumed": ["RGB", 3]}, ("RGB", "3")),
        ({"assumed": []}, ()),
        ({"assumed": "RGB"}, ()),
        ({"assumed": None}, ()),
        ({}, ()),
        (["assumed"], ()),
        ("a name", ()),
        (None, ()),
    ],
)
def test_what_was_assumed_of_the_weights_is_told_as_far_as_it_can_be_read(
    bundle: Path, edit: Callable[..., None], weights: object, assumed: tuple[str, ...]
) -> None:
    edit(provenance={"weights": weights})

    assert Manifest.load(bundle).assumed == assumed


def test_a_threshold_of_an_unknown_class_is_refused(
    bundle: Path, edit: Callable[..., None]
) -> None:
    point = {"threshold": 0.4, "precision": 0.5, "recall": 1}
    edit(thresholds={"overall": point, "by_class": {"40": point}})

    with pytest.raises(ValueError, match=r"thresholds of classes \[10, 20, 30\], got \[40\]"):
        Manifest.load(bundle)


def test_every_file_is_hashed(toy_bundle: Path) -> None:
    manifest = Manifest.load(toy_bundle)

    assert set(manifest.files) == {
        "known-answers.npz",
        "model.onnx",
        "samples/1.png",
        "weights.bin",
    }


def test_saving_again_hashes_again(bundle: Path) -> None:
    manifest = Manifest.load(bundle)
    (bundle / "weights.bin").write_bytes(b"other")

    saved = manifest.save(bundle)

    assert saved.files["weights.bin"] != manifest.files["weights.bin"]
    assert Manifest.load(bundle) == saved


def test_the_cache_of_engines_is_neither_hashed_nor_checked(bundle: Path) -> None:
    (bundle / "cache" / "kind").mkdir(parents=True)
    (bundle / "cache" / "kind" / "1.blob").write_bytes(b"compiled")

    saved = Manifest.load(bundle).save(bundle)

    assert set(saved.files) == {"known-answers.npz", "model.onnx", "samples/1.png", "weights.bin"}


def test_a_graph_computes_in_float32_unless_its_manifest_says_otherwise(
    bundle: Path, edit: Callable[..., None]
) -> None:
    assert Manifest.load(bundle).precision == "fp32"

    edit(precision="int8")

    assert Manifest.load(bundle).precision == "int8"


@pytest.fixture
def plan() -> TensorRTPlan:
    fingerprint = Fingerprint(gpu="NVIDIA L4", compute_capability="8.9", tensorrt="11.4.0.106")
    profiles = default_profiles(Preprocess(short_side=64, long_side=128, min_side=32), 4)
    return TensorRTPlan(file="model.plan", fingerprint=fingerprint, profiles=profiles)


def test_a_plan_is_a_file_of_the_bundle(bundle: Path, plan: TensorRTPlan) -> None:
    (bundle / "model.plan").write_bytes(b"plan")

    Manifest.load(bundle).model_copy(update={"tensorrt": plan}).save(bundle)

    assert Manifest.load(bundle).tensorrt == plan
    assert "model.plan" in Manifest.load(bundle).files


def test_a_plan_that_is_not_there_is_refused(bundle: Path, plan: TensorRTPlan) -> None:
    with pytest.raises(ValueError, match=r"model\.plan: .*does not have it"):
        Manifest.load(bundle).model_copy(update={"tensorrt": plan}).save(bundle)


def test_a_changed_byte_is_refused(bundle: Path) -> None:
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[-1] ^= 1
    (bundle / "model.onnx").write_bytes(content)

    with pytest.raises(ValueError, match=r"model\.onnx: expected SHA-256 .*`make export`"):
        Manifest.load(bundle)


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "weights.bin").unlink()

    with pytest.raises(ValueError, match=r"weights\.bin: .*missing.*`make export`"):
        Manifest.load(bundle)


def test_an_empty_directory_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"manifest\.json: no bundle there.*`make export`"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "\xff", '{"a": 1'])
def test_unreadable_json_is_refused(bundle: Path, content: str) -> None:
    (bundle / "manifest.json").write_text(content, encoding="latin-1")

    with pytest.raises(ValueError, match=r"manifest\.json: not valid JSON.*`make export`"):
        Manifest.load(bundle)


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", '"\\ud800"', '{"\\udfff": 1}'])
@pytest.mark.parametrize("field", ["metrics", "provenance", "classes"])
def test_what_no_answer_can_hold_is_refused(bundle: Path, field: str, value: str) -> None:
    path = bundle / "manifest.json"
    marked = json.dumps(json.loads(path.read_text()) | {field: "here"})
    path.write_text(marked.replace('"here"', f'{{"a": {value}}}'))

    with pytest.raises(ValueError, match=r"^\S+manifest\.json: not valid JSON: .*`make export`"):
        Manifest.load(bundle)


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"format_version": 2}'])
def test_another_format_version_is_refused(bundle: Path, content: str) -> None:
    (bundle / "manifest.json").write_text(content)

    with pytest.raises(
        ValueError, match=r"manifest\.json: expected format_version 3, got .*`make export`"
    ):
        Manifest.load(bundle)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("unknown_field", 1),
        ("runtime", "onnxruntime"),
        ("precision", "fp4"),
        ("variant", "other"),
        ("classes", []),
        ("classes", [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]),
        ("num_detections", 0),
        ("max_batch_size", 0),
        ("max_batch_size", 1025),
        ("preprocess", {"short_side": 0}),
        ("preprocess", {"std": [0.0, 57.0, 57.0]}),
        ("preprocess", {"longest_side": 1}),
        ("thresholds", {"overall": {"threshold": 1.5, "precision": 1, "recall": 1}}),
        ("thresholds", {"overall": {"threshold": 0.5, "precision": 1.5, "recall": 1}}),
        ("thresholds", {"overall": {"threshold": 0.5, "precision": 1, "recall": -1}}),
        ("thresholds", {"overall": {"threshold": 0.5, "precision": 1, "recall": 1}, "by": {}}),
    ],
)
def test_a_wrong_field_is_named(
    bundle: Path, edit: Callable[..., None], field: str, value: object
) -> None:
    edit(**{field: value})

    said = rf"^\S+manifest\.json: ({field}|expected distinct class ids).*; rebuild .*`make export`$"
    with pytest.raises(ValueError, match=said):
        Manifest.load(bundle)


@pytest.mark.parametrize(
    ("name", "served"),
    [
        ("my run (2)", "my-run-2"),
        ("a/../b\\c", "a-..-b-c"),
        ('"><script>alert(1)</script>', "script-alert-1-script"),
        ("one\ntwo\x1b[2J\0", "one-two-2J"),
        ("..", "model"),
        (".", "model"),
        ("", "model"),
        ("車両", "model"),
        ("x" * 10_000, "x" * 64),
        ("a.b_c-D9", "a.b_c-D9"),
        (".hidden", ".hidden"),
    ],
)
def test_the_name_of_a_model_can_stand_in_a_url(
    bundle: Path, edit: Callable[..., None], name: str, served: str
) -> None:
    edit(name=name)

    assert Manifest.load(bundle).name == served
    assert is_model_name(served)
    assert is_model_name(name) is (name == served)


def test_wrong_fields_are_shown_in_one_line(bundle: Path, edit: Callable[..., None]) -> None:
    edit(name=7, max_batch_size="many" * 100, outputs=None, a=1, b=2)

    with pytest.raises(ValueError, match=r"name: .* string, got 7; outputs: ") as caught:
        Manifest.load(bundle)

    (line,) = str(caught.value).splitlines()
    assert "max_batch_size: Input should be a valid integer" in line
    assert "got 'manymany" in line
    assert "and 2 more; rebuild the bundle" in line
    assert len(line) < len(str(bundle)) + 500


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "samples/../../secret", "", "a\\b", "a\0b"]
)
def test_a_path_never_leaves_the_bundle(bundle: Path, edit: Callable[..., None], name: str) -> None:
    (bundle.parent / "secret").write_text("secret")
    edit(files={name: "0" * 64})

    with pytest.raises(ValueError, match="outside the bundle's directory"):
        Manifest.load(bundle)


def test_a_link_never_leaves_the_bundle(bundle: Path) -> None:
    (bundle.parent / "weights.bin").write_bytes((bundle / "weights.bin").read_bytes())
    (bundle / "weights.bin").unlink()
    (bundle / "weights.bin").symlink_to(bundle.parent / "weights.bin")

    with pytest.raises(ValueError, match="outside the bundle's directory"):
        Manifest.load(bundle)


def test_a_link_to_itself_is_named(bundle: Path) -> None:
    (bundle / "weights.bin").unlink()
    (bundle / "weights.bin").symlink_to("weights.bin")

    with pytest.raises(ValueError, match=r"weights\.bin: cannot be read: .*`make export`"):
        Manifest.load(bundle)


@pytest.mark.parametrize("fields", [{"graphs": {"standard": "../x"}}, {"samples": ["other.png"]}])
def test_graphs_and_samples_are_among_the_hashed_files(
    bundle: Path, edit: Callable[..., None], fields: dict[str, Any]
) -> None:
    edit(**fields)

    with pytest.raises(ValueError, match="does not have it"):
        Manifest.load(bundle)


def test_known_answers_are_among_the_hashed_files(bundle: Path, edit: Callable[..., None]) -> None:
    files = Manifest.load(bundle).files
    edit(files={name: files[name] for name in files if name != "known-answers.npz"})

    with pytest.raises(ValueError, match=r"known-answers\.npz: .*does not have it"):
        Manifest.load(bundle)


def test_saving_without_the_graph_writes_nothing(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(ValueError, match=r"model\.onnx.*does not have it"):
        Manifest.load(bundle).save(tmp_path / "empty")

    assert list((tmp_path / "empty").iterdir()) == []


def test_a_manifest_cannot_be_changed(toy_bundle: Path) -> None:
    manifest = Manifest.load(toy_bundle)

    with pytest.raises(ValueError, match="frozen"):
        manifest.classes = (ClassInfo(id=1, name="other"),)  # type: ignore[misc]

    assert manifest.classes == TOY_CLASSES


@pytest.mark.parametrize("name", ["manifest.json", "weights.bin"])
def test_a_pipe_in_place_of_a_file_is_named_and_not_waited_for(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    os.mkfifo(bundle / name)

    with pytest.raises(ValueError, match=rf"{name}: cannot be read: it is a named pipe, not a"):
        Manifest.load(bundle)


@pytest.mark.parametrize("name", ["manifest.json", "weights.bin"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied; let the user"),
        (OSError(errno.EIO, "Input/output error"), "cannot be read: Input/output error"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: OSError, said: str
) -> None:
    monkeypatch.setattr(Path, "open", refuse(name, error))

    with pytest.raises(ValueError, match=rf"{name}: {said}"):
        Manifest.load(bundle)
