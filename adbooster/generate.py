"""Samples x cohorts x weights -> creatives: paint K, put the product back, score, keep the best, publish at once."""

import logging
import time
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field

from adbooster import images, layout, plan, report, schema, tables
from adbooster.errors import AdboosterError, ConfigError, CoverageTooLow
from adbooster.objects import Root, content_hash, local_copy, refuse_pickles
from adbooster.pools import Pool, dataset, preflight, stage_parts, through
from adbooster.prompting import Prompting
from adbooster.recipe import Recipe, digest, recipe_id, seed_of
from adbooster.settings import JobConfig, Uri

log = logging.getLogger(__name__)
SHARED = ("request_id", "product_id", "cohort_id", "prompt", "negative_prompt", "prompt_style")  # request -> creative


class GenerateConfig(JobConfig):
    """Settings of `jobs.generate`."""

    weights: Uri
    """The outpainter: a folder in diffusers layout, local or s3://."""
    rank_model: Uri
    """The CLIP that scores and ranks: a folder that open_clip saved."""
    device: str = Field("cuda", pattern="^(cuda|cpu)$")
    """Where the models run; never chosen by what is there."""
    dtype: str = Field("float16", pattern="^(float32|float16|bfloat16)$")
    """Number format of the outpainter."""
    threads: int = Field(1, ge=1)
    """CPU threads a painting actor."""
    paint: Pool = Pool(batch=8)
    """Actors that paint and score; `batch` counts requests."""
    paint_batch: int = Field(16, ge=1)
    """Paintings in one pass of the network; always filled, so that a picture does not depend on its neighbours."""
    recipe: Recipe = Recipe()
    """What decides the pixels."""
    prompts: Prompting = Prompting()
    """How a product and a cohort become text."""
    targeting: plan.Targeting = plan.Targeting()
    """Which cohorts a product is painted for."""
    keep: int = Field(1, ge=1)
    """Creatives kept a product and cohort."""
    min_coverage: float = Field(0.95, ge=0, le=1)
    """With a smaller share of requests filled nothing is published."""
    gallery: int = Field(300, ge=0)
    """Creatives shown on the page."""


class GenerateReport(BaseModel):
    """What `jobs.generate` did."""

    job: str = "generate"
    run_id: str
    recipe_id: str
    weights_revision: str
    requests: int
    already_live: int
    already_staged: int
    painted: int
    rejected: int
    fallbacks: int
    published: int
    retired: int = 0
    coverage: float = 0.0
    uplift: dict[str, report.Uplift] = {}
    creatives_version: int | None
    gallery_uri: str | None = None
    gpu_s: float
    seconds: float = 0.0


