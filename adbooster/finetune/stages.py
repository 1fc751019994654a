"""The stages of fine-tuning: survey masks, place training pictures and pairs, encode for the latent cache, read it back."""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap

from adbooster.contracts import schema
from adbooster.contracts.naming import digest, seed_of
from adbooster.finetune.config import TrainingConfig
from adbooster.finetune.rows import (
    ENCODED,
    INDEX,
    NO_TEXT,
    PLACED,
    PLACED_PAIRS,
    READ,
    SCENIC,
    SURVEYED,
    WITH_PLACE,
    arrays,
    drops_text,
    noise_seed,
    of_prior,
    prior_text,
)
from adbooster.pictures import cutouts, images, layout
from adbooster.storage.model_store import local_copy
from adbooster.storage.objects import Root, each

if TYPE_CHECKING:  # pictures are placed without torch, by actors that start in a second
    import torch


class Surveyor:
    """Photo size and the product's longer side in pixels, from the mask; `unreadable_mask` where there is none."""

    def __init__(self, root: Root):
        self.root = root

    def __call__(self, rows: pa.Table) -> pa.Table:
        found = each(self._look, rows["mask_uri"].to_pylist())
        sizes = {n: [f and f[i] for f in found] for i, n in enumerate(SURVEYED.names[len(SCENIC) :])}
        return schema.extend(rows, SURVEYED, reject=[None if f else "unreadable_mask" for f in found], **sizes)

    def _look(self, mask_uri: str) -> tuple[int, int, int] | None:
        try:
            mask = images.decode_mask(self.root.read(mask_uri))
        except (OSError, ValueError, SyntaxError):
            return None
        ys, xs = np.nonzero(mask > cutouts.ON)
        if not len(ys):
            return None
        return mask.shape[1], mask.shape[0], int(max(np.ptp(ys), np.ptp(xs)) + 1)


class Placer:
    """A training picture of each PLANNED row: raw uint8 pixels [H,W,3] and product mask [H,W], 255 = product.

    A photo that cannot be read any more is `unreadable`: it keeps its place in the batch and counts for nothing.
    """

    def __init__(self, root: Root, config: TrainingConfig):
        self.root, self.config = root, config

    def __call__(self, rows: pa.Table) -> pa.Table:
        placed = [self._place(row) for row in rows.to_pylist()]
        return pa.Table.from_pylist(placed, PLACED)

    def _place(self, row: dict) -> dict:
        wide, high = layout.canvas(self.config.size_px, row["aspect"])
        name, epoch, caption = row["sample_id"], row["epoch"], row["caption"] or ""
        prior = of_prior(name, epoch, self.config)
        caption = prior_text(name, epoch, caption, self.config) if prior else caption
        out = {
            "sample_id": name,
            "caption": "" if drops_text(name, epoch, self.config) else caption,
            "prior": prior,
            "noise_seed": noise_seed(name, epoch, self.config),
            "width_px": wide,
            "height_px": high,
        }
        try:
            photo = images.decode(self.root.read(row["photo_uri"]))
            mask = images.decode_mask(self.root.read(row["mask_uri"]))
            if photo.shape[:2] != mask.shape:
                raise ValueError(f"a mask of {mask.shape} for a photo of {photo.shape}")
        except (OSError, ValueError, SyntaxError):
            return out | {"reject": "unreadable"}
        seed = seed_of(digest("place", name, str(self.config.seed)), row["place"])
        box = layout.training_crop(mask, seed, self.config.product_scale, row["aspect"])
        photo, mask = (images.resize(np.ascontiguousarray(a[box.slices]), wide, high) for a in (photo, mask))
        return out | {"reject": None, "image": photo.tobytes(), "mask": mask.tobytes()}


