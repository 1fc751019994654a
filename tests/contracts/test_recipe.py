import pytest
from pydantic import ValidationError

from adbooster.contracts.naming import digest, seed_of
from adbooster.contracts.recipe import Gates, Recipe, recipe_id


def test_every_setting_of_a_recipe_changes_its_name():
    changed = {
        "candidates": 5,
        "num_inference_steps": 7,
        "guidance_scale": 2.0,
        "size_px": 640,
        "paint_px": 256,
        "keep": 2,
        "diversity": 0.5,
        "max_rounds": 3,
        "gates": {"max_expansion_share": 0.1},
        "guidance_interval": (0.1, 0.9),
        "halving": {"at": 0.5},
        "cache_every": 2,
        "scheduler": "LCMScheduler",
        "scheduler_options": {"timestep_spacing": "trailing"},
        "placements": ("story",),
        "layouts": 3,
        "stands": [{"product_scale": (0.3, 0.4), "ground_line": (0.7, 0.8)}],
        "shadow": "contact",
        "harmonise": {"exposure_stops": 0.3},
        "clash_weight": 0.1,
        "image_format": "png",
        "quality": 80,
        "seed": 1,
    }
    assert set(changed) == set(Recipe.model_fields)
    names = {recipe_id(Recipe(**{k: v}), ["w", "r"]) for k, v in changed.items()}
    names |= {recipe_id(Recipe(), models) for models in (["w", "r"], ["w2", "r"], ["w", "r2"])}
    assert len(names) == len(changed) + 3


def test_recipes_of_earlier_versions_keep_their_names():
    """Nothing that is live is painted again because there is a setting more; the names were made before there was."""
    assert recipe_id(Recipe(), ["a"]) == "53e04c5a30c33add"
    former = Recipe(shadow="contact", gates=Gates(max_people=0.5), candidates=2)
    assert recipe_id(former, ["a"]) == "810149af55c0e30d"


@pytest.mark.parametrize(
    "new",
    [
        {"shadow": "grounded"},
        {"harmonise": {"white_balance": 0.1}},
        {"harmonise": {"grain": True}},
        {"harmonise": {"reflection": 0.2}},
        {"clash_weight": 0.2},
        {"halving": {"at": 0.3}},
        {"cache_every": 3},
        {"gates": {"min_contact_share": 0.5}},
        {"gates": {"max_light_opposition": 0.5}},
    ],
)
def test_what_is_new_names_another_recipe_once_it_is_set(new):
    assert recipe_id(Recipe(**new), ["a"]) != recipe_id(Recipe(), ["a"])


def test_parts_are_kept_apart():
    assert digest("ab", "c") != digest("a", "bc")


def test_seeds_differ_and_fit_int64():
    seeds = [seed_of("r", k) for k in range(100)]
    assert len(set(seeds)) == 100
    assert all(0 <= s < 2**63 for s in seeds)


def test_unknown_setting_is_refused():
    with pytest.raises(ValidationError):
        Recipe(guidance=3)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"placements": ("banner",)}, "is not a placement; the placements are square, landscape, portrait, story"),
        ({"guidance_interval": (0.8, 0.2)}, "the lower first"),
        ({"image_format": "gif"}, "webp_lossless"),
    ],
)
def test_what_cannot_be_painted_is_said(bad, said):
    with pytest.raises(ValidationError, match=said):
        Recipe(**bad)


def test_sizes_follow_the_placement():
    assert Recipe().size("square") == (1080, 1080)
    assert Recipe(size_px=540).size("story") == (304, 540)
    wide, high = Recipe(paint_px=512).paint_size("landscape")
    assert wide % 8 == high % 8 == 0
    assert wide / high == pytest.approx(1200 / 628, rel=0.02)
    assert wide * high == pytest.approx(512**2, rel=0.03)


def test_the_first_rule_of_a_category_decides():
    bags = {"category": "apparel > bags", "product_scale": (0.2, 0.3), "ground_line": (0.5, 0.6)}
    recipe = Recipe(stands=[bags | {"placement": "story"}, bags | {"product_scale": (0.1, 0.1)}])
    assert recipe.stand("Apparel > Bags > Totes", "story").product_scale == (0.2, 0.3)
    assert recipe.stand("Apparel > Bags > Totes", "square").product_scale == (0.1, 0.1)
    assert recipe.stand("Shoes", "square").product_scale == (0.4, 0.6)
