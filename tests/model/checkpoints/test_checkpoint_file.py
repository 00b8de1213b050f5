"""Checkpoints: they load as they were saved, and what does not fit is refused by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from bundle.manifest import ClassInfo
from bundle.thresholds import OperatingPoint, Thresholds
from model.checkpoint import main
from model.checkpoints.checkpoint_file import (
    METADATA_KEY,
    Checkpoint,
    build_model,
    first_mismatch,
    load_checkpoint,
    load_for_finetuning,
    save_checkpoint,
    write_checkpoint,
    write_tensors,
    write_whole,
)
from model.config import ModelConfig, TrainConfig, Variant
from model.configs import CONFIGS, tiny
from model.network.deformable_detr import DeformableDetr


def _classes(count: int) -> tuple[ClassInfo, ...]:
    return tuple(ClassInfo(id=10 * i + 1, name=f"thing {i}") for i in range(count))


def _model(**sizes: Any) -> DeformableDetr:
    return DeformableDetr(replace(tiny().model, **sizes))


def _save(path: Path, model: DeformableDetr) -> None:
    config = replace(tiny(), model=model.config)
    classes = _classes(model.config.num_classes)
    save_checkpoint(
        path, model, config=config, classes=classes, provenance={"seed": 7}, metrics={"AP": 0.25}
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of the tiny model."""
    path = tmp_path / "tiny.safetensors"
    _save(path, _model())
    return path


def _rewrite(path: Path, change: dict[str, Any]) -> None:
    """Puts other values into the header."""
    checkpoint = load_checkpoint(path)
    header = json.dumps(checkpoint.header() | change)
    path.write_bytes(safetensors.torch.save(checkpoint.state_dict, {METADATA_KEY: header}))


@pytest.mark.parametrize("config", [make() for make in CONFIGS.values()], ids=CONFIGS)
def test_every_configuration_comes_back_equal(tmp_path: Path, config: TrainConfig) -> None:
    path = tmp_path / "empty.safetensors"

    write_checkpoint(Checkpoint(path, config, _classes(config.model.num_classes), {}, {}, {}), path)

    assert load_checkpoint(path).config == config


def test_thresholds_come_back(saved: Path) -> None:
    point = OperatingPoint(threshold=0.4, precision=0.5, recall=1)
    thresholds = Thresholds(overall=point, by_class={1: point})

    write_checkpoint(replace(load_checkpoint(saved), thresholds=thresholds), saved)

    assert load_checkpoint(saved).thresholds == thresholds


def test_a_checkpoint_from_before_there_were_thresholds_has_none(saved: Path) -> None:
    checkpoint = load_checkpoint(saved)
    header = checkpoint.header()
    del header["thresholds"]
    metadata = {METADATA_KEY: json.dumps(header)}
    saved.write_bytes(safetensors.torch.save(checkpoint.state_dict, metadata))

    assert load_checkpoint(saved).thresholds is None


def test_a_loaded_model_detects_what_the_saved_one_did(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tiny.safetensors"
    model = _model(variant=Variant.TWO_STAGE, query_content="memory").eval()
    images, padding_mask = torch.rand(1, 3, 64, 80), torch.zeros(1, 64, 80, dtype=torch.bool)

    _save(path, model)
    checkpoint = load_checkpoint(path)
    loaded = build_model(checkpoint)

    assert not loaded.training
    assert checkpoint.classes == _classes(3)
    assert (checkpoint.provenance, checkpoint.metrics) == ({"seed": 7}, {"AP": 0.25})
    expected, found = model(images, padding_mask), loaded(images, padding_mask)
    torch.testing.assert_close(found["pred_boxes"], expected["pred_boxes"], rtol=0, atol=0)
    torch.testing.assert_close(found["pred_logits"], expected["pred_logits"], rtol=0, atol=0)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_half_written(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    path.write_bytes(b"the old one")

    with pytest.raises(OSError, match=r"cannot write .*: free 1 MB .* unchanged"):
        _save(path, _model())

    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_has_the_ending_of_its_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.safetensors, got .*model\.pth"):
        _save(tmp_path / "model.pth", _model())


def test_there_is_a_name_for_every_class(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has num_classes=3, but the number of class names is 2"):
        Checkpoint(tmp_path / "x.safetensors", tiny(), _classes(2), {}, {}, {})


def test_a_missing_checkpoint_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="make train or make weights"):
        load_checkpoint(tmp_path / "none.safetensors")


@pytest.mark.parametrize("content", [b"PK\x03\x04 a pickle of torch", b"\xff" * 100])
def test_a_file_of_another_kind_is_named_with_the_command_that_reads_it(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)

    with pytest.raises(
        ValueError, match=r"not a complete safetensors file.*model\.checkpoint conv"
    ):
        load_checkpoint(path)


def test_a_truncated_checkpoint_is_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-100])

    with pytest.raises(ValueError, match="not a complete safetensors file"):
        load_checkpoint(saved)


