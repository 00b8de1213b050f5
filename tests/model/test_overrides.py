"""Settings given by name, on the command line or in a TOML file."""

from pathlib import Path

import pytest

from model.config import Variant
from model.overrides import load_config


def test_settings_are_typed_by_the_fields_of_the_configuration() -> None:
    config, changes = load_config(
        "small", ["epochs=30 learning_rate=1e-4", "model.num_queries=100 model.variant=refine "
                  "model.query_content=position augment.short_sides=200, 240 ema_decay=none "
                  "model.train_batch_norm=false preprocess.short_side=200"]
    )  # fmt: skip

    assert config.epochs == 30
    assert config.learning_rate == 1e-4
    assert config.model.num_queries == 100
    assert config.model.variant is Variant.REFINE
    assert config.model.train_batch_norm is False
    assert config.augment is not None
    assert config.augment.short_sides == (200, 240)
    assert config.ema_decay is None
    assert config.preprocess.short_side == 200
    assert "epochs 50 -> 30" in changes
    assert "model.num_queries 60 -> 100" in changes
    assert "augment.short_sides 208,224,240,256,272 -> 200,240" in changes
    assert "ema_decay 0.99 -> none" in changes
    assert len(changes) == 9


def test_a_configuration_is_as_it_is_where_nothing_is_set() -> None:
    config, changes = load_config("small", ["epochs=50"])

    assert config == load_config("small")[0]
    assert changes == []


def test_a_batch_that_fits_is_asked_for_by_a_word() -> None:
    config, changes = load_config("small", ["batch_size=auto"])

    assert config.fit_batch
    assert changes == ["batch_size 8 -> auto"]


def test_a_whole_group_may_be_left_out_or_begun() -> None:
    without, changes = load_config("small", ["augment=none"])
    begun, _ = load_config("demo", ["augment.crop_min=100"])

    assert without.augment is None
    assert changes[0].startswith("augment (flip_probability 0.5, vertical_flip_probability 0.0, ")
    assert "short_sides 208,224" in changes[0]
    assert begun.augment is not None
    assert (begun.augment.crop_min, begun.augment.crop_max) == (100, 600)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("epoch=3", "unknown setting 'epoch'; did you mean one of: epochs"),
        ("num_queries=3", "unknown setting 'num_queries'; did you mean one of: model.num_queries"),
        ("modl.dropout=0", "did you mean one of: model.dropout"),
        ("model.drop=0", "did you mean one of: model.dropout"),
        ("loss.x=0", "did you mean one of: loss.class_weight, loss.box_weight"),
        ("epochs.x=3", "unknown setting 'epochs.x'; did you mean one of: epochs"),
        ("x.y=3", "did you mean one of: name, model, loss, preprocess"),
        ("epochs=many", "epochs: expected a whole number, got 'many'"),
        ("epochs=true", "epochs: expected a whole number, got 'true'"),
        ("epochs=none", "epochs: expected a whole number, got 'none'"),
        ("epochs=", "epochs: expected a whole number, got ''"),
        ("epochs=0", "epochs must be at least 1, got 0"),
        ("seed=4294967296", "seed: expected a whole number below 2^32, got 4294967296"),
        ("num_threads=two", "num_threads: expected a whole number or none, got 'two'"),
        ("learning_rate=nan", "learning_rate: expected a number, got 'nan'"),
        ("learning_rate=-1", "learning_rate must be positive, got -1"),
        ("batch_size=aut", "batch_size: expected a whole number or auto, got 'aut'"),
        ("schedule=linear", "schedule: expected step or cosine, got 'linear'"),
        ("model.variant=three", "model.variant: expected base, refine or two_stage, got 'three'"),
        ("model.train_batch_norm=maybe", "expected true or false, got 'maybe'"),
        ("model.backbone_blocks=1,2", "4 of them, like 1,2,3,4, got '1,2'"),
        ("augment.short_sides=big", "a whole number or more with commas"),
        ("augment.short_sides=", "short_sides must name at least one size"),
        ("augment.flip_probability=2", "flip_probability must be between 0 and 1, got 2.0"),
        ("preprocess.short_side=0", "preprocess.short_side: Input should be greater than"),
        (
            "model.num_queries=99999999999999999999",
            "model.num_queries: expected a whole number bel",
        ),
        ("augment.short_sides=9,4294967296", "augment.short_sides: expected a whole number below"),
        ("seed=99999999999999999999", "seed: expected a whole number below 2^32, got 9999999999"),
        ("loss.class_weight=0 loss.box_weight=0 loss.giou_weight=0", "nothing would be learned"),
        ("num_threads=100000", "num_threads must be at most 1024, got 100000"),
        ("num_workers=100000", "num_workers must be at most 1024, got 100000"),
        ("lr_drop_epochs=0", "lr_drop_epochs must be at least 1, got 0"),
        ("lr_drop_epochs=8,-1", "lr_drop_epochs must be at least 1, got 8, -1"),
        ("augment.short_sides=none", "short_sides must name at least one size"),
        ("preprocess.mean=1,2", "3 of them, like 1,2,3, got '1,2'"),
        ("preprocess.std=0,0,0", "preprocess.std: expected three numbers of at least 1, got 0, 0"),
        ("model=small", "model: expected its settings one by one, such as model.variant=VALUE"),
        ("augment=none augment.crop_min=3", "augment is set both as a whole and in part"),
        ("model.num_classes=5", "model.num_classes: the classes of the data set decide it"),
        ("epoch_images=5", "epoch_images needs dataset='digits'"),
        ("epochs 3", "expected SET='FIELD=VALUE' (--set), got 'epochs 3'"),
    ],
)
def test_what_cannot_be_set_is_answered_with_what_can(assignment: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_config("small", [assignment])

    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["freeze", "lr_drop_epochs"])
