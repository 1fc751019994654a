"""The stage that holds the GPU: K candidates a request and round, painted, scored and gated; nothing but networks waits.

While one pass is painted, the candidates of the pass before are judged. What wins leaves as it was painted, and is
finished elsewhere.
"""

import json
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from adbooster.contracts import schema
from adbooster.contracts.naming import seed_of
from adbooster.engine import stage_process
from adbooster.engine.stage_process import in_network
from adbooster.models.clip import Clip
from adbooster.models.outpainter import Condition, Outpainter, Painting
from adbooster.models.safety import Safety
from adbooster.models.saliency import SaliencyNet
from adbooster.painting.config import PaintingConfig
from adbooster.painting.finish import finish
from adbooster.painting.gates import Inspector, clash_word
from adbooster.painting.placing import Place
from adbooster.painting.selection import Contest, fitting
from adbooster.pictures import lighting, scenes
from adbooster.reward.features import figures_of
from adbooster.reward.heads import Head
from adbooster.reward.judging import Choice, UsabilityGate, Verdict
from adbooster.storage.mask_models import mask_model
from adbooster.storage.model_store import content_hash, local_copy

_LIGHT_SHOWN = ("colour_distance", "light_opposition", "ground_line", "contact_share")  # on the page


class Pick(NamedTuple):
    """A candidate that was looked at: number among all rounds' candidates, its score, painting and figures."""

    number: int
    score: float
    place: Place
    painted: np.ndarray
    figures: dict
    agreement: lighting.Agreement
    marks: tuple[str, str]
    wanted: float  # what it was chosen by
    reward: float | None = None
    verdict: Verdict | None = None

    def row(self) -> dict:
        """As in schema.PAINTED."""
        high, wide = self.painted.shape[:2]
        return {
            "number": self.number,
            "score": self.score,
            "layout": vars(self.place.box),
            "width_px": wide,
            "height_px": high,
            "painted": self.painted.tobytes(),
            "gates": self.figures,  # null is what no gate asks for
            "light": self.agreement.figures(),
            "phash": self.marks[0],
            "simhash": self.marks[1],
            "reward": self.reward,
            "unusable": self.verdict and self.verdict.unusable,
        }


@dataclass
class Request:
    """A request on its way through the rounds."""

    row: dict
    places: dict[int, Place]
    text: np.ndarray  # unit vector of the cohort's text
    own: list[float]  # scores of the product's own pictures, its main one first
    round: int
    rejects: list[str] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    picks: list[Pick] = field(default_factory=list)
    shown: list[dict] | None = None  # all candidates, where the page shows this request


@dataclass
class Candidates:
    """The painted candidates of one request and round; what was stopped early is left out.

    numbers  among the candidates of all rounds; paintings and previews uint8 [H,W,3]
    vectors  unit vectors [n,D] of the previews; scores [n], by CLIP; rewards [n], the learned ones, or null
    """

    request: Request
    numbers: list[int]
    places: list[Place]
    painted: list[np.ndarray]
    previews: list[np.ndarray]
    vectors: np.ndarray
    scores: np.ndarray
    wanted: np.ndarray  # [n], what they are chosen by before scenes that clash lose some of it
    rewards: list[float | None]
    agreements: dict[int, lighting.Agreement] = field(default_factory=dict)

    def agreement(self, i: int) -> lighting.Agreement:
        if i not in self.agreements:
            place = self.places[i]
            self.agreements[i] = lighting.agreement(self.painted[i], place.overlay.alpha, place.light, self.previews[i])
        return self.agreements[i]