def test_a_safetensors_file_of_another_project_is_to_be_converted(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, path, {"format": "pt"})

    with pytest.raises(ValueError, match=r"another project; python -m model\.checkpoint convert"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format version 2, this code reads 1"),
        ({"config": {"name": "x", "glow": 1}}, "does not know: config.glow"),
        ({"config": {"name": "x", "model": {"glow": 1}}}, "does not know: config.model.glow"),
        ({"config": {"name": "x", "epochs": "many"}}, "not valid: config.epochs: "),
        ({"config": {"name": "x", "epochs": 0}}, "epochs must be at least 1"),
        ({"config": None}, "not valid: config: "),
        ({"classes": [{"id": 1}]}, "not valid: classes.0.name: "),
        ({"classes": []}, "has num_classes=3, but the number of class names is 0"),
        ({"metrics": None}, "not valid: metrics: "),
    ],
)
def test_a_header_that_does_not_fit_is_refused_with_its_fault(
    saved: Path, change: dict[str, Any], message: str
) -> None:
    _rewrite(saved, change)

    with pytest.raises(ValueError, match=message):
        load_checkpoint(saved)


def test_a_header_from_before_there_was_a_choice_of_padding_is_of_published_training(
    saved: Path,
) -> None:
    config = load_checkpoint(saved).header()["config"]
    del config["model"]["train_padding"]
    _rewrite(saved, {"config": config})

    assert tiny().model.train_padding == "exact"
    assert load_checkpoint(saved).config.model.train_padding == "published"


def test_a_header_that_is_not_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors.torch.save({"x": torch.zeros(1)}, {METADATA_KEY: "{"}))

    with pytest.raises(ValueError, match="header is damaged"):
        load_checkpoint(path)


def test_a_checkpoint_of_another_model_names_its_first_wrong_tensor(saved: Path) -> None:
    checkpoint = load_checkpoint(saved)
    other = replace(checkpoint.config, model=replace(checkpoint.config.model, ffn_dim=48))

    with pytest.raises(
        ValueError, match=r"does not hold the model.*linear1\.weight has shape.*expected \(48"
    ):
        build_model(replace(checkpoint, config=other))


def test_the_first_mismatch_is_named() -> None:
    expected = {"a": torch.zeros(2), "b": torch.zeros(3)}

    assert first_mismatch(expected, dict(expected)) is None
    assert first_mismatch(expected, {"a": torch.zeros(2)}) == "tensor b (3,) is missing"
    assert first_mismatch(expected, expected | {"c": torch.zeros(1)}) == "tensor c is left over"
    assert (
        first_mismatch(expected, {"a": torch.zeros(2, 1), "b": torch.zeros(3)})
        == "tensor a has shape (2, 1), expected (2,)"
    )