def test_none_is_an_empty_list(field: str) -> None:
    config, _ = load_config("finetune", [f"{field}=none"])

    assert getattr(config, field) == ()


def test_a_toml_file_of_windows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "night.toml"
    path.write_bytes(b'\xef\xbb\xbfbase = "small"\r\nepochs = 3\r\n')

    assert load_config(str(path))[0].epochs == 3


def test_a_folder_is_no_toml_file(tmp_path: Path) -> None:
    (tmp_path / "night.toml").mkdir()

    with pytest.raises(ValueError, match=r"night\.toml: cannot be read: Is a directory"):
        load_config(str(tmp_path / "night.toml"))


def test_a_toml_file_changes_the_configuration_that_it_names(tmp_path: Path) -> None:
    path = tmp_path / "night.toml"
    path.write_text(
        'base = "small"\nepochs = 30\nema_decay = "none"\n\n[model]\nnum_queries = 100\n'
        "train_batch_norm = false\n\n[augment]\nshort_sides = [200, 240]\n"
    )

    config, changes = load_config(str(path), ["epochs=5"])

    assert config.name == "night"
    assert config.epochs == 5
    assert config.ema_decay is None
    assert config.model.num_queries == 100
    assert config.model.train_batch_norm is False
    assert config.augment is not None
    assert config.augment.short_sides == (200, 240)
    assert config.backbone_init == "random"
    assert "epochs 50 -> 5" in changes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epochs = 3", 'base, the configuration that it changes, is missing; write for example'),
        ('base = "smal"', "is 'smal'; write for example base = \"small\""),
        ("base = [1]", "is [1]; write"),
        ("epochs = ", "is not a TOML file: "),
        ('base = "small"\nepochs = 2.5', "night.toml: epochs: expected a whole number, got '2.5'"),
        ('base = "small"\nepochs = 1979-05-27', "expected a whole number, got '1979-05-27'"),
        ('base = "small"\n[modl]\ndropout = 0', "did you mean one of: model.dropout"),
        ('base = "small"\n[epochs]\nx = 0', "unknown setting 'epochs.x'"),
    ],
)  # fmt: skip
def test_a_toml_file_that_is_none_says_what_is_wrong(
    content: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "night.toml"
    path.write_text(content)

    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_config(str(path))

    assert str(path) in str(error.value)
    assert message in str(error.value)
