"""The stage that paints: K candidates a request and round, scored, gated, and the winners' files stored."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from adbooster.contracts import schema
from adbooster.contracts.naming import digest, seed_of
from adbooster.engine import stage_process
from adbooster.models.clip import Clip
from adbooster.models.outpainter import Condition, Outpainter, Painting
from adbooster.models.safety import Safety
from adbooster.models.saliency import SaliencyNet
from adbooster.painting import candidates, finish, selection
from adbooster.painting.config import PaintingConfig
from adbooster.painting.gates import Inspector, clash_word
from adbooster.pictures import compositing, cutouts, images, layout, lighting, scenes
from adbooster.storage.mask_models import mask_model
from adbooster.storage.model_store import local_copy
from adbooster.storage.objects import Root

SHARED = (
    *("request_id", "product_id", "cohort_id", "placement", "prompt", "negative_prompt", "prompt_style"),
    *("text", "photo_sha256"),
)
IO_THREADS = 4
# What may differ from picture to picture; all else in GATES is null unless a gate asks for it.
_FIGURES = dict.fromkeys(field.name for field in schema.GATES)


class Setting(NamedTuple):
    """A product in one of its places: shared by all cohorts and candidates with this place."""

    box: layout.Box
    overlay: compositing.Overlay
    condition: Condition
    light: lighting.Light  # on the product

    @property
    def alpha(self) -> np.ndarray:
        """The product at painting size, uint8 [h,w]."""
        return (self.overlay.alpha[..., 0] * 255).astype(np.uint8)


class Pick(NamedTuple):
    """A candidate that passed: number among all rounds' candidates, its file's picture, scores and figures."""

    number: int
    box: layout.Box
    picture: np.ndarray
    score: float
    figures: dict
    marks: tuple[str, str]
    agreement: lighting.Agreement


@dataclass
class Request:
    """A request on its way through the rounds."""

    row: dict
    text: np.ndarray  # unit vector of the cohort's text
    own: list[float]  # scores of the product's own pictures, its main one first
    round: int
    rejects: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    picks: list[Pick] = field(default_factory=list)
    shown: list[candidates.Candidate] | None = None  # all candidates, where the page shows this request


class Painter:
    """Paints requests, puts the product back, scores, gates, and stores the winners' files.

    Models come with the device of the config; pictures depend on request, recipe and models alone.
    shown_up_to  of requests named up to here, which the page shows, small pictures of all candidates are kept
    """

    def __init__(
        self, root: Root, config: PaintingConfig, recipe_id: str, weights_revision: str, shown_up_to: str = ""
    ):
        torch.set_num_threads(config.threads)
        self.root, self.recipe, device = root, config.recipe, config.device
        self.shown_up_to = shown_up_to
        self.names = {"recipe_id": recipe_id, "weights_revision": weights_revision, "run_id": config.run_id}
        self.outpainter = Outpainter(
            local_copy(config.weights),
            config.recipe,
            device,
            config.dtype,
            config.paint_batch,
            [(local_copy(a.uri), a.scale) for a in config.adapters],
            config.compiled,
        )
        self.ranker = Clip(local_copy(config.rank_model), device, config.threads)
        masks = mask_model(config.mask_model, config.mask_network) if config.mask_model else None
        net = SaliencyNet(masks.path, device, config.threads, masks.how) if masks else None
        safety = Safety(local_copy(config.safety_model), device) if config.safety_model else None
        self.inspector = Inspector(config.recipe.gates, self.ranker, net, safety)
        self.cutout = lru_cache(32)(self._cutout)
        self.setting = lru_cache(128)(self._setting)
        self.embedded = lru_cache(4096)(self._embedded)

    def __call__(self, rows: pa.Table) -> pa.Table:
        started = time.monotonic()
        requests = [self._request(row) for row in rows.to_pylist()]
        while todo := [r for r in requests if not r.picks and 0 <= r.round < self.recipe.max_rounds]:
            self._round(todo)
        with ThreadPoolExecutor(IO_THREADS) as pool:
            finished = list(pool.map(self._rows, requests))
        shared = {"gpu_s": (time.monotonic() - started) / len(requests), "paint_batch": self.outpainter.batch}
        return pa.Table.from_pylist(
            [row | shared | {"reject": None} for some in finished for row in some], schema.STAGED
        )

    def _request(self, row: dict) -> Request:
        text = self.ranker.embed_texts([row["text"]])[0]
        own = [float(self.embedded(uri) @ text) for uri in row["own_photo_uris"]]
        rejects = ["duplicate_background"] if row["round"] else []
        shown = [] if row["request_id"] <= self.shown_up_to else None
        return Request(row, text, own, row["round"] or 0, rejects, shown=shown)

    def _round(self, requests: list[Request]) -> None:
        """Paint the next K candidates of each request and pick the winners; a request without any goes on to a new round."""
        k = self.recipe.candidates
        settings = [self._settings(r) for r in requests]
        paintings = [
            Painting(
                s.condition, r.row["prompt"], r.row["negative_prompt"], seed_of(r.row["request_id"], r.round * k + i)
            )
            for r, places in zip(requests, settings, strict=True)
            for i, s in enumerate(places)
        ]
        painted = self.outpainter.paint(paintings)
        stage_process.count("adbooster_candidates_total", len(painted))
        places = [s for some in settings for s in some]
        previews = [s.overlay.paste(p) for s, p in zip(places, painted, strict=True)]
        vectors = self.ranker.embed_images(previews)
        for i, request in enumerate(requests):
            window = slice(i * k, (i + 1) * k)
            if request.shown is not None:
                numbers = range(request.round * k, (request.round + 1) * k)
                seeds = [seed_of(request.row["request_id"], n) for n in numbers]
                request.shown += candidates.of_round(numbers, seeds, previews[window], vectors[window] @ request.text)
            self._pick(request, settings[i], painted[window], previews[window], vectors[window] @ request.text)

    def _settings(self, request: Request) -> list[Setting]:
        row = request.row
        product = (row["photo_uri"], row["mask_uri"], row["category"] or "", row["placement"])
        first = request.round * self.recipe.candidates
        return [self.setting(*product, (first + i) % self.recipe.layouts) for i in range(self.recipe.candidates)]

    def _pick(
        self,
        request: Request,
        places: list[Setting],
        painted: list[np.ndarray],
        previews: list[np.ndarray],
        scores: np.ndarray,
    ) -> None:
        """Go through the candidates from the best; a gate may turn one down, and one below the original ends the search."""
        recipe, best_own = self.recipe, max(request.own)
        request.scores = [float(s) for s in scores]
        scenes = self._scene_vectors(places, previews) if recipe.keep > 1 else np.zeros((len(scores), 1))
        wanted = self._fitting(places, painted, previews, scores)
        turned_down = False
        left, chosen = list(range(len(scores))), []
        while left and len(request.picks) < recipe.keep:
            i = selection.next_best(left, chosen, wanted, scenes, recipe.diversity)
            left.remove(i)
            if scores[i] <= best_own:
                continue
            pick, word = self._finished(request, i, places[i], painted[i])
            if request.shown is not None:
                request.shown[i - len(scores)].inspected(word, pick.figures | _shown(pick.agreement))
            if word:
                request.rejects.append(word)
                turned_down = turned_down or word != "below_original"
                continue
            chosen.append(i)
            request.picks.append(pick)
        # Scenes that fit but failed a gate are worth another round; scenes that do not fit are not.
        request.round = request.round + 1 if request.picks or turned_down else -1

    def _scene_vectors(self, places: list[Setting], previews: list[np.ndarray]) -> np.ndarray:
        return self.ranker.embed_images([scenes.scene_only(p, s.alpha) for p, s in zip(previews, places, strict=True)])

    def _fitting(
        self, places: list[Setting], painted: list[np.ndarray], previews: list[np.ndarray], scores: np.ndarray
    ) -> np.ndarray:
        """What the candidates are chosen by: scores, less what their scenes clash where the recipe asks for it."""
        if not (weight := self.recipe.clash_weight):
            return scores
        some = zip(places, painted, previews, strict=True)
        return selection.fitting(scores, [lighting.agreement(p, s.alpha, s.light, v).clash for s, p, v in some], weight)

    def _finished(self, request: Request, i: int, place: Setting, painted: np.ndarray) -> tuple[Pick, str | None]:
        """Candidate `i` at full size, and the reject word of the first gate that fails; None: all pass."""
        row, recipe = request.row, self.recipe
        box, size = place.box, recipe.size(row["placement"])
        product = self.cutout(row["photo_uri"], row["mask_uri"]).scaled(box.width_px, box.height_px)
        picture = finish.finish(painted, product, box, size, recipe)
        alpha = compositing.placed_alpha(product, box, size)
        scene = scenes.scene_only(picture, alpha)
        vectors = self.ranker.embed_images([picture, scene])
        score = float(vectors[0] @ request.text)
        word, figures = self.inspector.inspect(picture, alpha, vectors[1], row["text"])
        agreement = lighting.agreement(painted, alpha, place.light, picture)
        word = word or clash_word(recipe.gates, agreement)
        if score <= max(request.own):
            word = "below_original"
        number = request.round * recipe.candidates + i
        return Pick(number, box, picture, score, figures, scenes.marks(scene, vectors[1]), agreement), word

    def _rows(self, request: Request) -> list[dict]:
        """The rows of a request's winners, best first; their files are stored when this returns."""
        shared = {key: request.row[key] for key in SHARED} | self.names
        shared |= {
            "neutral_score": request.own[0],
            "candidate_scores": request.scores,
            "candidate_rejects": request.rejects,
            "round": max(request.round - 1, request.row["round"] or 0),
        }
        if request.shown is not None:
            order = {p.number: p.picture for p in self._best_first(request)}
            candidates.write(self.root, self.names["run_id"], request.row, request.shown, order, max(request.own))
        return [shared | row for row in (self._winners(request) or [self._original(request)])]

    def _winners(self, request: Request) -> Iterator[dict] | list[dict]:
        return [self._stored(request, p) | {"rank": rank} for rank, p in enumerate(self._best_first(request))]

    @staticmethod
    def _best_first(request: Request) -> list[Pick]:
        return sorted(request.picks, key=lambda p: (-p.score, p.number))

    def _stored(self, request: Request, pick: Pick) -> dict:
        row = request.row
        file = finish.encode(pick.picture, self.cutout(row["photo_uri"], row["mask_uri"]), pick.box, self.recipe)
        figures = {"product_max_diff": file.product_max_diff, "psnr_db": file.psnr_db} | pick.figures
        return self._file(self.root.put(file.content, file.extension), len(file.content), pick.picture) | {
            "creative_id": digest(row["request_id"], str(pick.number))[:16],
            "seed": seed_of(row["request_id"], pick.number),
            "layout": vars(pick.box),
            "clip_score": pick.score,
            "margin": pick.score - max(request.own),
            "gates": _FIGURES | figures,
            "light": pick.agreement.figures(),
            "fallback": False,
            "background_phash": pick.marks[0],
            "background_simhash": pick.marks[1],
        }

    def _original(self, request: Request) -> dict:
        """No painting passes and beats the product's own best picture, so that is the creative."""
        best = int(np.argmax(request.own))
        uri = request.row["own_photo_uris"][best]
        content = self.root.read(uri)
        return self._file(uri, len(content), images.decode(content)) | {
            "creative_id": digest(request.row["request_id"], "original")[:16],
            "rank": 0,
            "seed": 0,
            "clip_score": request.own[best],
            "margin": 0.0,
            "gates": _FIGURES | {"product_max_diff": 0},
            "fallback": True,
            "fallback_reason": request.rejects[-1] if request.rejects else "below_original",
        }

    @staticmethod
    def _file(uri: str, size_bytes: int, picture_u8: np.ndarray) -> dict:
        high, wide = picture_u8.shape[:2]
        sha256 = uri.rsplit("/", 1)[-1].split(".")[0]
        return {"uri": uri, "sha256": sha256, "width": wide, "height": high, "size_bytes": size_bytes}

    def _cutout(self, photo_uri: str, mask_uri: str) -> cutouts.Cutout:
        photo = images.decode(self.root.read(photo_uri))
        return cutouts.cut(photo, images.decode_mask(self.root.read(mask_uri)))

    def _setting(self, photo_uri: str, mask_uri: str, category: str, placement: str, number: int) -> Setting:
        """Place `number` of a product: it follows from the product and the recipe's seed, not from the cohort."""
        recipe, cutout = self.recipe, self.cutout(photo_uri, mask_uri)
        seed = seed_of(digest(photo_uri, mask_uri, placement, str(recipe.seed)), number)
        box = layout.place(cutout, recipe.size(placement), recipe.stand(category, placement), seed)
        overlay = compositing.overlay(cutout, box, recipe.size(placement), recipe.paint_size(placement))
        condition = self.outpainter.condition(overlay.image, overlay.product_mask)
        return Setting(box, overlay, condition, lighting.product_light(cutout))

    def _embedded(self, photo_uri: str) -> np.ndarray:
        return self.ranker.embed_images([images.decode(self.root.read(photo_uri))])[0]


def _shown(agreement: lighting.Agreement) -> dict:
    """What the page shows of a candidate."""
    figures = agreement.figures()
    return {name: figures[name] for name in ("colour_distance", "light_opposition", "ground_line", "contact_share")}
