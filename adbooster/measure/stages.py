"""The stages that measure: stored creatives, and candidates of trials as they are painted."""

import time
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa

from adbooster.contracts import schema
from adbooster.contracts.naming import digest, seed_of
from adbooster.contracts.recipe import Recipe
from adbooster.measure.config import MeasureConfig, Trial, TrialsConfig
from adbooster.measure.inspection import PictureMeasurer
from adbooster.models.clip import Clip
from adbooster.models.outpainter import Painting
from adbooster.painting import finish
from adbooster.painting.config import PaintingConfig
from adbooster.painting.painter import Conditions, load_outpainter
from adbooster.painting.placing import Place, Placer, read_cutout
from adbooster.pictures import images, layout
from adbooster.pictures.cutouts import Cutout
from adbooster.storage.model_store import local_copy
from adbooster.storage.objects import Root

KEPT = [n for n in schema.PICTURES_TO_MEASURE.names if n in schema.LOOKS.names]


class Evaluator:
    """Reads stored creatives back and measures them; of a row without a cohort, a catalog's scene, the features alone."""

    def __init__(self, root: Root, config: MeasureConfig):
        self.root, self.measurer = root, PictureMeasurer(root, config)

    def __call__(self, rows: pa.Table) -> pa.Table:
        return schema.fill(
            pa.Table.from_pylist([self._measure(row) for row in rows.to_pylist()], schema.LOOKS), schema.LOOKS
        )

    def _measure(self, row: dict) -> dict:
        shared = {name: row[name] for name in KEPT}
        try:
            return shared | self._measured(row)
        except FileNotFoundError:
            return shared | {"reject": "missing_image"}
        except images.UnreadableImage:
            return shared | {"reject": "unreadable_image"}

    def _measured(self, row: dict) -> dict:
        picture = images.decode(self.root.read(row["uri"]))
        if row["cohort_id"] is None:
            return {"features": self.measurer.features(picture).tolist()}
        scores = self.measurer.scores([picture], row["text"]) | self.measurer.baselines(row)
        if row["fallback"] or row["layout"] is None:
            return scores | {"product_max_diff": 0, "features": self.measurer.features(picture).tolist()}
        cutout = self.measurer.cutout(row["photo_uri"], row["mask_uri"])
        return scores | self.measurer.figures(picture, cutout, layout.Box(**row["layout"]), row["text"])


class Candidates:
    """Paints the K candidates of a trial's requests, each with the place that its product has."""

    def __init__(self, root: Root, config: TrialsConfig, trial: Trial):
        shared = {name: getattr(config, name) for name in PaintingConfig.model_fields if hasattr(config, name)}
        painting = PaintingConfig(**shared | {"weights": trial.weights, "adapters": trial.adapters})
        self.recipe, self.placer = config.recipe, Placer(root, painting)
        self.outpainter = load_outpainter(painting)
        self.conditions = Conditions(self.outpainter)

    def painted(self, asked: list[dict]) -> list[tuple[list[Place], list[np.ndarray]]]:
        """Of each request its candidates' places and paintings, uint8 [h,w,3], in the order of their seeds."""
        k, places = self.recipe.candidates, [self._places(row) for row in asked]
        painted = self.outpainter.paint(  # without a judge: every candidate is measured, also where the recipe halves
            [
                Painting(
                    self.conditions.of(row, place),
                    row["prompt"],
                    row["negative_prompt"],
                    seed_of(_noise(row, self.recipe), i),
                )
                for row, some in zip(asked, places, strict=True)
                for i, place in enumerate(some)
            ]
        )
        return [(some, painted[i * k : (i + 1) * k]) for i, some in enumerate(places)]

    def finished(self, row: dict, places: list[Place], painted: list[np.ndarray], cutout: Cutout) -> list[np.ndarray]:
        """A request's candidates as they would be published, uint8 [H,W,3]."""
        size = self.recipe.size(row["placement"])
        return [
            finish.finish(p, cutout, place.box, size, self.recipe) for p, place in zip(painted, places, strict=True)
        ]

    def _places(self, row: dict) -> list[Place]:
        there = {place.number: place for place in self.placer.places(row)}
        return [there[i % self.recipe.layouts] for i in range(self.recipe.candidates)]


