"""What the targets pass to the commands, whatever characters a path contains."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^([a-z-]+):.*?## ", MAKEFILE, flags=re.M)
STAMPS = (".venv/service.stamp", ".venv/full.stamp", "build/plugins.stamp", "build/serving.stamp")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., list[str]]:
    """Run a target with a python that prints DETR_BUNDLE and its arguments, one a line."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$DETR_BUNDLE" "$@"\n')
    python.chmod(0o755)

    def make(*words: str, silently: bool = True) -> list[str]:
        old = [option for stamp in STAMPS for option in ("-o", stamp)]
        done = subprocess.run(
            ["make", *["--silent"] * silently, *old, f"BIN={tmp_path}", *words],
            cwd=ROOT,
            env={"PATH": "/usr/bin:/bin", "HOME": "/nobody"},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()

    return make


def test_make_plugins_looks_for_compilers_even_if_nothing_has_changed(
    make: Callable[..., list[str]],
) -> None:
    words = make("plugins")

    assert words[1:] == ["-m", "plugins.build"]


def test_kernels_are_compiled_before_a_target_that_has_variables(
    make: Callable[..., list[str]], tmp_path: Path
) -> None:
    words = make("train", "DATA=d", f"NATIVE={tmp_path}/build/plugins.stamp")

    assert words == ["", "-m", "plugins.build", "", "-m", "model.train", "--data", "d"]


def test_torchrun_starts_several_processes(make: Callable[..., list[str]], tmp_path: Path) -> None:
    shutil.copy(tmp_path / "python", tmp_path / "torchrun")

    words = make("train", "PROCESSES=2", "DATA=d")

    launcher = ["--standalone", "--nproc-per-node", "2"]
    assert words == ["", *launcher, "-m", "model.train", "--data", "d"]


def test_serving_waits_only_for_what_it_needs(
    make: Callable[..., list[str]], tmp_path: Path
) -> None:
    words = make("detect", "PATHS=p", f"SERVING={tmp_path}/build/serving.stamp")

    assert words == ["", "-m", "plugins.build", "--to-serve", "", "-m", "service.detect", "p"]


def test_what_is_installed_first_does_not_mind_the_variables_of_a_target(
    make: Callable[..., list[str]], tmp_path: Path
) -> None:
    shutil.copy(tmp_path / "python", tmp_path / "pip")
    (tmp_path / "pip.stamp").touch()

    words = make("bench-gpu", "ARGS=it", f"VENV={tmp_path}", f"NATIVE={tmp_path}/plugins.stamp")

    assert words[-3:] == ["-m", "benchmarks.bench_gpu", "it"]
    assert {"service", "headers", "dev", "plugins.build"} <= set(words)


def test_one_path_may_have_spaces(make: Callable[..., list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "my  photo's"
    folder.mkdir()

    words = make("detect", f"PATHS={folder}", "OUT=my results.json", "ANNOTATIONS=it's.json")

    assert words[1:] == [
        *("-m", "service.detect", str(folder)),
        *("--out", "my results.json", "--annotations", "it's.json"),
    ]


def test_without_paths_the_variable_is_named(make: Callable[..., list[str]]) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        make("detect")

    assert "give PATHS=, images or folders" in caught.value.stderr
    assert make("detect", "ARGS=--help")[1:] == ["-m", "service.detect", "--help"]


def test_several_paths_are_words_that_may_be_quoted_or_have_wildcards(
    make: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.jpg").touch()

    words = make("detect", f"PATHS='my photos' {tmp_path}/*.jpg")

    assert words[3:] == ["my photos", f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["serve", "BUNDLE=my bundle"], ["my bundle", "-m", "service"]),
        (["train", "DATA=my data"], ["", "-m", "model.train", "--data", "my data"]),
        (
            ["train", "SET=epochs=3 model.dropout=0"],
            ["", "-m", "model.train", "--set", "epochs=3 model.dropout=0"],
        ),
        (["train", "VAL_FRACTION=0.1"], ["", "-m", "model.train", "--val-fraction", "0.1"]),
        (["train", "DATA=~/my data"], ["", "-m", "model.train", "--data", "/nobody/my data"]),
        (
            ["export", "CHECKPOINT=my run/best.safetensors", "BUNDLE=my bundle", "SHAPES=1 2"],
            [
                *("", "-m", "export", "my run/best.safetensors", "--out", "my bundle"),
                *("--shapes", "1", "2"),
            ],
        ),
        (
            ["export", "CHECKPOINT=a", "BUNDLE=b", "PRECISION=fp32,int8"],
            ["", "-m", "export", "a", "--out", "b", "--precision", "fp32,int8"],
        ),
        (
            ["report", "DATA=my data", "OUT=my page.html"],
            ["", "-m", "model.data.check", "my data", "--report", "my page.html"],
        ),
        (["report", "DATA=d"], ["", "-m", "model.data.check", "d", "--report", "runs/data.html"]),
        (
            ["report", "BUNDLE=my bundle", "DATA=my data"],
            [
                *("", "-m", "export.evaluate", "--bundle", "my bundle", "--data", "my data"),
                *("--report", "runs/report.html"),
            ],
        ),
        (
            ["evaluate", "BUNDLE=my bundle"],
            ["", "-m", "export.evaluate", "--bundle", "my bundle"],
        ),
        (
            ["evaluate", "CHECKPOINT=my best.safetensors"],
            ["", "-m", "model.evaluate", "--checkpoint", "my best.safetensors"],
        ),
    ],
)
def test_a_path_with_spaces_stays_one(
    make: Callable[..., list[str]], words: list[str], expected: list[str]
) -> None:
    assert make(*words) == expected


def test_serving_a_variant_serves_the_bundle_that_is_made_of_it(
    make: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "python").write_text(
        """#!/bin/sh
case "$*" in
    "-m export.published refine --format mmdet3") echo "my bundle" ;;
    *) printf "%s\\n" "$DETR_BUNDLE" "$@" ;;
esac
"""
    )

    words = make("serve", "VARIANT=refine", "FORMAT=mmdet3")

    assert words == ["my bundle", "-m", "service"]


@pytest.mark.parametrize(
    ("words", "served"),
    [
        ((), "demo=bundles/demo,bccd=bundles/bccd"),
        (("BUNDLE=it's mine",), ""),
        (("DETR_BUNDLE=mine",), ""),
        (("DETR_BUNDLES=a=b",), "a=b"),
    ],
)
def test_the_models_of_the_repository_are_served_unless_others_are_named(
    make: Callable[..., list[str]], tmp_path: Path, words: tuple[str, ...], served: str
) -> None:
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$DETR_BUNDLES" "$@"\n')

    assert make("serve", *words) == [served, "-m", "service"]


def test_nothing_is_served_where_a_variant_cannot_be_made(
    make: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "python").write_text('#!/bin/sh\n[ "$2" = service ] && echo serving\nexit 1\n')

    with pytest.raises(subprocess.CalledProcessError) as failure:
        make("serve", "VARIANT=refine")

    assert failure.value.stdout == ""


def refusal(make: Callable[..., list[str]], *words: str) -> str:
    with pytest.raises(subprocess.CalledProcessError) as failure:
        make(*words)
    assert failure.value.stdout == ""
    return str(failure.value.stderr)


@pytest.mark.parametrize("target", TARGETS)
def test_no_target_ignores_a_variable(make: Callable[..., list[str]], target: str) -> None:
    said = refusal(make, target, "BUNDEL=x")

    assert "unknown variable BUNDEL" in said
    assert f"make {target} takes" in said


def test_a_setting_given_as_a_variable_is_answered_with_how_it_is_given(
    make: Callable[..., list[str]],
) -> None:
    said = refusal(make, "train", "EPOCHS=5")

    assert "unknown variable EPOCHS; use SET='epochs=5'" in said


def test_a_variable_of_another_target_is_refused_too(make: Callable[..., list[str]]) -> None:
    said = refusal(make, "train", "CHECKPOINT=best.safetensors")

    assert "make train takes ARGS CONFIG DATA" in said


def test_a_setting_of_the_service_and_the_environment_are_left_alone(
    make: Callable[..., list[str]],
) -> None:
    assert make("serve", "DETR_PORT=9000", "PYTHON=python3") == ["", "-m", "service"]


def variables(text: str) -> set[str]:
    """The variables of the command line that a part of a recipe reads."""
    options = re.findall(r"call (?:option|quote),(?:\$\()?([A-Z_]+)", text)
    return {
        *options,
        *re.findall(r"\$\(([A-Z_]+)\)", text),
        *re.findall(r"if \$\(([A-Z_]+)\)", text),
    }


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_names_every_variable_that_it_reads(target: str) -> None:
    head, recipe = re.findall(rf"^{target}:.*?## (.*)\n((?:\t.*\n)*)", MAKEFILE, flags=re.M)[0]
    inputs = set(re.findall(r"^([A-Z_]+) =$", MAKEFILE, flags=re.M))

    assert variables(recipe) & inputs == set(re.findall(r"([A-Z_]+)=", head)) - {"PYTHON"}


def test_a_run_that_was_killed_is_explained(make: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\nkill -9 $$\n")

    said = refusal(make, "train")

    assert "killed, most often because memory ran out" in said
    assert "SET=batch_size=auto" in said
    assert "Error 137" in said


def test_training_shows_its_command_and_no_more(
    make: Callable[..., list[str]], tmp_path: Path
) -> None:
    shown, *passed = make("train", "DATA=it's my  data", "OUT=run", silently=False)

    assert shlex.split(shown) == [
        *(f"{tmp_path}/python", "-m", "model.train"),
        *("--data", "it's my  data", "--out", "run"),
    ]
    assert passed == ["", *shlex.split(shown)[1:]]
