"""Recipes are compared with plain runs of the same seeds, and each of them changes something."""

import pytest

from benchmarks.bench_recipes import PLAIN, RECIPES, recipes_for, table
from model.overrides import load_config


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_but_the_plain_one_changes_a_setting(recipe):
    _, changes = load_config("small", [RECIPES[recipe]])

    assert len(changes) == (recipe != PLAIN)


def test_a_recipe_is_compared_with_plain_runs_of_its_seeds():
    def row(recipe: str, seed: str, ap: str) -> dict[str, str]:
        return {"recipe": recipe, "seed": seed, "epochs": "9", "AP": ap, "AP50": "0.5"}

    lines = table([
        row(PLAIN, "0", "0.300"), row("mosaic", "0", "0.310"), row("mosaic", "1", "0.330"),
        row(PLAIN, "1", "0.340"), row("hybrid matching", "2", "0.2"),
    ]).split("\n")  # fmt: skip

    assert lines[2] == f"| {PLAIN} |  | 2 | 9 | 0.320 | 0.500 |  |"
    assert lines[3].startswith("| hybrid matching | `model.one_to_many_queries=120` | 1 |")
    assert lines[3].endswith("|  |")  # no plain run has its seed
    assert lines[4].endswith("| 2 | 9 | 0.320 | 0.500 | +0.010, -0.010 |")


def test_a_configuration_without_augmentation_has_no_recipes_of_augmentation():
    assert set(recipes_for("small")) == set(RECIPES)
    assert "contrastive denoising" in recipes_for("demo")
    assert "mosaic" not in recipes_for("demo")
