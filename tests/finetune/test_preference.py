"""Preference tuning: its loss, its pairs, and runs on them."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pap
import pytest
import torch

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError, SchemaError
from adbooster.contracts.settings import completed
from adbooster.finetune import examples, preference
from adbooster.finetune.checks import check as check_finetune
from adbooster.finetune.config import ColdStart, FinetuneConfig, LatentCache, Lora, Preference
from adbooster.finetune.inpainting import Aims, Encoded, InpaintingModel, preference_logits
from adbooster.finetune.job import finetune, run_name
from adbooster.finetune.rows import pair_arrays
from adbooster.finetune.stages import PairPlacer
from adbooster.finetune.trainer import Trainer
from adbooster.finetune.validation import PairPanel
from adbooster.models.files import check_weights
from adbooster.pictures import images
from adbooster.storage import tables
from adbooster.storage.model_store import local_copy
from adbooster.tiny import world
from tests import tiny_xl
from tests.conftest import MODELS, learning, row
from tests.finetune.test_finetune import Killed, killed_after

BETA = 2000.0
PREFERRED, OTHER = "winter", "halloween"


@pytest.fixture
def pairs(root):
    """Of six products a picture in winter, preferred to one at halloween, with one and the same prompt."""
    rows = []
    for i, product in enumerate(world.HELD_OUT[:6]):
        sides = {}
        for side, scene in (("winner", PREFERRED), ("loser", OTHER)):
            picture, mask = world.compose(scene, product, 96, 10**7 + i)
            sides |= {f"{side}_uri": root.put(images.encode_lossless(picture), "webp"), f"{side}_layout": box_of(mask)}
            sides |= {"photo_uri": sides[f"{side}_uri"], "mask_uri": root.put(images.encode_mask(mask), "png")}
        named = {
            "pair_id": f"p{i}",
            "product_id": f"P{i}",
            "cohort_id": "c1",
            "prompt": "a gift",
            "placement": "square",
        }
        rows.append(named | sides | {"width_px": 96, "height_px": 96, "source": "approved", "weight": 1.0})
    return pa.Table.from_pylist(rows, schema.PREFERENCES)


def box_of(mask_u8: np.ndarray) -> dict:
    ys, xs = np.nonzero(mask_u8 > 127)
    wide, high = int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1
    return {"x_px": int(xs.min()), "y_px": int(ys.min()), "width_px": wide, "height_px": high}


@pytest.fixture
def tuning(root, pairs, tmp_path):
    """Settings of a run on `pairs` that takes seconds."""

    def settings(**changes) -> FinetuneConfig:
        pap.write_table(pairs, tmp_path / "pairs.parquet")
        how = Preference(beta=BETA, pairs_uri=str(tmp_path / "pairs.parquet"), min_pairs=2)
        small = {"threads": 1, "panel": {"pictures": 2, "paintings": 1, "num_inference_steps": 1}}
        return learning(root, **{"preference": how, "learning_rate": 1e-4} | small | changes)

    return settings


def encoded(model: InpaintingModel, root, config: FinetuneConfig, pairs: pa.Table) -> Encoded:
    plan = examples.PairPlan(examples.pairs_to_place(pairs), config.model_copy(update={"empty_text_share": 0.0}))
    return model.encode(pair_arrays(PairPlacer(root, plan.config)(plan.once())))


def model_of(config: FinetuneConfig) -> InpaintingModel:
    return InpaintingModel(local_copy(config.base), "cpu", 1, config.precision, config.lora)


def test_the_loss_is_the_papers():
    """By hand: the winner's error fell by 0.2 against the base, the loser's grew by 0.1: 0.3 * beta/2 = 3 in favour."""
    own, base = torch.tensor([0.3, 1.0, 0.6, 0.5]), torch.tensor([0.5, 1.0, 0.5, 0.5])
    logits = preference_logits(own, base, 20.0)
    assert logits.tolist() == pytest.approx([3.0, 0.0])
    losses = -torch.nn.functional.logsigmoid(logits)
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(-3.0)), math.log(2)])


def test_a_pairs_logit_is_that_of_its_painted_parts_errors(root, tuning, pairs):
    """With the weights moved away from the base, against both networks asked here one by one."""
    config = tuning()
    model = model_of(config)
    model.keep_base()
    with torch.no_grad():
        model.unet.conv_out.bias += torch.tensor([0.05, -0.1, 0.0, 0.02])
        batch = encoded(model, root, config, pairs.slice(0, 2))
        found = model.preferences(model.unet, batch, Aims(beta=BETA))
        errors = np.zeros((2, 4))
        for n in range(4):
            g = torch.Generator().manual_seed(batch.noise_seed[n])
            t = torch.randint(1000, (1,), generator=g)
            noise = torch.randn(batch.x.shape[1:], generator=g)[None]
            x = batch.x[n : n + 1]
            seen = torch.cat([model.noising.add_noise(x, noise, t), batch.mask[n : n + 1], batch.masked[n : n + 1]], 1)
            for which, unet in enumerate((model.unet, model.base_unet)):
                error = (unet(seen, t, batch.states[n : n + 1], return_dict=False)[0] - target(model, x, noise, t)) ** 2
                errors[which, n] = float((error * batch.mask[n]).sum() / (4 * batch.mask[n].sum()))
    gained = errors[0] - errors[1]
    assert batch.noise_seed[:2] == batch.noise_seed[2:], "a loser has its winner's noise"
    assert batch.noise_seed[0] != batch.noise_seed[1]
    assert not torch.equal(batch.mask[0], batch.mask[2]), "each picture has its own place"
    assert found.tolist() == pytest.approx((-BETA / 2 * (gained[:2] - gained[2:])).tolist(), rel=1e-3)


def target(model: InpaintingModel, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return model.noising.get_velocity(x, noise, t) if model.velocity else noise


@pytest.mark.parametrize("lora", [Lora(), Lora(rank=4)])
def test_steps_make_the_winner_likelier_and_leave_the_base_as_it_is(root, tuning, pairs, lora):
    """Whole UNet and adapter: the loss starts at log 2, logits rise, and what the base says of the batch stays, bit for bit."""
    config = tuning(lora=lora, learning_rate=1e-3 if lora.rank else 1e-4, ema_decay=0.0)
    model = model_of(config)
    learner = Trainer(model, config)
    frozen = {n: p.clone() for n, p in (model.base_unet or model.unet).named_parameters() if "lora" not in n}
    batch = encoded(model, root, config, pairs.slice(0, 2))
    with torch.no_grad():
        before = model._of_base(model._asked(batch)[0])
    losses = [float(learner.step([batch])["loss"]) for _ in range(6)]
    with torch.no_grad():
        after, logits = model._of_base(model._asked(batch)[0]), model.preferences(model.unet, batch, learner.aims)
    assert losses[0] == pytest.approx(math.log(2), rel=1e-3)
    assert losses[-1] < 0.9 * losses[0]
    assert (logits > 0).all()
    assert torch.equal(before, after)
    kept = dict((model.base_unet or model.unet).named_parameters())
    assert all(torch.equal(kept[n], p) for n, p in frozen.items())
    assert lora.rank == 0 or model.base_unet is None, "an adapter's base is there without a second copy"


def test_held_out_winners_are_preferred_after_training(root, tuning, pairs):
    """Winter over halloween, learned on four products and asked of two others: half before, all after."""
    config = tuning(batch=4, steps=16, ema_decay=0.0)
    model = model_of(config)
    learner = Trainer(model, config)
    panel = PairPanel(model, config, root, examples.pairs_to_place(pairs.slice(4)))
    model.unet.eval()
    before = panel.figures()
    assert before == pytest.approx({"loss": math.log(2), "accuracy": 0.5}, rel=1e-3)
    batch = encoded(model, root, config, pairs.slice(0, 4))
    for step in range(16):
        learner.step([batch._replace(noise_seed=[s + step for s in batch.noise_seed])])
    model.unet.eval()
    after = panel.figures()
    assert after["accuracy"] == 1.0
    assert after["loss"] < before["loss"]
    assert panel.grid().shape == (64, 3 * 64, 3)


def test_a_pair_that_cannot_be_read_counts_for_nothing(root, tuning, pairs):
    config = tuning()
    model = model_of(config)
    model.keep_base()
    with torch.no_grad():
        model.unet.conv_out.bias += 0.1
    without = model.loss(model.unet, encoded(model, root, config, pairs.slice(0, 1)), Aims(beta=BETA)).item()
    root.remove([pairs["loser_uri"][1].as_py()])
    batch = encoded(model, root, config, pairs.slice(0, 2))
    assert batch.weight.tolist() == [1, 0, 1, 0]
    assert model.loss(model.unet, batch, Aims(beta=BETA)).item() == pytest.approx(without, rel=1e-3)


@pytest.mark.parametrize("lora", [Lora(), Lora(rank=4, dropout=0.3)])
def test_a_restored_learner_goes_on_as_if_nothing_had_been(tmp_path, root, lora):
    """Through a checkpoint's file: losses and weights; the reference is the base and not what was restored."""
    base = tiny_xl.write_pipeline(tmp_path / "base", MODELS / "outpaint" / "tokenizer")
    config = learning(root, base=str(base), lora=lora, preference=Preference(beta=BETA), learning_rate=1e-3, steps=8)
    batches = [pair_of_latents(i) for i in range(8)]
    learner = Trainer(model_of(config), config)
    for batch in batches[:4]:
        learner.step([batch])
    torch.save(learner.state(), tmp_path / "state")
    wanted = [float(learner.step([batch])["loss"]) for batch in batches[4:]]
    other = Trainer(model_of(config), config)
    other.restore(torch.load(tmp_path / "state", weights_only=True))
    assert [float(other.step([batch])["loss"]) for batch in batches[4:]] == wanted
    assert wanted[0] != pytest.approx(math.log(2), rel=1e-4)
    weights = [x.state()["weights"] for x in (learner, other)]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])


