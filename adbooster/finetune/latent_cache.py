"""The latent cache: pictures encoded once, by the VAE and the text encoder, and training that reads only that."""

import logging
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap
import torch

from adbooster.contracts import schema
from adbooster.contracts.naming import digest
from adbooster.engine.isolation import Failures
from adbooster.engine.pools import dataset, through
from adbooster.engine.staging import stage_parts
from adbooster.finetune import examples
from adbooster.finetune.config import TrainingConfig
from adbooster.finetune.inpainting import Encoded
from adbooster.finetune.rows import INDEX, LOCATED, WITH_PLACE
from adbooster.finetune.stages import Encoder, PlacingForCache
from adbooster.storage import tables
from adbooster.storage.model_store import content_hash, local_copy
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)


def cache_name(config: TrainingConfig, rows: pa.Table) -> str:
    """16 hex digits over all that decides what is encoded: pictures, placements, VAE and text encoders."""
    base = local_copy(config.base)
    parts = [content_hash(base / p) for p in ("vae", "text_encoder", "text_encoder_2") if (base / p).is_dir()]
    settings = [repr(getattr(config, n)) for n in ("size_px", "aspects", "product_scale", "seed", "precision")]
    data = rows.select(["sample_id", "photo_uri", "mask_uri", "caption"]).to_pydict()
    return digest(*parts, *settings, str(config.latents.placements), repr(data))[:16]


def precompute_latents(config: TrainingConfig, plan: examples.Plan) -> str:
    """Run the VAE and the text encoders once over every placement, in a pool of actors; returns the cache's folder.

    What an earlier attempt has encoded is kept, and what is there in full starts no actor.
    """
    root = Root(config.root_uri)
    folder = f"latents/{cache_name(config, plan.rows)}"
    if root.exists(f"{folder}/index.parquet"):
        return folder
    wanted = plan.all_placements()
    known = tables.read_staged(root, f"{folder}/index", INDEX)
    keys = ["sample_id", "place"]
    missing = wanted.join(known.select(keys), keys, join_type="left anti").select(wanted.column_names)
    log.info("latents: %d of %d to encode", missing.num_rows, wanted.num_rows)
    if missing.num_rows:
        missing = missing.sort_by([("aspect", "ascending"), ("place", "ascending"), ("sample_id", "ascending")])
        pool = config.latents.encode
        placed = through(
            dataset(missing, pool.batch),
            PlacingForCache,
            config.place.model_copy(update={"batch": pool.batch}),
            WITH_PLACE,
            Failures(root, config.run_id, "failed_placing"),
            root=root,
            config=config,
        )
        stage_parts(
            through(placed, Encoder, pool, INDEX, root=root, folder=folder, config=config), root, f"{folder}/index"
        )
        known = tables.read_staged(root, f"{folder}/index", INDEX)
    buffer = pa.BufferOutputStream()
    pap.write_table(known.filter(pc.is_valid(known["file"])), buffer)
    root.write(f"{folder}/index.parquet", buffer.getvalue().to_pybytes())
    return folder


def _where(root: Root, folder: str) -> dict[tuple[str, int], tuple[str, int]]:
    index = pap.read_table(pa.BufferReader(root.read(f"{folder}/index.parquet")))
    rows = zip(*(index[n].to_pylist() for n in ("sample_id", "place", "file", "group")), strict=True)
    return {(sample, place): (file, group) for sample, place, file, group in rows}


def encoded(root: Root, folder: str, rows: pa.Table, placements: int) -> pa.Table:
    """The rows of which every placement is in the cache; a photo that could not be read is in none."""
    where = _where(root, folder)
    names = rows["sample_id"].to_pylist()
    return rows.filter(pa.array([all((n, p) in where for p in range(placements)) for n in names], pa.bool_()))


def located(root: Root, folder: str, planned: pa.Table) -> pa.Table:
    """PLANNED rows, in their order, with the file and row group that hold each."""
    where = _where(root, folder)
    found = [where[k] for k in zip(*(planned[n].to_pylist() for n in ("sample_id", "place")), strict=True)]
    return schema.extend(planned, LOCATED, file=[f for f, _ in found], group=[g for _, g in found])


Texts: TypeAlias = Callable[[list[str]], tuple[torch.Tensor, torch.Tensor | None]]


def batch_of(rows: pa.Table, device: str, texts: Texts) -> Encoded:
    """One batch of READ as the UNet learns from it.

    texts  the model's, as InpaintingModel.text: another epoch shows a picture with another text of the prior, so those
           are not in the cache
    """
    first = rows.slice(0, 1).to_pylist()[0]
    latent = (first["latent_height"], first["latent_width"])

    def stack(name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> torch.Tensor:
        arrays = [np.frombuffer(b, dtype).reshape(shape) for b in rows[name].to_pylist()]
        return torch.from_numpy(np.stack(arrays)).to(device).float()

    weight = pc.is_null(rows["reject"]).to_numpy(zero_copy_only=False).astype(np.float32)
    encoded = Encoded(
        x=stack("x", np.float16, (-1, *latent)),
        masked=stack("masked", np.float16, (-1, *latent)),
        mask=stack("mask", np.uint8, (1, *latent)),
        states=stack("states", np.float16, (first["tokens"], first["text_width"])),
        pooled=None if first["pooled"] is None else stack("pooled", np.float16, (-1,)),
        weight=torch.from_numpy(weight).to(device),
        noise_seed=rows["noise_seed"].to_pylist(),
        prior=torch.from_numpy(rows["prior"].to_numpy(zero_copy_only=False).astype(np.float32)).to(device),
    )
    words = rows["prior_text"].to_pylist()
    if at := [i for i, text in enumerate(words) if text is not None]:
        states, pooled = texts([words[i] for i in at])
        encoded.states[at] = states
        if encoded.pooled is not None and pooled is not None:
            encoded.pooled[at] = pooled
    return encoded
