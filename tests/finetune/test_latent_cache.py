import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap
import pytest

from adbooster.contracts.settings import Pool
from adbooster.finetune import examples, latent_cache
from adbooster.finetune.config import LatentCache
from adbooster.finetune.inpainting import InpaintingModel
from adbooster.finetune.rows import arrays
from adbooster.finetune.stages import Encoder, LatentReader, Placer, PlacingForCache
from adbooster.storage.model_store import local_copy
from tests import tiny_xl
from tests.conftest import MODELS, learning


@pytest.fixture(params=["sd", "sdxl"])
def config(request, scenes, tmp_path):
    base = MODELS / "outpaint"
    if request.param == "sdxl":
        base = tiny_xl.write_pipeline(tmp_path / "xl", base / "tokenizer")
    cache = LatentCache(placements=2)
    prior = {"prior": 0.5, "prior_texts": ("gift, a snowy winter day", "sport, a lawn")}
    more = {"latents": cache, "aspects": (1.0, 0.8), "empty_text_share": 0.4, "batch": 2, "steps": 6}
    return learning(scenes, base=str(base), **more, **prior)


def encode(root, config, plan) -> str:
    """What precompute_latents does, without Ray."""
    folder = f"latents/{latent_cache.cache_name(config, plan.rows)}"
    placer, encoder = PlacingForCache(root, config), Encoder(root, folder, config)
    index = [encoder(placer(plan.all_placements().slice(at, 5))) for at in range(0, 12, 5)]
    buffer = pa.BufferOutputStream()
    pap.write_table(pa.concat_tables(index), buffer)
    root.write(f"{folder}/index.parquet", buffer.getvalue().to_pybytes())
    return folder


def test_both_paths_give_the_same_loss_for_the_same_placements(scenes, config):
    """Every picture of 6 steps, one after another, through photos and through the cache: at float16's precision."""
    plan = examples.Plan(examples.survey(scenes, examples.scenic_samples(scenes), Pool()), config)
    folder = encode(scenes, config, plan)
    rows = plan.of_worker(0, 0, config.steps)
    model = InpaintingModel(local_copy(config.base), "cpu", 2, "float32")
    placer, reader = Placer(scenes, config), LatentReader(scenes, config)
    found, wanted, words = [], [], []
    for at in range(0, rows.num_rows, config.batch):
        some = rows.slice(at, config.batch)
        pictures = arrays(placer(some))
        cached = latent_cache.batch_of(reader(latent_cache.located(scenes, folder, some)), "cpu", model.text)
        encoded = model.encode(pictures)
        assert cached.prior.tolist() == encoded.prior.tolist()
        wanted += model.losses(model.unet, encoded).tolist()
        found += model.losses(model.unet, cached).tolist()
        words += pictures["caption"]
    assert found == pytest.approx(wanted, rel=2e-3)
    assert 0 < words.count("") < len(words)
    assert 0 < sum("gift" in w or "sport" in w for w in words) < len(words)
    assert len(set(np.round(wanted, 4))) == len(wanted)


def test_what_cannot_be_read_is_not_in_the_cache(scenes, config):
    plan = examples.Plan(examples.survey(scenes, examples.scenic_samples(scenes), Pool()), config)
    scenes.remove([plan.rows["photo_uri"][3].as_py()])
    placed = PlacingForCache(scenes, config)(plan.all_placements())
    assert pc.sum(pc.is_valid(placed["reject"])).as_py() == 2
    encoder = Encoder(scenes, "latents/x", config)
    index = encoder(placed.filter(pc.is_null(placed["reject"])))
    buffer = pa.BufferOutputStream()
    pap.write_table(index, buffer)
    scenes.write("latents/x/index.parquet", buffer.getvalue().to_pybytes())
    there = latent_cache.encoded(scenes, "latents/x", plan.rows, 2)
    assert there["sample_id"].to_pylist() == ["s0", "s1", "s2", "s4", "s5"]


def test_a_retried_batch_replaces_its_file(scenes, config):
    plan = examples.Plan(examples.survey(scenes, examples.scenic_samples(scenes), Pool()), config)
    placed = PlacingForCache(scenes, config)(plan.all_placements().slice(0, 4))
    encoder = Encoder(scenes, "latents/x", config)
    assert encoder(placed).equals(encoder(placed))
    assert len(scenes.names("latents/x")) == 1


def test_another_vae_placement_or_caption_is_another_cache(scenes, config):
    rows = examples.survey(scenes, examples.scenic_samples(scenes), Pool())
    other = rows.set_column(rows.schema.get_field_index("caption"), "caption", pa.array(["x"] * 6))
    names = {
        latent_cache.cache_name(config, rows),
        latent_cache.cache_name(config, other),
        latent_cache.cache_name(config.model_copy(update={"seed": 1}), rows),
        latent_cache.cache_name(config.model_copy(update={"size_px": 128}), rows),
    }
    assert len(names) == 4
    assert latent_cache.cache_name(config.model_copy(update={"learning_rate": 1.0, "steps": 3}), rows) in names