def pair_of_latents(seed: int) -> Encoded:
    g = torch.Generator().manual_seed(seed)
    width = sum(tiny_xl.WIDTHS.values())
    x, masked = (torch.randn(2, 4, 8, 8, generator=g) for _ in range(2))
    states, pooled = torch.randn(1, 8, width, generator=g), torch.randn(1, tiny_xl.POOLED, generator=g)
    mask = (torch.rand(2, 1, 8, 8, generator=g) > 0.5).float()
    both = states.expand(2, -1, -1), pooled.expand(2, -1)
    return Encoded(x, masked, mask, *both, torch.ones(2), [seed, seed], torch.zeros(2))


def test_a_run_gives_weights_once_and_goes_on_where_it_was_killed(local_ray, root, tuning, monkeypatch):
    """In this process: killed after 3 of 4 steps, gone on from step 2, reused afterwards; the card says what was learned."""
    with monkeypatch.context() as patch:
        killed_after(3, patch)
        with pytest.raises(Killed):
            finetune(tuning(checkpoint_every=2))
    report = finetune(tuning(checkpoint_every=2, run_id="r2"))
    card = json.loads(root.read(f"weights/{report.weights_revision}/card.json"))
    assert report.resumed_from_step == 2
    assert (card["kind"], card["pairs"]) == ("preference", {"approved": 6})
    assert (report.pairs, report.samples + report.held_out) == ({"approved": 6}, 6)
    assert report.accuracy_before == 0.5
    assert report.loss_before == pytest.approx(math.log(2), rel=1e-3)
    assert report.loss_after != report.loss_before
    check_weights(local_copy(report.weights))
    again = finetune(tuning(run_id="r3"))
    assert (again.reused, again.weights_revision) == (True, report.weights_revision)
    names = [n for n in root.names("runs") if n.startswith("finetune-") and n.endswith(".json")]
    curve = json.loads(root.read(f"runs/{names[0]}"))["curve"]
    assert [step for step, _ in curve] == [1, 2, 3, 4]