@pytest.mark.parametrize("variant", list(Variant))
def test_finetuning_keeps_all_but_the_class_heads_of_another_count(
    tmp_path: Path, variant: Variant
) -> None:
    path = tmp_path / "start.safetensors"
    start = _model(variant=variant)
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.add_(1.0)
    _save(path, start)
    model = _model(variant=variant, num_classes=5)

    report = load_for_finetuning(path, model)

    old, new = start.state_dict(), model.state_dict()
    class_heads = {name for name in new if "class_head" in name}
    assert all(torch.equal(new[name], old[name]) for name in new.keys() - class_heads)
    biases = [new[name] for name in class_heads if name.endswith("bias")]
    assert len(biases) == {"base": 1, "refine": 2, "two_stage": 3}[variant]
    assert all(torch.equal(bias, torch.full((5,), -4.59512)) for bias in biases)
    assert f"{len(class_heads)} tensors of the class heads reset for num_classes=5" in report[1]


def test_finetuning_on_as_many_classes_keeps_the_heads_and_says_so(saved: Path) -> None:
    model = _model()

    report = load_for_finetuning(saved, model)

    assert first_mismatch(model.state_dict(), load_checkpoint(saved).state_dict) is None
    assert "class heads kept, trained on 3 classes: thing 0, thing 1, thing 2" in report[1]


RECIPE = {"query_content": "learned", "denoising_queries": 8, "one_to_many_queries": 5}


@pytest.mark.parametrize(("before", "after"), [({}, RECIPE), (RECIPE, {})], ids=["with", "without"])
def test_finetuning_may_begin_or_leave_a_recipe(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any]
) -> None:
    start, model = (_model(variant=Variant.TWO_STAGE, **recipe) for recipe in (before, after))
    _save(tmp_path / "start.safetensors", start)

    report = load_for_finetuning(tmp_path / "start.safetensors", model)

    old, new = start.state_dict(), model.state_dict()
    common = old.keys() & new.keys()
    assert all(torch.equal(new[name], old[name]) for name in common)
    tables = {"queries.content.weight", "queries.label_content.weight"}
    assert old.keys() ^ new.keys() == tables
    assert any("start at random" in line for line in report) is bool(after)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"variant": Variant.REFINE}, r"class_heads\.1\.weight.*missing.*variant base"),
        ({"ffn_dim": 48}, r"linear1\.weight has shape.*ffn_dim \d+ \(the config has 48\)"),
        ({"input_proj_bias": True}, r"input_proj\.0\.conv\.bias.*missing.*input_proj_bias False"),
        ({"num_heads": 1, "num_points": 4}, "attention heads differ.*num_heads 2"),
    ],
)
def test_finetuning_refuses_a_model_of_other_sizes(
    saved: Path, sizes: dict[str, Any], message: str
) -> None:
    model = DeformableDetr(ModelConfig(**(vars(tiny().model) | sizes)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    with pytest.raises(ValueError, match=message):
        load_for_finetuning(saved, model)

    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())


def test_show_opens_with_accuracy_and_has_tensors_on_request(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["show", str(saved)])
    short = capsys.readouterr().out
    main(["show", str(saved), "--tensors"])
    long = capsys.readouterr().out

    title, accuracy, *_ = short.splitlines()
    assert title == f"{saved}: config tiny, base, classes: 3"
    assert accuracy == "AP 0.250"
    assert "     1 -> 11 -> thing 1\n" in short
    assert "\n  model.num_queries=10\n" in short
    assert "\n  augment.short_sides=64,80,96\n" in short
    assert "\n  ema_decay=none\n" in short
    assert "\nprovenance\n  seed=7\n" in short
    assert "level_embed" not in short
    assert "; --tensors lists them" in short
    assert "level_embed" in long


def test_a_fault_on_the_command_line_is_one_line_and_status_1(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: .*none\.pth: no such file"):
        main(["convert", str(tmp_path / "none.pth"), str(tmp_path / "x.safetensors")])


def test_tensors_that_share_memory_are_each_written(tmp_path: Path) -> None:
    rows = torch.arange(6.0).reshape(3, 2)
    tensors = {"whole": rows, "again": rows, "row": rows[1], "column": rows[:, 1]}

    write_tensors(tmp_path / "x.safetensors", tensors, metadata={})

    found = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_place_that_is_not_writable_is_not_called_full(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(OSError, match=r"cannot write .*: make its directory writable or choose"):
        write_whole(tmp_path / "file" / "name", b"")
