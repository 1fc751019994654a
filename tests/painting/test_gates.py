import numpy as np
import pytest

from adbooster.contracts.recipe import Gates
from adbooster.models.clip import Clip
from adbooster.models.safety import Safety
from adbooster.models.saliency import SaliencyNet
from adbooster.painting import gates
from adbooster.painting.gates import Inspector, asks_for_people, expansion_share
from adbooster.pictures import compositing, cutouts, layout, scenes
from adbooster.pictures.lighting import Agreement
from adbooster.tiny import world
from tests.conftest import MODELS

SIDE = 512


@pytest.fixture(scope="module")
def ranker():
    return Clip(MODELS / "rank", "cpu", 2)


@pytest.fixture(scope="module")
def net():
    return SaliencyNet(MODELS / "mask" / "u2netp.onnx", "cpu", 2)


def scene(*products: tuple[str, int], size: int = 170):
    """Products on a grey page at (name, x): (picture uint8 [S,S,3], alpha of the first)."""
    picture, alphas = np.full((SIDE, SIDE, 3), 235, np.uint8), []
    for name, x in products:
        cutout = cutouts.cut(*world.packshot(name, 256))
        high, wide = cutout.alpha.shape
        box = layout.Box(x, 300 - size // 2, round(wide * size / max(high, wide)), round(high * size / max(high, wide)))
        picture = compositing.compose(picture, cutout, box)
        alphas.append(np.zeros((SIDE, SIDE), np.uint8))
        alphas[-1][box.slices] = cutout.scaled(box.width_px, box.height_px).alpha
    return picture, alphas[0]


def look(inspector, picture, alpha, text="a beach"):
    vector = inspector.ranker.embed_images([scenes.scene_only(picture, alpha)])[0]
    return inspector.inspect([picture], [alpha], [vector], [text])[0]


def test_expansion_is_the_union_form():
    """A model that loses one half of the product and grows the other has grown it: the plain difference would be 0."""
    product, found = np.zeros((10, 10), bool), np.zeros((10, 10), bool)
    product[:, :4], found[:, 2:6] = True, True
    assert expansion_share(product, found) == 0.5
    assert expansion_share(product, product) == 0
    assert expansion_share(product, np.zeros_like(product)) == 0


def test_a_product_that_grew_is_found(ranker, net):
    inspector = Inspector(Gates(max_expansion_share=0.3), ranker, net, None)
    picture, alpha = scene(("teapot", 150))
    word, figures = look(inspector, picture, alpha)
    assert word is None
    assert figures["expansion_share"] < 0.15
    smaller = np.where(np.arange(SIDE) < 235, alpha, 0).astype(np.uint8)  # as if only the left half were the product
    word, figures = look(inspector, picture, smaller)
    assert word == "product_expanded"
    assert figures["expansion_share"] > 0.5


def test_a_second_copy_is_found_and_another_thing_is_not(ranker, net):
    inspector = Inspector(Gates(max_copy_similarity=0.9), ranker, net, None)
    word, figures = look(inspector, *scene(("teapot", 60), ("teapot", 290)))
    assert word == "second_copy"
    assert figures["copy_similarity"] > 0.9
    word, other = look(inspector, *scene(("teapot", 60), ("backpack", 290)))
    assert word is None
    assert other["copy_similarity"] is None or other["copy_similarity"] < 0.9
    assert look(inspector, *scene(("teapot", 150)))[1]["copy_similarity"] is None


def test_what_no_gate_asks_is_not_looked_at(ranker):
    assert look(Inspector(Gates(), ranker, None, None), *scene(("teapot", 150))) == (None, {})


@pytest.mark.parametrize(
    ("text", "asks"),
    [("a family picnic", True), ("women running", True), ("a snowy street", False), ("mango tea", False)],
)
def test_people_may_be_asked_for(text, asks):
    assert asks_for_people(text) is asks


def test_probes_name_scenes_and_spare_cohorts_that_ask(ranker, monkeypatch):
    """The words of the probes are of the real world; with the tiny world's own words the same gate tells its scenes."""
    monkeypatch.setattr(gates, "PEOPLE", (world.SCENES["halloween"].name,))
    monkeypatch.setattr(gates, "NO_PEOPLE", (world.SCENES["winter"].name,))
    inspector = Inspector(Gates(max_people=0.5), ranker, None, None)
    pictures = {s: world.compose(s, "teapot", 256, 5) for s in ("halloween", "winter")}
    assert look(inspector, *pictures["halloween"])[0] == "people_not_asked"
    assert look(inspector, *pictures["winter"])[0] is None
    assert look(inspector, *pictures["halloween"], text="friends at a party") == (None, {})


@pytest.mark.parametrize(("threshold", "said"), [(-2.0, "unsafe"), (2.0, None)])
def test_the_safety_checker_is_asked(ranker, tmp_path, threshold, said):
    """A real checker's class with random weights; its thresholds are set so that it flags all, or nothing."""
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=small, vision_config=small | {"image_size": 64, "patch_size": 32}, projection_dim=16
    )
    checker = StableDiffusionSafetyChecker(config)
    for name in ("concept_embeds", "special_care_embeds"):
        getattr(checker, name).data = torch.randn_like(getattr(checker, name))
        getattr(checker, f"{name}_weights").data.fill_(threshold)
    checker.save_pretrained(tmp_path)
    size = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    CLIPImageProcessor(**size).save_pretrained(tmp_path)
    inspector = Inspector(Gates(), ranker, None, Safety(tmp_path, "cpu"))
    word, figures = look(inspector, *scene(("teapot", 150)))
    assert word == said
    assert figures == {"unsafe": said == "unsafe"}


@pytest.mark.parametrize(
    ("figures", "word"),
    [
        ({}, None),
        ({"contact_share": 0.3}, "floating"),
        ({"contact_share": None}, None),
        ({"light_opposition": 0.8}, "harsh_light"),
        ({"contact_share": 0.3, "light_opposition": 0.8}, "floating"),
    ],
)
def test_scenes_that_do_not_fit_have_their_words(figures, word):
    fitting = {"colour_distance": 10.0, "scene_light_deg": 90.0, "scene_light_confidence": 1.0, "clash": 0.0}
    fitting |= {"product_light_deg": 90.0, "product_light_confidence": 1.0, "light_opposition": 0.1}
    fitting |= {"ground_line": 0.6, "contact_share": 1.0}
    agreement = Agreement(**fitting | figures)
    assert gates.clash_word(Gates(min_contact_share=0.5, max_light_opposition=0.5), agreement) == word
    assert gates.clash_word(Gates(), agreement) is None
