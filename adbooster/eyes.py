"""Two CLIPs, a salient-object model and maybe an Inception, looking at one finished picture."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime
from pydantic import Field

from adbooster import choose, images, layout, seen
from adbooster.errors import ConfigError
from adbooster.gates import Inspector
from adbooster.mask import U2Net
from adbooster.objects import Root, content_hash, local_copy, refuse_pickles
from adbooster.rank import Ranker
from adbooster.recipe import Gates, digest
from adbooster.settings import JobConfig, Uri

INCEPTION_PX = 299


class Judging(JobConfig):
    """Models that look at creatives."""

    rank_model: Uri
    """The CLIP that ranked: a folder that open_clip saved."""
    judge_model: Uri
    """The CLIP that judges; another one than ranked, for a model that chose its own winners says little about them."""
    mask_model: Uri = ""
    """U2-Net family model (.onnx) that looks for grown products and second copies; empty: not looked for."""
    inception_model: Uri = ""
    """ONNX network, float pictures [N,3,299,299] of -1 to 1 in, features [N,D] out: the Inception of FID and KID;
    empty: both are computed on the judge's features and named so."""
    zero_shot: bool = True
    """Look for people and writing by zero-shot CLIP (the judge); off for a CLIP that never learned of either."""
    device: str = Field("cuda", pattern="^(cuda|cpu)$")
    """Where the models run; never chosen by what is there."""
    threads: int = Field(1, ge=1)
    """CPU threads an actor."""


def check(config: Judging) -> None:
    """raises ConfigError for a model that is missing, cannot be read, or judges what it ranked itself"""
    paths = {name: local_copy(getattr(config, name)) for name in ("rank_model", "judge_model")}
    for name, path in paths.items():
        if not (path / "open_clip_config.json").is_file():
            raise ConfigError(f"the {name} {getattr(config, name)} has no open_clip_config.json")
        refuse_pickles(path)
    if content_hash(paths["rank_model"]) == content_hash(paths["judge_model"]):
        raise ConfigError(f"judge_model {config.judge_model} is the model that ranks; give another CLIP")
    for uri in (config.mask_model, config.inception_model):
        if uri and local_copy(uri).suffix != ".onnx":
            raise ConfigError(f"the model {uri} is not an .onnx file")
    Root(config.root_uri).check_writable()


def revision(config: Judging) -> str:
    """16 hex digits of all that decides what is seen: looks of other models are other looks."""
    uris = (config.rank_model, config.judge_model, config.mask_model, config.inception_model)
    return digest(*(content_hash(local_copy(u)) if u else "" for u in uris), str(config.zero_shot))[:16]


class Inception:
    """An ONNX network that gives features [N,D] of pictures."""

    def __init__(self, path: Path, device: str, threads: int):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
        self.session = onnxruntime.InferenceSession(str(path), options, providers=[provider])

    def features(self, picture_u8: np.ndarray) -> np.ndarray:
        small = images.resize(picture_u8, INCEPTION_PX, INCEPTION_PX)
        x_1CHW = (np.float32(small) / 127.5 - 1).transpose(2, 0, 1)[None]
        return np.asarray(self.session.run(None, {self.session.get_inputs()[0].name: x_1CHW})[0]).reshape(-1)