def test_a_cold_start_paints_pairs_once(local_ray, stocked, monkeypatch):
    """Two cohorts of one product, four candidates each, ordered by the rank model: two pairs a cohort, kept for the next run."""
    config = learning(stocked, base=str(MODELS / "outpaint"), preference=cold_start(min_pairs=2))
    pairs = examples.cold_start_pairs(stocked, config)
    assert pairs.num_rows == 4
    assert set(pairs["source"].to_pylist()) == {"rank"}
    assert pairs["winner_layout"].to_pylist() == pairs["loser_layout"].to_pylist(), "what differs is the scene"
    for name in ("winner_uri", "loser_uri"):
        assert not stocked.missing(pairs[name].to_pylist())
    picture = images.decode(stocked.read(pairs["winner_uri"][0].as_py()))
    assert picture.shape[:2] == (pairs["height_px"][0].as_py(), pairs["width_px"][0].as_py())
    monkeypatch.setattr("adbooster.measure.run.through", None)  # nothing is left to paint
    assert examples.cold_start_pairs(stocked, config.model_copy(update={"run_id": "r2"})).equals(pairs)
    with pytest.raises(ConfigError, match=r"4 pairs to learn from \(4 rank\) and preference.min_pairs is 50"):
        finetune(config.model_copy(update={"preference": cold_start()}))


