"""Rows in flight in fine-tuning."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.naming import digest, seed_of
from adbooster.finetune.config import TrainingConfig
from adbooster.prompts.templates import product_words, prompt_qc

SCENIC = pa.schema(
    [(n, pa.string()) for n in ("sample_id", "product_id", "caption", "reject", "photo_uri", "mask_uri")]
)


SURVEYED = pa.schema([*SCENIC, *((n, pa.int32()) for n in ("width_px", "height_px", "longest_px"))])


PLANNED = pa.schema([*SCENIC, ("place", pa.int64()), ("epoch", pa.int64()), ("aspect", pa.float64())])


PLACED = pa.schema(
    [
        *((n, pa.string()) for n in ("sample_id", "caption", "reject")),
        ("noise_seed", pa.int64()),
        *((n, pa.int32()) for n in ("width_px", "height_px")),
        ("image", pa.binary()),
        ("mask", pa.binary()),
        ("prior", pa.bool_()),
    ]
)


ENCODED = pa.schema(
    [
        ("sample_id", pa.string()),
        ("place", pa.int64()),
        *((n, pa.int32()) for n in ("latent_height", "latent_width", "tokens", "text_width")),
        *((n, pa.binary()) for n in ("x", "masked", "mask", "states", "pooled")),  # float16; the mask uint8
    ]
)


INDEX = pa.schema(
    [
        *((n, pa.string()) for n in ("sample_id", "file", "reject")),
        *((n, pa.int64()) for n in ("place", "group")),
    ]
)


WITH_PLACE = pa.schema([*PLACED, ("place", pa.int64())])


LOCATED = pa.schema([*PLANNED, ("file", pa.string()), ("group", pa.int64())])


READ = pa.schema(
    [
        *ENCODED,
        ("noise_seed", pa.int64()),
        ("reject", pa.string()),
        ("prior", pa.bool_()),
        ("prior_text", pa.string()),  # null: `states` are of the text to learn with
    ]
)


OF_PAIR = ("pair_id", "product_id", "prompt", "photo_uri", "mask_uri", "winner_uri", "loser_uri")


PAIRS = pa.schema(
    [
        *(schema.PREFERENCES.field(n) for n in (*OF_PAIR, "winner_layout", "loser_layout", "weight")),
        ("aspect", pa.float64()),
        ("reject", pa.string()),
    ]
)


PLANNED_PAIRS = pa.schema([*PAIRS, ("epoch", pa.int64())])


PLACED_PAIRS = pa.schema(
    [
        *((n, pa.string()) for n in ("pair_id", "prompt", "reject")),
        ("noise_seed", pa.int64()),
        ("weight", pa.float32()),
        *((n, pa.int32()) for n in ("width_px", "height_px")),
        *((n, pa.binary()) for n in ("winner", "winner_mask", "loser", "loser_mask")),
    ]
)


LEAST_PX = 64  # a side of latents that every VAE and UNet takes
NO_TEXT = ""  # the sample_id of the row that holds the states of the empty text


def drops_text(sample_id: str, epoch: int, config: TrainingConfig) -> bool:
    """Whether this epoch sees the picture without its caption."""
    return seed_of(digest("text", sample_id, str(config.seed)), epoch) / 2**63 < config.empty_text_share


def of_prior(sample_id: str, epoch: int, config: TrainingConfig) -> bool:
    """Whether this epoch shows the picture with a text of the cohorts, to be predicted as the base does."""
    return seed_of(digest("prior", sample_id, str(config.seed)), epoch) / 2**63 < config.prior


def prior_text(sample_id: str, epoch: int, caption: str, config: TrainingConfig) -> str:
    """The product with the text of one cohort, as painting is asked for it."""
    drawn = seed_of(digest("prior text", sample_id, str(config.seed)), epoch) % len(config.prior_texts)
    return prompt_qc(product_words(caption, ""), "", config.prior_texts[drawn])


def noise_seed(sample_id: str, epoch: int, config: TrainingConfig) -> int:
    """Seed of the noise and the timestep that this epoch gives the picture."""
    return seed_of(digest("noise", sample_id, str(config.seed)), epoch)


def arrays(rows: pa.Table) -> dict:
    """One batch of PLACED as image uint8 [N,H,W,3], mask uint8 [N,H,W], caption, noise_seed, weight (0: rejected), prior.

    A row whose placing ended its process has no size, caption or seed: those of the others serve, and zeros.
    """
    wide, high = (next((v for v in rows[n].to_pylist() if v), LEAST_PX) for n in ("width_px", "height_px"))
    blank = bytes(wide * high * 3), bytes([255]) * (wide * high)
    image = [np.frombuffer(b or blank[0], np.uint8).reshape(high, wide, 3) for b in rows["image"].to_pylist()]
    mask = [np.frombuffer(b or blank[1], np.uint8).reshape(high, wide) for b in rows["mask"].to_pylist()]
    return {
        "image": np.stack(image),
        "mask": np.stack(mask),
        "caption": pc.fill_null(rows["caption"], "").to_pylist(),
        "noise_seed": pc.fill_null(rows["noise_seed"], 0).to_pylist(),
        "weight": pc.is_null(rows["reject"]).to_numpy(zero_copy_only=False).astype(np.float32),
        "prior": pc.fill_null(rows["prior"], False).to_numpy(zero_copy_only=False).astype(np.float32),
    }


def pair_arrays(rows: pa.Table) -> dict:
    """One batch of PLACED_PAIRS as `arrays` gives pictures: all winners first, then their losers in the same order."""
    sides = []
    for side in ("winner", "loser"):
        names = {side: "image", f"{side}_mask": "mask", "prompt": "caption"}
        same = {name: rows[name] for name in ("reject", "noise_seed", "width_px", "height_px")}
        prior = pa.nulls(rows.num_rows, pa.bool_())
        sides.append(arrays(pa.table(same | {ours: rows[name] for name, ours in names.items()} | {"prior": prior})))
    both = {
        k: v + sides[1][k] if isinstance(v, list) else np.concatenate([v, sides[1][k]]) for k, v in sides[0].items()
    }
    weight = pc.fill_null(rows["weight"], 0.0).to_numpy(zero_copy_only=False)
    return both | {"weight": (both["weight"] * np.tile(weight, 2)).astype(np.float32)}