class PairPlacer:
    """Both pictures of each PLANNED_PAIRS row at training size, each with the mask of the product where it stands there.

    A pair of which anything cannot be read any more is `unreadable`: it keeps its place and counts for nothing.
    """

    def __init__(self, root: Root, config: TrainingConfig):
        self.root, self.config = root, config

    def __call__(self, rows: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._place(row) for row in rows.to_pylist()], PLACED_PAIRS)

    def _place(self, row: dict) -> dict:
        wide, high = layout.canvas(self.config.size_px, row["aspect"])
        name, epoch = row["pair_id"], row["epoch"]
        out = {
            "pair_id": name,
            "prompt": "" if drops_text(name, epoch, self.config) else row["prompt"],
            "noise_seed": noise_seed(name, epoch, self.config),
            "weight": row["weight"],
            "width_px": wide,
            "height_px": high,
        }
        try:
            product = images.decode_mask(self.root.read(row["mask_uri"]))
            for side in ("winner", "loser"):
                picture = images.decode(self.root.read(row[f"{side}_uri"]))
                mask = _standing(product, layout.Box(**row[f"{side}_layout"]), picture.shape[:2])
                picture, mask = (images.resize(a, wide, high) for a in (picture, mask))
                out |= {side: picture.tobytes(), f"{side}_mask": mask.tobytes()}
        except (OSError, ValueError, SyntaxError):
            return out | {"reject": "unreadable"} | dict.fromkeys(("winner", "winner_mask", "loser", "loser_mask"))
        return out | {"reject": None}


def _standing(mask_u8: np.ndarray, box: layout.Box, shape: tuple[int, int]) -> np.ndarray:
    """The photo's product mask where the product stands in a picture of `shape` (H, W), uint8 [H,W].

    raises ValueError if the mask is empty or the box reaches out of the picture
    """
    ys, xs = np.nonzero(mask_u8 > cutouts.ON)
    if not len(ys) or box.y_px + box.height_px > shape[0] or box.x_px + box.width_px > shape[1]:
        raise ValueError(f"{box} holds no product of a picture of {shape}")
    product = np.ascontiguousarray(mask_u8[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1])
    out = np.zeros(shape, np.uint8)
    out[box.slices] = images.resize(product, box.width_px, box.height_px)
    return out


class PlacingForCache(Placer):
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

    def __init__(self, root: Root, folder: str, config: TrainingConfig):
        from adbooster.finetune.inpainting import InpaintingModel

        self.root, self.folder = root, folder
        self.model = InpaintingModel(
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
        batch = self.model.encode(arrays(rows))
        out = []
        for i, row in enumerate(rows.select(["sample_id", "place"]).to_pylist()):
            texts = _texts(
                row["sample_id"], row["place"], batch.states[i], None if batch.pooled is None else batch.pooled[i]
            )
            high, wide = batch.x.shape[-2:]
            pixels = {"x": _half(batch.x[i]), "masked": _half(batch.masked[i])}
            mask = batch.mask[i].byte().cpu().numpy().tobytes()
            out.append(texts | pixels | {"mask": mask, "latent_height": high, "latent_width": wide})
        return pa.Table.from_pylist(out, ENCODED)


def _half(values: "torch.Tensor") -> bytes:
    return values.half().cpu().numpy().tobytes()


def _texts(sample_id: str, place: int, states: "torch.Tensor", pooled: "torch.Tensor | None") -> dict:
    tokens, width = states.shape
    return {
        **dict.fromkeys(ENCODED.names),
        **{"sample_id": sample_id, "place": place, "tokens": tokens, "text_width": width},
        **{"states": _half(states), "pooled": None if pooled is None else _half(pooled)},
    }


class LatentReader:
    """A batch of encoded pictures from the cache, for an epoch: its noise, and the empty text where that is its turn."""

    def __init__(self, root: Root, config: TrainingConfig):
        self.config = config
        self.open = lru_cache(maxsize=64)(lambda file: pap.ParquetFile(root.fs.open(root.path(file), "rb")))

    def __call__(self, rows: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._read(row) for row in rows.to_pylist()], READ)

    def _read(self, row: dict) -> dict:
        name, epoch = row["sample_id"], row["epoch"]
        out = dict.fromkeys(READ.names) | {
            "sample_id": name,
            "place": row["place"],
            "noise_seed": noise_seed(name, epoch, self.config),
        }
        file = self.open(row["file"])
        out |= file.read_row_group(row["group"]).to_pylist()[0]
        out["prior"] = of_prior(name, epoch, self.config)
        if drops_text(name, epoch, self.config):
            last = file.read_row_group(file.num_row_groups - 1, columns=["states", "pooled"])
            out |= last.to_pylist()[0]
        elif out["prior"]:
            out["prior_text"] = prior_text(name, epoch, row["caption"] or "", self.config)
        return out