class Painter:
    """Paints K candidates a request, puts the product back, scores, and stores the winners' files."""

    def __init__(self, root: Root, config: GenerateConfig, recipe_id: str, weights_revision: str):
        from adbooster.outpaint import Outpainter
        from adbooster.rank import Ranker

        self.root, self.config, self.recipe = root, config, config.recipe
        self.names = {"recipe_id": recipe_id, "weights_revision": weights_revision, "run_id": config.run_id}
        self.outpainter = Outpainter(
            local_copy(config.weights), config.device, config.dtype, config.paint_batch, config.threads
        )
        self.ranker = Ranker(local_copy(config.rank_model), config.device, config.threads)
        self.cutout = lru_cache(64)(self._cutout)
        self.embedded = lru_cache(4096)(self._embedded)

    def __call__(self, rows: pa.Table) -> pa.Table:
        started = time.monotonic()
        requests = rows.to_pylist()
        candidates = [self._candidates(r) for r in requests]
        backgrounds = self.outpainter.paint(
            [painting for some in candidates for _, painting in some],
            self.recipe.num_inference_steps,
            self.recipe.guidance_scale,
        )
        k = self.recipe.candidates
        done = [
            row
            for i, request in enumerate(requests)
            for row in self._finish(request, [box for box, _ in candidates[i]], backgrounds[i * k : (i + 1) * k])
        ]
        gpu_s = (time.monotonic() - started) / len(requests)
        return pa.Table.from_pylist([row | {"gpu_s": gpu_s, "reject": None} for row in done], schema.STAGED)

    def _candidates(self, request: dict) -> list:
        """K (box, painting) of a request; each candidate's seed decides its place and its noise."""
        from adbooster.outpaint import Painting

        recipe, cutout, out = self.recipe, self.cutout(request["photo_uri"], request["mask_uri"]), []
        for seed in self._seeds(request):
            box = layout.place(cutout, recipe.size_px, seed, recipe.product_scale, recipe.ground_line)
            image, mask = layout.paint_inputs(cutout, box, recipe.size_px, recipe.paint_px)
            out.append((box, Painting(image, mask, request["prompt"], request["negative_prompt"], seed)))
        return out

    def _seeds(self, request: dict) -> list[int]:
        return [seed_of(request["request_id"], k) for k in range(self.recipe.candidates)]

    def _finish(self, request: dict, boxes: list[layout.Box], backgrounds_u8: np.ndarray) -> list[dict]:
        """The rows of a request's winners, best first; their files are stored when this returns."""
        size_px, cutout = self.recipe.size_px, self.cutout(request["photo_uri"], request["mask_uri"])
        scenes = (images.resize(b, size_px, size_px, bicubic=True) for b in backgrounds_u8)
        pictures = [layout.compose(scene, cutout, box) for scene, box in zip(scenes, boxes, strict=True)]
        text = self.ranker.embed_texts([request["text"]])[0]
        scores = self.ranker.embed_images(pictures) @ text
        own = [float(self.embedded(uri) @ text) for uri in request["own_photo_uris"]]
        shared = {key: request[key] for key in SHARED} | self.names
        shared |= {"neutral_score": own[0]}
        if scores.max() <= max(own):
            return [shared | self._original(request, own)]
        best = sorted(range(len(scores)), key=lambda k: (-scores[k], k))[: self.config.keep]
        seeds = self._seeds(request)
        return [
            shared
            | self._stored(pictures[k], cutout, boxes[k])
            | {
                "creative_id": digest(request["request_id"], str(k))[:16],
                "rank": rank,
                "seed": seeds[k],
                "layout": vars(boxes[k]),
                "clip_score": float(scores[k]),
                "margin": float(scores[k]) - max(own),
                "fallback": False,
            }
            for rank, k in enumerate(best)
        ]

    def _stored(self, picture_u8: np.ndarray, cutout: layout.Cutout, box: layout.Box) -> dict:
        """The picture's file in object storage, checked on the bytes that are stored: the product is the photo's."""
        content = images.encode_lossless(picture_u8)
        difference = layout.product_difference(images.decode(content), cutout, box)
        if difference:
            raise AdboosterError(f"the stored picture alters the product by up to {difference} levels; nothing is kept")
        uri = self.root.put(content, "webp")
        height, width = picture_u8.shape[:2]
        return {
            "uri": uri,
            "sha256": uri.rsplit("/", 1)[-1].split(".")[0],
            "width": width,
            "height": height,
            "size_bytes": len(content),
            "gates": {"product_max_diff": difference},
        }

    def _original(self, request: dict, own: list[float]) -> dict:
        """No painting beats the product's own best picture, so that is the creative."""
        uri = request["own_photo_uris"][int(np.argmax(own))]
        content = self.root.read(uri)
        height, width = images.decode(content).shape[:2]
        return {
            "creative_id": digest(request["request_id"], "original")[:16],
            "rank": 0,
            "seed": 0,
            "layout": None,
            "clip_score": max(own),
            "margin": 0.0,
            "gates": {"product_max_diff": 0},
            "fallback": True,
            "uri": uri,
            "sha256": uri.rsplit("/", 1)[-1].split(".")[0],
            "width": width,
            "height": height,
            "size_bytes": len(content),
        }

    def _cutout(self, photo_uri: str, mask_uri: str) -> layout.Cutout:
        photo = images.decode(self.root.read(photo_uri))
        return layout.cut(photo, images.decode_mask(self.root.read(mask_uri)))

    def _embedded(self, photo_uri: str) -> np.ndarray:
        return self.ranker.embed_images([images.decode(self.root.read(photo_uri))])[0]