def cold_start(**changes) -> Preference:
    recipe = {"candidates": 4, "num_inference_steps": 2, "size_px": 96, "paint_px": 64, "guidance_scale": 1.0}
    cold = {"by": "rank", "rank_model": str(MODELS / "rank"), "dtype": "float32", "paint_batch": 4, "recipe": recipe}
    return Preference.model_validate({"beta": BETA, "min_margin": 0.0, "cold_start": cold} | changes)


def test_a_cold_start_paints_as_the_nights_file_says():
    """Recipe and models come from the sections of the jobs that have them, where the cold start gives none of its own."""
    sections = {
        "generate": {"rank_model": "/rank", "recipe": {"num_inference_steps": 7}, "paint_batch": 3, "weights": "/w"},
        "evaluate": {"judge_model": "/judge"},
    }
    own = {"root_uri": "/r", "base": "/w", "preference": {"beta": 9, "cold_start": {"by": "rank", "paint_batch": 5}}}
    cold = FinetuneConfig.model_validate(completed(FinetuneConfig, own, sections)).preference.cold_start
    assert (cold.rank_model, cold.judge_model) == ("/rank", "/judge")
    assert (cold.recipe.num_inference_steps, cold.paint_batch) == (7, 5)
    own["preference"] = {"beta": 9}
    cold = FinetuneConfig.model_validate(completed(FinetuneConfig, own, sections)).preference.cold_start
    assert cold == ColdStart()


def test_runs_on_scenes_keep_their_names_and_pairs_decide_theirs(scenes, pairs, tuning):
    rows = examples.scenic_samples(scenes)
    plain = run_name(learning(scenes), rows)
    assert run_name(learning(scenes, preference=Preference(min_margin=0.3)), rows) == plain
    names = {
        plain,
        run_name(tuning(), pairs),
        run_name(tuning(preference=Preference(beta=3000)), pairs),
        run_name(tuning(), pairs.slice(1)),
    }
    assert len(names) == 4
    assert run_name(tuning(preference=Preference(beta=BETA, min_pairs=9)), pairs) in names


def test_what_names_a_run_on_scenes_says_nothing_of_preferences(scenes, monkeypatch):
    """So names are those from before preferences could be learned from; of a run on pairs beta alone is in it."""
    named = []
    monkeypatch.setattr("adbooster.finetune.job.digest", lambda *parts: named.append(json.loads(parts[0])) or "")
    run_name(learning(scenes), examples.scenic_samples(scenes))
    run_name(learning(scenes, preference=cold_start()), examples.scenic_samples(scenes))
    assert "preference" not in named[0]
    assert named[1]["preference"] == Preference(beta=BETA).model_dump(mode="json")


