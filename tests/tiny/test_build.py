"""Making the models again: what is promised of the training set, of resuming and of what is written."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from adbooster.models.causal_lm import CausalLM
from adbooster.models.clip import Clip
from adbooster.models.families import StableDiffusion
from adbooster.tiny import build, train, world


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    return build.Workshop(work, work / "models", "cpu", compiled=False, pictures_in_all=16, workers=1)


def test_tokens_are_texts_of_their_own_picture(shop):
    ids = shop.token_ids
    assert ids.shape[:2] == (16, train.TEXTS)
    for (product, scene), rows in zip(shop.pictures.labels, ids.tolist(), strict=True):
        said = " ".join(shop.tokenizer.decode(row, skip_special_tokens=True) for row in rows)
        assert any(
            word in said
            for name in (world.PRODUCTS[product].name, *world.PRODUCTS[product].queries)
            for word in name.split()
        ), (product, said)
        if scene is None:
            assert "white background" in said
    assert torch.equal(ids, shop.token_ids), "written once"


def test_a_batch_keeps_the_order_it_was_asked_for(shop):
    batch = shop.pictures.batch(np.array([5, 2, 5]), "cpu")
    assert torch.equal(batch[0], batch[2])
    wanted = torch.from_numpy(np.array(shop.pictures.images[2])).permute(2, 0, 1)
    assert torch.equal(((batch[1] + 1) * 127.5).round().byte(), wanted)


def test_training_goes_on_where_it_stopped_and_ends_as_the_mean_of_its_last_steps(tmp_path):
    def fit(minutes):
        net = nn.Linear(1, 1)
        seen = []

        def loss(step):
            seen.append(step)
            return (net(torch.ones(1, 1)) - 3).square().sum()

        net, state = train.fit("line", net, loss, minutes, 1e-2, tmp_path, "cpu", ema_decay=0.9)
        return net, state, seen

    _, first, _ = fit(0.005)
    net, state, seen = fit(0.01)
    assert seen[0] == first["step"] > 0
    assert state["step"] == first["step"] + len(seen)
    saved = torch.load(tmp_path / "line.ckpt", weights_only=True)
    assert torch.equal(net.weight, saved["ema"]["weight"])
    assert not torch.equal(saved["net"]["weight"], saved["ema"]["weight"])


@pytest.mark.timeout(120)
def test_a_model_and_its_card_go_where_they_are_asked_for(shop):
    build.build("rank", 0.0, shop)
    card = json.loads((shop.models / "rank" / "card.json").read_text())["rank"]
    assert (card["steps"], card["batch"]) == (0, build.BATCH["cpu"]["rank"])
    assert Clip(shop.models / "rank", "cpu", 1).embed_texts(["a mug"]).shape[0] == 1


@pytest.mark.timeout(120)
def test_the_painter_is_made_of_the_stages_before_it(shop):
    for stage in ("rank", "vae", "decoder", "unet"):
        build.build(stage, 0.0, shop)
    pipe = StableDiffusion.load(shop.models / "outpaint", torch.float32)
    assert pipe.vae.config.scaling_factor == shop.vae().config.scaling_factor
    tower = shop.rank().state_dict()["text.token_embedding.weight"]
    assert torch.equal(pipe.text_encoder.state_dict()["embeddings.token_embedding.weight"], tower)
    assert set(json.loads((shop.models / "outpaint" / "card.json").read_text())) == {"vae", "decoder", "unet"}


def test_the_language_model_is_built_without_a_picture(tmp_path):
    shop = build.Workshop(tmp_path, tmp_path / "models", "cpu", compiled=False, pictures_in_all=16, workers=1)
    build.build("writer", 0.0, shop)
    assert json.loads((shop.models / "writer" / "card.json").read_text())["writer"]["steps"] == 0
    model = CausalLM(shop.models / "writer", "cpu", {"type": "boolean"})
    assert model.answers("", ["{}"], 8, 0.0, [0])[0] in ("true", "false")
    assert not (tmp_path / "images.npy").exists()