class Kept(OrderedDict):
    """The `most` entries that were used last."""

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def use(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self:
            self[key] = make()
        self.move_to_end(key)
        while len(self) > self.most:
            self.popitem(last=False)
        return self[key]


def load_outpainter(config: PaintingConfig) -> Outpainter:
    """The outpainter of the config, on its device, and this process's threads as it says."""
    torch.set_num_threads(config.threads)
    return Outpainter(
        local_copy(config.weights),
        config.recipe,
        config.device,
        config.dtype,
        config.paint_batch,
        [(local_copy(a.uri), a.scale) for a in config.adapters],
        config.compiled,
        local_copy(config.preview_model) if config.preview_model else None,
    )


def load_ranker(config: PaintingConfig) -> Clip:
    """The CLIP that ranks, on the device of the config."""
    return Clip(local_copy(config.rank_model), config.device, config.threads, getattr(torch, config.dtype))


def load_choice(config: PaintingConfig) -> Choice | None:
    """The learned score of the config; null: CLIP alone decides."""
    if config.score == "clip":
        return None
    return Choice(
        Head.load(local_copy(config.reward), "reward", content_hash(local_copy(config.rank_model))),
        config.reward_weight,
    )


def load_usability(config: PaintingConfig) -> UsabilityGate | None:
    """The usability gate of the config; null: there is none."""
    if not config.usability:
        return None
    return UsabilityGate(
        Head.load(local_copy(config.usability), "usability", content_hash(local_copy(config.rank_model)))
    )


def load_inspector(config: PaintingConfig, ranker: Clip) -> Inspector:
    """The gates of the config, with the networks that they ask, on its device."""
    masks = mask_model(config.mask_model, config.mask_network) if config.mask_model else None
    net = SaliencyNet(masks.path, config.device, config.threads, masks.how) if masks else None
    safety = Safety(local_copy(config.safety_model), config.device) if config.safety_model else None
    return Inspector(config.recipe.gates, ranker, net, safety)


class Conditions:
    """What the network sees of products in their places, shared by all cohorts and candidates: one VAE pass a place."""

    def __init__(self, outpainter: Outpainter):
        self.outpainter, self.kept = outpainter, Kept(128)

    def of(self, row: dict, place: Place) -> Condition:
        key = (row["photo_uri"], row["mask_uri"], row["category"], row["placement"], place.number)
        return self.kept.use(key, partial(self._make, place))

    def _make(self, place: Place) -> Condition:
        with in_network():
            return self.outpainter.condition(place.overlay.image, place.overlay.product_mask)


class Painter:
    """Paints requests, scores the previews, and decides which candidates win: schema.PLACED to schema.PAINTED.

    Models come with the device of the config; pictures depend on request, recipe and models alone.
    shown_up_to  of requests named up to here, which the page shows, previews of all candidates are passed on
    """

    def __init__(self, config: PaintingConfig, shown_up_to: str = ""):
        self.recipe, self.device = config.recipe, config.device
        self.shown_up_to = shown_up_to
        self.outpainter = load_outpainter(config)
        self.ranker = load_ranker(config)
        self.inspector = load_inspector(config, self.ranker)
        self.choice, self.usability = load_choice(config), load_usability(config)
        self.looks_at_finished = config.looks_at_finished
        self.at_once = config.requests_a_pass
        self.beside = ThreadPoolExecutor(1)  # a pass is painted in it while the pass before is judged
        self.painting: list[Future] = []
        self.conditions, self.own_vectors = Conditions(self.outpainter), Kept(4096)

    def __call__(self, rows: pa.Table) -> pa.Table:
        started = time.monotonic()
        requests = self._requests(rows.to_pylist())
        most = self.recipe.max_rounds
        waiting = deque(r for r in requests if r.round < most)
        before: list[Candidates] = []
        while waiting or before:
            some = [waiting.popleft() for _ in range(min(self.at_once, len(waiting)))]
            # In this thread's context, in which torch keeps its settings.
            self.painting = [self.beside.submit(copy_context().run, self._paint, some)] if some else []
            try:
                waiting.extend(r for r in self._judge(before) if r.round < most)
            finally:
                wait(self.painting)  # no call leaves a painting behind that the next one would pay for
            before = self.painting[0].result() if some else []
        shared = {"gpu_s": (time.monotonic() - started) / len(requests), "paint_batch": self.outpainter.batch}
        return pa.Table.from_pylist([_row(r) | shared for r in requests], schema.PAINTED)

    def _requests(self, rows: list[dict]) -> list[Request]:
        with in_network():
            texts = self.ranker.embed_texts([row["text"] for row in rows])
        own_vectors = self._own_vectors(rows)
        out = []
        for row, text, own in zip(rows, texts, own_vectors, strict=True):
            places = {p.number: p for p in map(Place.read, row["places"])}
            rejects = [row["again_for"]] if row["again_for"] else []
            shown = [] if row["request_id"] <= self.shown_up_to else None
            scores = [float(v @ text) for v in own]
            out.append(Request(row, places, text, scores, row["round"] or 0, rejects, shown=shown))
        return out

    def _own_vectors(self, rows: list[dict]) -> list[list[np.ndarray]]:
        """Unit vectors of the products' own pictures, each embedded once while it is in use."""
        asked = [list(zip(row["own_photo_uris"], row["own_pixels"], strict=True)) for row in rows]
        known = {uri: self.own_vectors[uri] for own in asked for uri, _ in own if uri in self.own_vectors}
        new = {uri: pixels for own in asked for uri, pixels in own if uri not in known}
        if new:
            shape = self.ranker.input.height_px, self.ranker.input.width_px, 3
            pixels = np.stack([np.frombuffer(p, np.uint8).reshape(shape) for p in new.values()])
            with in_network():
                known |= zip(new, self.ranker.embed_pixels(pixels), strict=True)
        return [[self.own_vectors.use(uri, lambda u=uri: known[u]) for uri, _ in own] for own in asked]

    def _paint(self, requests: list[Request]) -> list[Candidates]:
        """The next K candidates of each request, painted and scored as previews."""
        k = self.recipe.candidates
        jobs = [
            (r, n, r.places[n % self.recipe.layouts]) for r in requests for n in range(r.round * k, (r.round + 1) * k)
        ]
        paintings = [
            Painting(
                self.conditions.of(r.row, place),
                r.row["prompt"],
                r.row["negative_prompt"],
                seed_of(r.row["request_id"], n),
                group=i // k,
            )
            for i, (r, n, place) in enumerate(jobs)
        ]

        def fit(indices: list[int], halfway: list[np.ndarray]) -> list[float]:
            """How well candidates will fit their texts, seen before they are painted to the end."""
            _, vectors = self._previews([jobs[i][2] for i in indices], halfway)
            return [float(v @ jobs[i][0].text) for i, v in zip(indices, vectors, strict=True)]

        with in_network():
            painted = {i: p for i, p in enumerate(self.outpainter.paint(paintings, fit)) if p is not None}
            previews, vectors = self._previews([jobs[i][2] for i in painted], list(painted.values()))
        stage_process.count("adbooster_candidates_total", len(paintings))
        at = {i: n for n, i in enumerate(painted)}
        out = []
        for i, request in enumerate(requests):
            mine = [j for j in range(i * k, (i + 1) * k) if j in at]
            seen = np.array([vectors[at[j]] for j in mine])
            scores = np.array([v @ request.text for v in seen])
            known = dict(zip(mine, scores.tolist(), strict=True))
            request.scores = [known.get(j) for j in range(i * k, (i + 1) * k)]
            numbers, places = [jobs[j][1] for j in mine], [jobs[j][2] for j in mine]
            pictures = [painted[j] for j in mine], [previews[at[j]] for j in mine]
            plain: list[float | None] = [None] * len(mine)
            out.append(Candidates(request, numbers, places, *pictures, seen, scores, scores, plain))
        return out

    @torch.inference_mode()
    def _previews(self, places: Sequence[Place], painted: Sequence[np.ndarray]) -> tuple[list, list]:
        """The products before their paintings, composed on the device, and the pictures' unit vectors."""
        previews: list = [None] * len(painted)
        vectors: list = [None] * len(painted)
        for at in self._passes([p.shape for p in painted]):
            scene, colours, alpha = (
                torch.from_numpy(np.stack(arrays)).to(self.device)
                for arrays in (
                    [painted[i] for i in at],
                    [places[i].overlay.premultiplied for i in at],
                    [places[i].overlay.alpha for i in at],
                )
            )
            mixed = (scene * (1 - alpha[..., None] / 255) + colours).clamp(0, 255).round().to(torch.uint8)
            for i, preview, vector in zip(at, mixed.cpu().numpy(), self.ranker.embed_pixels(mixed), strict=True):
                previews[i], vectors[i] = preview, vector
        return previews, vectors

    def _judge(self, painted: list[Candidates]) -> list[Request]:
        """Decide a pass; returns the requests that go on to another round."""
        running = [(c, self._contest(c)) for c in painted]
        while looked := [(c, contest, i) for c, contest in running if (i := contest.next()) is not None]:
            looks = self._with_room(self._look, [(c, i) for c, _, i in looked])
            for (c, contest, i), (pick, word) in zip(looked, looks, strict=True):
                if c.request.shown is not None:
                    _inspected(c.request.shown[i - len(c.numbers)], word, pick)
                if word:
                    c.request.rejects.append(word)
                    contest.turn_down()
                else:
                    contest.choose(i)
                    c.request.picks.append(pick)
        for c, _ in running:
            c.request.round += 1
        return [c.request for c, contest in running if contest.again]

    def _contest(self, c: Candidates) -> Contest:
        recipe, request = self.recipe, c.request
        if request.shown is not None:
            request.shown += [_shown(*one) for one in zip(c.numbers, c.scores, c.previews, strict=True)]
        vectors = np.zeros((len(c.scores), 1))
        if recipe.keep > 1:
            scene = [scenes.scene_only(v, p.overlay.alpha) for v, p in zip(c.previews, c.places, strict=True)]
            vectors = self._with_room(self._embedded, scene)
        if self.choice:
            figures = [self._figures(c, i) for i in range(len(c.scores))]
            c.wanted, rewards = self.choice.wanted(c.scores, c.vectors, request.text, figures)
            c.rewards = rewards.tolist()
        wanted = c.wanted
        if recipe.clash_weight:
            wanted = fitting(wanted, [c.agreement(i).clash for i in range(len(wanted))], recipe.clash_weight)
        return Contest(c.scores, wanted, vectors, max(request.own), recipe.keep, recipe.diversity)

    def _with_room(self, work: Callable[[list], Any], *given: list) -> Any:
        """`work`, and again once nothing is painted beside it, where the device's memory does not hold both."""
        try:
            return work(*given)
        except torch.OutOfMemoryError:
            wait(self.painting)
            torch.cuda.empty_cache()
            return work(*given)

    def _look(self, some: list[tuple[Candidates, int]]) -> list[tuple[Pick, str | None]]:
        """Candidates with the reject word of the first gate that each fails; None: all pass."""
        previews = [self._finished(c, i) for c, i in some]
        alphas = [c.places[i].judged.alpha for c, i in some]
        scene = [scenes.scene_only(p, a) for p, a in zip(previews, alphas, strict=True)]
        vectors = self._embedded(scene)
        inspected = self.inspector.inspect(previews, alphas, vectors, [c.request.row["text"] for c, _ in some])
        verdicts: list[Verdict | None] = [None] * len(some)
        if self.usability:
            figures = [self._figures(c, i, found) for (c, i), (_, found) in zip(some, inspected, strict=True)]
            verdicts = [*self.usability.look(np.stack([c.vectors[i] for c, i in some]), vectors, figures)]
        out = []
        for (c, i), s, v, (word, found), verdict in zip(some, scene, vectors, inspected, verdicts, strict=True):
            agreement = c.agreement(i)
            about = found, agreement, scenes.marks(s, v), float(c.wanted[i]), c.rewards[i], verdict
            pick = Pick(c.numbers[i], float(c.scores[i]), c.places[i], c.painted[i], *about)
            word = word or clash_word(self.recipe.gates, agreement)
            out.append((pick, word or ("unusable" if verdict and verdict.turned_down else None)))
        return out

    def _figures(self, c: Candidates, i: int, gates: dict | None = None) -> dict[str, float | None]:
        """What heads see of a candidate besides vectors."""
        size = self.recipe.size(c.request.row["placement"])
        return figures_of(vars(c.places[i].box), size, c.agreement(i).figures(), gates)

    def _finished(self, c: Candidates, i: int) -> np.ndarray:
        """A candidate as gates look at it, uint8 [H,W,3]: as it would be published, with shadow and tones, where one does."""
        if not self.looks_at_finished:
            return c.previews[i]
        product, box = c.places[i].small()
        high, wide = c.places[i].judged.alpha.shape
        return finish(c.painted[i], product, box, (wide, high), self.recipe)

    def _embedded(self, pictures_u8: list[np.ndarray]) -> np.ndarray:
        """Unit vectors [n,D] of pictures of any sizes."""
        out: list = [None] * len(pictures_u8)
        for at in self._passes([p.shape for p in pictures_u8]):
            with in_network():
                vectors = self.ranker.embed_pixels(np.stack([pictures_u8[i] for i in at]))
            for i, vector in zip(at, vectors, strict=True):
                out[i] = vector
        return np.stack(out)

    def _passes(self, shapes: list[tuple]) -> Iterator[list[int]]:
        """Indices of pictures that go through the device together: of one shape, a pass of them, in whole requests."""
        k = self.recipe.candidates
        most = -(-self.outpainter.batch // k) * k
        for shape in dict.fromkeys(shapes):
            at = [i for i, s in enumerate(shapes) if s == shape]
            yield from (at[first : first + most] for first in range(0, len(at), most))


def _row(request: Request) -> dict:
    """As in schema.PAINTED."""
    kept = {name: request.row[name] for name in schema.REQUESTS.names if name not in ("round", "reject")}
    return kept | {
        "round": max(request.round - 1, request.row["round"] or 0),
        "own_scores": request.own,
        "candidate_scores": request.scores,
        "candidate_rejects": request.rejects,
        "picks": [p.row() for p in sorted(request.picks, key=lambda p: (-p.wanted, p.number))],
        "shown": request.shown,
        "reject": None,
    }


def _shown(number: int, score: float, preview_u8: np.ndarray) -> dict:
    high, wide = preview_u8.shape[:2]
    arrays = {"width_px": wide, "height_px": high, "preview": preview_u8.tobytes()}
    return {"number": number, "score": float(score), "word": None, "figures": "{}"} | arrays


def _inspected(shown: dict, word: str | None, pick: Pick) -> None:
    light = pick.agreement.figures()
    figures = pick.figures | {name: light[name] for name in _LIGHT_SHOWN} | {"reward": pick.reward}
    if pick.verdict:
        figures |= {"unusable": pick.verdict.unusable, "like_rejected": pick.verdict.like_rejected or None}
    shown |= {"word": word, "figures": json.dumps({k: v for k, v in figures.items() if v is not None})}