class TrialPainter:
    """Paints K candidates a request, scores them all as finished pictures, and measures the one that `rank` prefers."""

    def __init__(self, root: Root, config: TrialsConfig, trial: Trial):
        self.recipe, self.candidates = config.recipe, Candidates(root, config, trial)
        self.measurer = PictureMeasurer(root, config)

    def __call__(self, rows: pa.Table) -> pa.Table:
        started, asked = time.monotonic(), rows.to_pylist()
        each = self.candidates.painted(asked)
        measured = [self._measure_request(row, *candidates) for row, candidates in zip(asked, each, strict=True)]
        spent = (time.monotonic() - started) / len(asked)
        return pa.Table.from_pylist([row | {"gpu_s": spent} for row in measured], schema.LOOKS)

    def _measure_request(self, row: dict, places: list[Place], painted: list[np.ndarray]) -> dict:
        cutout = self.measurer.cutout(row["photo_uri"], row["mask_uri"])
        pictures = self.candidates.finished(row, places, painted, cutout)
        measured = self.measurer.scores(pictures, row["text"]) | self.measurer.baselines(row)
        best = measured["best"]
        file = finish.encode(pictures[best], cutout, places[best].box, self.recipe)
        shared = {name: row[name] for name in schema.LOOKS.names if name in row}
        measured |= shared | self.measurer.figures(images.decode(file.content), cutout, places[best].box, row["text"])
        own = max(
            measured[f"{kind}_rank"] for kind in ("neutral", "contextual") if measured[f"{kind}_rank"] is not None
        )
        beaten = measured["rank_scores"][best] <= own
        return measured | {"fallback": beaten, "fallback_reason": "below_original" if beaten else None}


class CandidateKeeper:
    """Paints K candidates a request and keeps each as a finished picture with its score by the rank model.

    schema.TRIAL_REQUESTS to schema.CANDIDATES, K rows of one; a picture is named by its request and number, in `folder`.
    """

    def __init__(self, root: Root, config: TrialsConfig, trial: Trial, folder: str):
        self.root, self.folder = root, folder
        self.candidates = Candidates(root, config, trial)
        self.scorer = Clip(local_copy(config.rank_model), config.device, config.threads)
        self.cutout = lru_cache(8)(partial(read_cutout, root))

    def __call__(self, rows: pa.Table) -> pa.Table:
        asked = rows.to_pylist()
        kept = [
            candidate
            for row, (places, painted) in zip(asked, self.candidates.painted(asked), strict=True)
            for candidate in self._kept(row, places, painted)
        ]
        return pa.Table.from_pylist(kept, schema.CANDIDATES)

    def _kept(self, row: dict, places: list[Place], painted: list[np.ndarray]) -> list[dict]:
        cutout = self.cutout(row["photo_uri"], row["mask_uri"])
        pictures = self.candidates.finished(row, places, painted, cutout)
        scores = self.scorer.embed_images(pictures) @ self.scorer.embed_texts([row["text"]])[0]
        shared = {name: row[name] for name in schema.CANDIDATES.names if name in row}
        out = []
        for i, (picture, place, score) in enumerate(zip(pictures, places, scores.tolist(), strict=True)):
            content, extension = images.encode(picture, "webp_lossless", 0)
            uri = f"{self.folder}/{row['request_id'][:32]}-{i}.{extension}"
            self.root.write(uri, content)
            high, wide = picture.shape[:2]
            found = {"uri": uri, "layout": vars(place.box), "width_px": wide, "height_px": high, "score": score}
            out.append(shared | found)
        return out


def _noise(row: dict, recipe: Recipe) -> str:
    """Names the seeds: the same in every trial, so that a difference is that of weights and prompts."""
    return digest(row["product_id"], row["cohort_id"], row["placement"], str(recipe.seed))