class Eyes:
    """Everything that is measured on a picture. `ranker`: one that is loaded already."""

    def __init__(self, root: Root, config: Judging, ranker: Ranker | None = None):
        device, threads = config.device, config.threads
        self.root = root
        self.rank = ranker or Ranker(local_copy(config.rank_model), device, threads)
        self.judge = Ranker(local_copy(config.judge_model), device, threads)
        net = U2Net(local_copy(config.mask_model), device, threads) if config.mask_model else None
        most = 1.0 if config.zero_shot else None  # a gate that is never failed: its figure is what is wanted
        everything = Gates(max_expansion_share=1e9, max_copy_similarity=1.0, max_people=most, max_text=most)
        self.inspector = Inspector(everything, self.judge, net, None)
        path = config.inception_model
        self.inception = Inception(local_copy(path), device, threads) if path else None
        self.cutout = lru_cache(32)(self._cutout)
        self.own = lru_cache(4096)(self._own)
        self.on_white = lru_cache(4096)(self._on_white)

    def scores(self, pictures_u8: list[np.ndarray], text: str) -> dict:
        """Cosines of pictures and a text under both models, and which picture `rank` prefers (the first of equals)."""
        ranked, judged = ((m.embed_images(pictures_u8) @ m.embed_texts([text])[0]) for m in (self.rank, self.judge))
        return {"rank_scores": ranked.tolist(), "judge_scores": judged.tolist(), "best": int(np.argmax(ranked))}

    def baselines(self, row: dict) -> dict:
        """The product's own pictures against the row's text: of each kind the one that `rank` prefers, as of creatives.

        row  text, neutral_uris, contextual_uris, photo_uri, mask_uri; a product without a picture on a plain ground is
             put on white
        """
        neutral = [self.own(u) for u in row["neutral_uris"] or ()] or [self.on_white(row["photo_uri"], row["mask_uri"])]
        found = self._best("neutral", neutral, row["text"])
        return found | self._best("contextual", [self.own(u) for u in row["contextual_uris"] or ()], row["text"])

    def _best(self, kind: str, pictures: list[tuple[np.ndarray, np.ndarray]], text: str) -> dict:
        if not pictures:
            return {f"{kind}_rank": None, f"{kind}_judge": None}
        rank, judge = (m.embed_texts([text])[0] for m in (self.rank, self.judge))
        ranked = [float(own[0] @ rank) for own in pictures]
        best = int(np.argmax(ranked))
        return {f"{kind}_rank": ranked[best], f"{kind}_judge": float(pictures[best][1] @ judge)}

    def figures(self, picture_u8: np.ndarray, cutout: layout.Cutout, box: layout.Box, text: str) -> dict:
        """What CLIP's score does not see, by column of schema.LOOKS; picture_u8 as read from the stored file."""
        alpha = np.zeros(picture_u8.shape[:2], np.uint8)
        alpha[box.slices] = cutout.scaled(box.width_px, box.height_px).alpha
        scene = choose.scene_only(picture_u8, alpha)
        vector = self.judge.embed_images([scene])[0]
        _, found = self.inspector.look(picture_u8, alpha, vector, text)
        found["text_in_scene"] = found.pop("text", None)
        phash, simhash = choose.marks(scene, vector)
        found |= seen.identity(picture_u8, cutout, box) | seen.light(picture_u8, alpha)
        return found | {
            "background_phash": phash,
            "background_simhash": simhash,
            "scene_vector": vector.tolist(),
            "features": self.features(picture_u8).tolist(),
        }

    def features(self, picture_u8: np.ndarray) -> np.ndarray:
        """What FID and KID compare: Inception's features, or the judge's unit vector of the whole picture."""
        return self.inception.features(picture_u8) if self.inception else self.judge.embed_images([picture_u8])[0]

    def _own(self, photo_uri: str) -> tuple[np.ndarray, np.ndarray]:
        return self._both(images.decode(self.root.read(photo_uri)))

    def _on_white(self, photo_uri: str, mask_uri: str) -> tuple[np.ndarray, np.ndarray]:
        cutout = self.cutout(photo_uri, mask_uri)
        high, wide = cutout.alpha.shape
        side = round(max(high, wide) * 1.25)
        box = layout.Box((side - wide) // 2, (side - high) // 2, wide, high)
        return self._both(layout.compose(np.full((side, side, 3), 255, np.uint8), cutout, box))

    def _both(self, picture_u8: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.rank.embed_images([picture_u8])[0], self.judge.embed_images([picture_u8])[0]

    def _cutout(self, photo_uri: str, mask_uri: str) -> layout.Cutout:
        photo = images.decode(self.root.read(photo_uri))
        return layout.cut(photo, images.decode_mask(self.root.read(mask_uri)))
