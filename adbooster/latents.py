"""The latent cache: pictures encoded once, by the VAE and the text encoder, and training that reads only that."""

import logging
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap
import torch

from adbooster import examples, schema, tables
from adbooster.inpainting import Encoded, Inpainting
from adbooster.learning import Learning
from adbooster.objects import Root, content_hash, local_copy
from adbooster.pools import dataset, stage_parts, through
from adbooster.recipe import digest

log = logging.getLogger(__name__)
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
WITH_PLACE = pa.schema([*examples.PLACED, ("place", pa.int64())])
LOCATED = pa.schema([*examples.PLANNED, ("file", pa.string()), ("group", pa.int64())])
READ = pa.schema([*ENCODED, ("noise_seed", pa.int64()), ("reject", pa.string())])
NO_TEXT = ""  # the sample_id of the row that holds the states of the empty text


class PlacingForCache(examples.Placer):
    """Pictures placed for the cache: with their captions, whatever an epoch would leave out."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        placed = super().__call__(rows)
        placed = placed.set_column(
            placed.schema.get_field_index("caption"), "caption", pc.fill_null(rows["caption"], "")
        )
        return schema.extend(placed, WITH_PLACE, place=rows["place"].to_pylist())


class Encoder:
    """Encodes placed pictures and writes each batch as one Parquet file, a row group a picture; gives back its index.

    A file is named by what is in it: a task that Ray runs again replaces its own.
    """

    def __init__(self, root: Root, folder: str, config: Learning):
        self.root, self.folder = root, folder
        self.model = Inpainting(
            local_copy(config.base), config.device, config.threads, config.precision, encode_only=True
        )

    def __call__(self, rows: pa.Table) -> pa.Table:
        sizes = list(zip(*(rows[n].to_pylist() for n in ("height_px", "width_px")), strict=True))
        parts = [self._encode(rows.filter(pa.array([s == size for s in sizes]))) for size in dict.fromkeys(sizes)]
        states, pooled = self.model.text([""])
        parts.append(
            pa.Table.from_pylist([_texts(NO_TEXT, -1, states[0], None if pooled is None else pooled[0])], ENCODED)
        )
        table = pa.concat_tables(parts)
        keys = [f"{s} {p}" for s, p in zip(*(table[n].to_pylist() for n in ("sample_id", "place")), strict=True)]
        file = f"{self.folder}/{digest(*keys)[:32]}.parquet"
        buffer = pa.BufferOutputStream()
        pap.write_table(table, buffer, row_group_size=1, compression="none", write_statistics=False)
        self.root.write(file, buffer.getvalue().to_pybytes())
        index = table.select(["sample_id", "place"]).slice(0, table.num_rows - 1)
        return schema.extend(
            index, INDEX, file=[file] * len(index), reject=[None] * len(index), group=range(len(index))
        )

    def _encode(self, rows: pa.Table) -> pa.Table:
        batch = self.model.encode(examples.arrays(rows))
        out = []
        for i, row in enumerate(rows.select(["sample_id", "place"]).to_pylist()):
            texts = _texts(
                row["sample_id"], row["place"], batch.states[i], None if batch.pooled is None else batch.pooled[i]
            )
            high, wide = batch.x.shape[-2:]
            pixels = {"x": _half(batch.x[i]), "masked": _half(batch.masked[i])}
            mask = batch.mask[i].to(torch.uint8).cpu().numpy().tobytes()
            out.append(texts | pixels | {"mask": mask, "latent_height": high, "latent_width": wide})
        return pa.Table.from_pylist(out, ENCODED)


def _half(values: torch.Tensor) -> bytes:
    return values.to(torch.float16).cpu().numpy().tobytes()


def _texts(sample_id: str, place: int, states: torch.Tensor, pooled: torch.Tensor | None) -> dict:
    tokens, width = states.shape
    return {
        **dict.fromkeys(ENCODED.names),
        **{"sample_id": sample_id, "place": place, "tokens": tokens, "text_width": width},
        **{"states": _half(states), "pooled": None if pooled is None else _half(pooled)},
    }


def cache_name(config: Learning, rows: pa.Table) -> str:
    """16 hex digits over all that decides what is encoded: pictures, placements, VAE and text encoders."""
    base = local_copy(config.base)
    parts = [content_hash(base / p) for p in ("vae", "text_encoder", "text_encoder_2") if (base / p).is_dir()]
    said = [repr(getattr(config, n)) for n in ("size_px", "aspects", "product_scale", "seed", "precision")]
    data = rows.select(["sample_id", "photo_uri", "mask_uri", "caption"]).to_pydict()
    return digest(*parts, *said, str(config.latents.placements), repr(data))[:16]


def precompute_latents(config: Learning, plan: examples.Plan) -> str:
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


class LatentReader:
    """A batch of encoded pictures from the cache, for an epoch: its noise, and the empty text where that is its turn."""

    def __init__(self, root: Root, config: Learning):
        self.config = config
        self.open = lru_cache(maxsize=64)(lambda file: pap.ParquetFile(root.fs.open(root.path(file), "rb")))

    def __call__(self, rows: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._read(row) for row in rows.to_pylist()], READ)

    def _read(self, row: dict) -> dict:
        name, epoch = row["sample_id"], row["epoch"]
        out = dict.fromkeys(READ.names) | {
            "sample_id": name,
            "place": row["place"],
            "noise_seed": examples.noise_seed(name, epoch, self.config),
        }
        file = self.open(row["file"])
        out |= file.read_row_group(row["group"]).to_pylist()[0]
        if examples.drops_text(name, epoch, self.config):
            last = file.read_row_group(file.num_row_groups - 1, columns=["states", "pooled"])
            out |= last.to_pylist()[0]
        return out


def batch_of(rows: pa.Table, device: str) -> Encoded:
    """One batch of READ as the UNet learns from it."""
    first = rows.slice(0, 1).to_pylist()[0]
    latent = (first["latent_height"], first["latent_width"])

    def stack(name: str, dtype, shape: tuple[int, ...]) -> torch.Tensor:
        arrays = [np.frombuffer(b, dtype).reshape(shape) for b in rows[name].to_pylist()]
        return torch.from_numpy(np.stack(arrays)).to(device).float()

    weight = pc.is_null(rows["reject"]).to_numpy(zero_copy_only=False).astype(np.float32)
    return Encoded(
        x=stack("x", np.float16, (-1, *latent)),
        masked=stack("masked", np.float16, (-1, *latent)),
        mask=stack("mask", np.uint8, (1, *latent)),
        states=stack("states", np.float16, (first["tokens"], first["text_width"])),
        pooled=None if first["pooled"] is None else stack("pooled", np.float16, (-1,)),
        weight=torch.from_numpy(weight).to(device),
        noise_seed=rows["noise_seed"].to_pylist(),
    )