@pytest.fixture
def shop():
    """Creatives of one place a, b, c, d (d of another prompt, e an original picture), and the product's photo."""
    same = {"product_id": "P1", "cohort_id": "c1", "placement": "square", "prompt": "snow", "width": 96, "height": 96}
    same |= {"photo_sha256": "f" * 64, "fallback": False}
    rows = [
        row(schema.CREATIVES, creative_id=c, uri=f"objects/{c}", layout=dict.fromkeys(BOX, i), **same)
        for i, c in enumerate("abcde")
    ]
    rows[3]["prompt"] = "sand"
    creatives = pa.Table.from_pylist(rows, schema.CREATIVES)
    product = {"product_id": "P1", "photo_uri": "photo", "photo_sha256": "f" * 64, "mask_uri": "mask"}
    return creatives, pa.Table.from_pylist([product])


BOX = ("x_px", "y_px", "width_px", "height_px")


def sides(pairs: pa.Table) -> set[str]:
    both = zip(pairs["winner_uri"].to_pylist(), pairs["loser_uri"].to_pylist(), strict=True)
    return {f"{w[-1]}>{x[-1]}" for w, x in both}


def test_approved_over_rejected_of_the_same_place(shop):
    creatives, products = shop
    marks = pa.Table.from_pylist(
        [
            row(schema.MARKS, creative_id=c, mark=mark)
            for c, mark in {"a": "approved", "b": "rejected", "c": "rejected", "d": "rejected", "e": "retired"}.items()
        ],
        schema.MARKS,
    )
    found = preference.approved_over_rejected(marks, creatives, products)
    assert sides(found) == {"a>b", "a>c"}, "d has another prompt, and outcomes are no person's rejection"
    first = found.to_pylist()[0]
    assert (first["photo_uri"], first["mask_uri"], first["source"], first["weight"]) == ("photo", "mask", "approved", 1)
    assert first["winner_layout"] != first["loser_layout"]
    assert (first["width_px"], first["prompt"]) == (96, "snow")
    other = products.set_column(2, "photo_sha256", pa.array(["0" * 64]))
    assert preference.approved_over_rejected(marks, creatives, other).num_rows == 0, "the photo is another now"
    assert preference.approved_over_rejected(marks.slice(0, 0), creatives, products).num_rows == 0


