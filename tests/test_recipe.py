import pytest
from pydantic import ValidationError

from adbooster.recipe import Recipe, digest, recipe_id, seed_of


def test_every_setting_of_a_recipe_changes_its_name():
    changed = {
        "candidates": 5,
        "num_inference_steps": 7,
        "guidance_scale": 2.0,
        "size_px": 640,
        "paint_px": 256,
        "product_scale": (0.3, 0.4),
        "ground_line": (0.7, 0.8),
        "seed": 1,
    }
    assert set(changed) == set(Recipe.model_fields)
    names = {recipe_id(Recipe(**{k: v}), "w", "r") for k, v in changed.items()}
    names |= {recipe_id(Recipe(), "w", "r"), recipe_id(Recipe(), "w2", "r"), recipe_id(Recipe(), "w", "r2")}
    assert len(names) == len(changed) + 3


def test_parts_are_kept_apart():
    assert digest("ab", "c") != digest("a", "bc")


def test_seeds_differ_and_fit_int64():
    seeds = [seed_of("r", k) for k in range(100)]
    assert len(set(seeds)) == 100
    assert all(0 <= s < 2**63 for s in seeds)


def test_unknown_setting_is_refused():
    with pytest.raises(ValidationError):
        Recipe(guidance=3)
