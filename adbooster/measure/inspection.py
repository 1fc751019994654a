"""All that is measured on one finished picture: by two CLIPs, a salient-object model and, if there is one, an Inception."""

from functools import lru_cache, partial

import numpy as np

from adbooster.contracts.recipe import Gates
from adbooster.measure.config import MeasureConfig
from adbooster.measure.inception import Inception
from adbooster.models.clip import Clip
from adbooster.models.saliency import SaliencyNet
from adbooster.painting.gates import Inspector
from adbooster.painting.placing import read_cutout
from adbooster.pictures import compositing, cutouts, images, layout, proof, quality, scenes
from adbooster.storage.mask_models import mask_model
from adbooster.storage.model_store import local_copy
from adbooster.storage.objects import Root


class PictureMeasurer:
    """Everything that is measured on a picture. `ranker`: one that is loaded already."""

    def __init__(self, root: Root, config: MeasureConfig, ranker: Clip | None = None):
        device, threads = config.device, config.threads
        self.root = root
        self.rank = ranker or Clip(local_copy(config.rank_model), device, threads)
        self.judge = Clip(local_copy(config.judge_model), device, threads)
        masks = mask_model(config.mask_model, config.mask_network) if config.mask_model else None
        net = SaliencyNet(masks.path, device, threads, masks.how) if masks else None
        most = 1.0 if config.zero_shot else None  # a gate that is never failed: its figure is what is wanted
        everything = Gates(max_expansion_share=1e9, max_copy_similarity=1.0, max_people=most, max_text=most)
        self.inspector = Inspector(everything, self.judge, net, None)
        path = config.inception_model
        self.inception = Inception(local_copy(path), device, threads) if path else None
        self.cutout = lru_cache(32)(partial(read_cutout, root))
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
        scores = self._best("neutral", neutral, row["text"])
        return scores | self._best("contextual", [self.own(u) for u in row["contextual_uris"] or ()], row["text"])

    def _best(self, kind: str, pictures: list[tuple[np.ndarray, np.ndarray]], text: str) -> dict:
        if not pictures:
            return {f"{kind}_rank": None, f"{kind}_judge": None}
        rank, judge = (m.embed_texts([text])[0] for m in (self.rank, self.judge))
        ranked = [float(own[0] @ rank) for own in pictures]
        best = int(np.argmax(ranked))
        return {f"{kind}_rank": ranked[best], f"{kind}_judge": float(pictures[best][1] @ judge)}

    def figures(self, picture_u8: np.ndarray, cutout: cutouts.Cutout, box: layout.Box, text: str) -> dict:
        """What CLIP's score does not see, by column of schema.LOOKS; picture_u8 as read from the stored file."""
        alpha = np.zeros(picture_u8.shape[:2], np.uint8)
        alpha[box.slices] = cutout.scaled(box.width_px, box.height_px).alpha
        scene = scenes.scene_only(picture_u8, alpha)
        vector = self.judge.embed_images([scene])[0]
        _, figures = self.inspector.inspect([picture_u8], [alpha], [vector], [text])[0]
        figures["text_in_scene"] = figures.pop("text", None)
        phash, simhash = scenes.marks(scene, vector)
        figures |= proof.identity(picture_u8, cutout, box) | quality.light(picture_u8, alpha)
        return figures | {
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
        return self._both(compositing.compose(np.full((side, side, 3), 255, np.uint8), cutout, box))

    def _both(self, picture_u8: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.rank.embed_images([picture_u8])[0], self.judge.embed_images([picture_u8])[0]