def outcomes_of(counts: dict[str, tuple[int, int]]) -> pa.Table:
    rows = [
        row(schema.OUTCOMES, outcome_id=f"{c}{day}", creative_id=c, impressions=shown // 2, clicks=clicks // 2)
        for c, (shown, clicks) in counts.items()
        for day in range(2)
    ]
    return pa.Table.from_pylist(rows, schema.OUTCOMES)


def test_surely_higher_click_rates_over_lower(shop):
    """2 % over 1 % of 10,000 each is sure; 1.02 % is not, nor is a creative that hardly anyone has seen."""
    outcomes = outcomes_of({"a": (10_000, 200), "b": (10_000, 100), "c": (10, 0), "e": (10_000, 102)})
    found = preference.clicked_over_ignored(outcomes, *shop, sure=0.95)
    assert sides(found) == {"a>b", "a>e"}
    assert all(0.95 <= w <= 1 for w in found["weight"].to_pylist())
    assert sides(preference.clicked_over_ignored(outcomes, *shop, sure=0.5)) >= {"a>b", "a>e", "e>b"}
    assert preference.clicked_over_ignored(outcomes.slice(0, 0), *shop, sure=0.95).num_rows == 0


def test_clicks_of_robots_make_no_pairs(shop):
    outcomes = outcomes_of({"a": (10_000, 6000), "b": (10_000, 100), "e": (10_000, 102)})
    assert preference.clicked_over_ignored(outcomes, *shop, sure=0.95).num_rows == 0


def test_best_candidates_over_worst(shop):
    scores = {"r1": [0.2, 0.5, 0.1, 0.4, 0.3], "r2": [0.30, 0.31], "r3": [0.9]}
    rows = [
        row(
            schema.CANDIDATES,
            request_id=request,
            product_id="P1",
            prompt=request,
            uri=f"{request}-{i}",
            layout=dict.fromkeys(BOX, i),
            width_px=96,
            height_px=96,
            score=score,
        )
        for request, some in scores.items()
        for i, score in enumerate(some)
    ]
    candidates = pa.Table.from_pylist(rows[::-1], schema.CANDIDATES)
    found = preference.better_over_worse(candidates, "judge", 0.05)
    both = zip(found["winner_uri"].to_pylist(), found["loser_uri"].to_pylist(), strict=True)
    assert set(both) == {("r1-1", "r1-2"), ("r1-3", "r1-0")}, "the difference within r2 is too small"
    assert set(found["source"].to_pylist()) == {"judge"}
    assert preference.better_over_worse(candidates.slice(0, 0), "rank", 0.0).num_rows == 0


def test_a_rejected_creative_is_found_where_the_table_last_had_it(stocked, packshot):
    """It is live no more, and its picture is still stored."""
    sample = tables.read(stocked, "samples").to_pylist()[0]
    uris = [stocked.put(images.encode_lossless(np.full((64, 64, 3), level, np.uint8)), "webp") for level in (9, 99)]
    same = {"product_id": "P1", "cohort_id": "c1", "placement": "square", "prompt": "snow", "width": 64, "height": 64}
    same |= {"photo_sha256": sample["photo_sha256"], "fallback": False, "layout": dict.fromkeys(BOX, 8)}
    rows = [row(schema.CREATIVES, creative_id=c, uri=uri, **same) for c, uri in zip("ab", uris, strict=True)]
    tables.merge(stocked, "creatives", pa.Table.from_pylist(rows, schema.CREATIVES), "creative_id", None, {})
    tables.merge(
        stocked, "creatives", tables.read(stocked, "creatives").slice(0, 0), "creative_id", 0, {}, delete=["b"]
    )
    marks = [row(schema.MARKS, creative_id=c, mark=m) for c, m in (("a", "approved"), ("b", "rejected"))]
    tables.merge(stocked, "marks", pa.Table.from_pylist(marks, schema.MARKS), "creative_id", None, {})
    config = learning(stocked, preference=Preference(beta=BETA))
    found = preference.known_pairs(stocked, config).to_pylist()
    assert [(p["winner_uri"], p["loser_uri"]) for p in found] == [tuple(uris)]
    assert found[0]["mask_uri"] == sample["mask_uri"]
    stocked.remove([uris[1]])
    assert preference.known_pairs(stocked, config).num_rows == 0
    with pytest.raises(ConfigError, match="0 pairs to learn from and preference.min_pairs is 50; marks, outcomes or"):
        check_finetune(config)


def test_settings_and_files_that_cannot_work(pairs, tuning, tmp_path):
    check_finetune(tuning())
    for changes, said in (
        ({"keep_base": 4.0}, "keep_base 4 is of learning from scenes"),
        ({"prior": 0.3}, "prior 0.3 is of learning from scenes"),
        ({"latents": LatentCache(placements=2)}, "latents.placements 2 is of scenes"),
        (
            {"preference": Preference(beta=1, cold_start=ColdStart(by="judge"))},
            "needs judge_model, a CLIP folder; none",
        ),
        ({"preference": Preference(beta=1, pairs_uri=str(tmp_path / "no"))}, "no pairs file at"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_finetune(tuning(**changes))
    (tmp_path / "text").write_text("winner,loser")
    with pytest.raises(ConfigError, match="is no Parquet file"):
        check_finetune(tuning(preference=Preference(beta=1, pairs_uri=str(tmp_path / "text"))))
    pap.write_table(pa.table({"pair_id": ["x"]}), tmp_path / "short")
    with pytest.raises(SchemaError, match="lacks the column 'product_id'"):
        check_finetune(tuning(preference=Preference(beta=1, pairs_uri=str(tmp_path / "short"))))
    pap.write_table(schema.fill(pairs.drop_columns("mask_uri"), schema.PREFERENCES), tmp_path / "nulls")
    with pytest.raises(ConfigError, match="has 6 rows without mask_uri"):
        check_finetune(tuning(preference=Preference(beta=1, pairs_uri=str(tmp_path / "nulls"))))