def generate(config: GenerateConfig) -> GenerateReport:
    """Paint what is not painted yet, then publish the night as one commit of tables/creatives."""
    started = time.monotonic()
    root = Root(config.root_uri)
    revision = content_hash(local_copy(config.weights))
    recipe = recipe_id(config.recipe, revision, content_hash(local_copy(config.rank_model)))
    base = tables.version(root, "creatives")
    live = tables.read(root, "creatives")
    wanted = plan.requests(root, config.prompts, recipe, config.targeting, config.rank_model)
    earlier = plan.staged(root, config.run_id, recipe)
    to_paint = plan.without(wanted, live, earlier)
    log.info("%d requests, %d to paint", wanted.num_rows, to_paint.num_rows)
    if to_paint.num_rows and not config.dry_run:
        preflight({"paint": config.paint})
        ds = through(
            dataset(to_paint, config.paint.batch),
            Painter,
            config.paint,
            schema.STAGED,
            root=root,
            config=config,
            recipe_id=recipe,
            weights_revision=revision,
        )
        stage_parts(ds, root, plan.staged_folder(config.run_id, recipe))
    fresh = plan.without(plan.staged(root, config.run_id, recipe), live)
    fresh = fresh.filter(pc.is_in(fresh["request_id"], wanted["request_id"]))
    missed = plan.without(to_paint, fresh).num_rows
    done = GenerateReport(
        run_id=config.run_id,
        recipe_id=recipe,
        weights_revision=revision,
        requests=wanted.num_rows,
        already_live=wanted.num_rows - plan.without(wanted, live).num_rows,
        already_staged=len(set(earlier["request_id"].to_pylist()) & set(wanted["request_id"].to_pylist())),
        painted=to_paint.num_rows - missed,
        rejected=0 if config.dry_run else missed,
        fallbacks=pc.sum(fresh["fallback"].cast(pa.int64())).as_py() or 0,
        published=fresh.num_rows,
        creatives_version=base,
        gpu_s=round(sum({r["request_id"]: r["gpu_s"] for r in fresh.to_pylist()}.values()), 1),
    )
    if not config.dry_run:
        after = publish(config, wanted, live, fresh, done)
        done.seconds = round(time.monotonic() - started, 1)
        done.gallery_uri = report.write_gallery(root, config.run_id, after, wanted, done.model_dump(), config.gallery)
    done.seconds = round(time.monotonic() - started, 1)
    return done


def publish(
    config: GenerateConfig, wanted: pa.Table, live: pa.Table, fresh: pa.Table, done: GenerateReport
) -> pa.Table:
    """One commit that adds what was painted, replaces what it supersedes and retires what nobody wants any more.

    wanted  the night's requests; live  the table at `done.creatives_version`; fresh  painted rows (schema.STAGED)
    done    gets the figures of the publication
    returns the rows that are live now
    raises  CoverageTooLow, PublishConflict; nothing of this run is live then
    """
    asked, new = set(_pairs(wanted)), set(_pairs(fresh))
    stays = pa.array([pair in asked and pair not in new for pair in _pairs(live)], pa.bool_())
    fresh = schema.fill(fresh, schema.CREATIVES)
    after = pa.concat_tables([live.filter(stays), fresh])
    done.coverage = round(len(set(_pairs(after))) / wanted.num_rows, 4)
    if done.coverage < config.min_coverage:
        raise CoverageTooLow(
            f"{done.coverage:.1%} of {wanted.num_rows} requests are filled, min_coverage is {config.min_coverage:.1%}; "
            "nothing was published and the last night stays live"
        )
    gone = live.filter(pc.invert(stays))
    done.retired = gone.num_rows
    if fresh.num_rows or gone.num_rows:
        metadata = {"run_id": config.run_id, "recipe_id": done.recipe_id, "weights_revision": done.weights_revision}
        drop = gone.filter(pc.invert(pc.is_in(gone["creative_id"], fresh["creative_id"])))["creative_id"].to_pylist()
        done.creatives_version = tables.merge(
            Root(config.root_uri), "creatives", fresh, "creative_id", done.creatives_version, metadata, delete=drop
        )
    families = dict(zip(wanted["cohort_id"].to_pylist(), wanted["family"].to_pylist(), strict=True))
    done.uplift = report.uplift(after, families)
    return after


def _pairs(rows: pa.Table) -> list[tuple[str, str]]:
    return list(zip(rows["product_id"].to_pylist(), rows["cohort_id"].to_pylist(), strict=True))


def check(config: GenerateConfig) -> None:
    """raises ConfigError for what can be known before an actor starts: weights, ranking model, root"""
    from adbooster import prompting
    from adbooster.outpaint import check_weights

    prompting.check(config.prompts)
    weights, rank_model = local_copy(config.weights), local_copy(config.rank_model)
    check_weights(weights)
    refuse_pickles(weights)
    refuse_pickles(rank_model)
    if not (rank_model / "open_clip_config.json").is_file():
        raise ConfigError(f"the CLIP model {config.rank_model} has no open_clip_config.json")
    Root(config.root_uri).check_writable()
