"""What the targets hand to the commands, whatever characters are in a path."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAMPS = (".venv/service.stamp", ".venv/full.stamp", "build/plugins.stamp")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., list[str]]:
    """Run a target with a python that prints DETR_BUNDLE and its arguments, one a line."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$DETR_BUNDLE" "$@"\n')
    python.chmod(0o755)

    def make(*words: str) -> list[str]:
        old = [option for stamp in STAMPS for option in ("-o", stamp)]
        done = subprocess.run(
            ["make", "--silent", *old, f"BIN={tmp_path}", *words],
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


def test_one_path_may_have_spaces(make: Callable[..., list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "my  photo's"
    folder.mkdir()

    words = make("detect", f"PATHS={folder}", "OUT=my results.json", "ANNOTATIONS=it's.json")

    assert words[1:] == [
        *("-m", "service.detect", str(folder)),
        *("--out", "my results.json", "--annotations", "it's.json"),
    ]


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
        (["train", "DATA=~/my data"], ["", "-m", "model.train", "--data", "/nobody/my data"]),
        (
            ["export", "CHECKPOINT=my run/best.safetensors", "BUNDLE=my bundle", "SHAPES=1 2"],
            [
                *("", "-m", "export", "my run/best.safetensors", "--out", "my bundle"),
                *("--shapes", "1", "2"),
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


def test_nothing_is_served_where_a_variant_cannot_be_made(
    make: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")

    with pytest.raises(subprocess.CalledProcessError) as failure:
        make("serve", "VARIANT=refine")

    assert failure.value.stdout == ""
