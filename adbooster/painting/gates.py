"""What CLIP's score does not see: whether the product grew, floats or was painted twice, its light, people, writing,
unsafe scenes."""

import re
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from adbooster.contracts.recipe import Gates
from adbooster.engine.stage_process import in_network
from adbooster.models.clip import Clip
from adbooster.models.safety import Safety
from adbooster.models.saliency import SaliencyNet
from adbooster.pictures import images
from adbooster.pictures.lighting import Agreement

INSPECT_PX = 320
PEOPLE = ("a photo of a person", "a photo of people", "a portrait of a face")
NO_PEOPLE = ("a photo of an empty place", "a landscape without people", "a still life")
TEXT = ("an image with text written on it", "a watermark over a photo", "a company logo", "a poster with a slogan")
NO_TEXT = ("a photo without any text", "a landscape", "a still life")
_ASKS_FOR_PEOPLE = re.compile(
    r"\b(people|persons?|humans?|m[ae]n|wom[ae]n|boys?|girls?|kids?|child(ren)?|bab(y|ies)|family|families|friends?|"
    r"crowds?|couples?|faces?|models?|portraits?|players?|runners?|hikers?|dancers?)\b",
    re.IGNORECASE,
)


def asks_for_people(text: str) -> bool:
    """Whether a cohort's text mentions people."""
    return bool(_ASKS_FOR_PEOPLE.search(text))


def expansion_share(product: np.ndarray, salient: np.ndarray) -> float:
    """How much the product seems to have grown, as a share of its area: union form, never negative.

    product, salient  bool [H,W]: where the product is, and what a salient-object model finds in the finished picture
    source            E = area(m_out U m_in) - area(m_in), Eshratifar et al., 2024 (arXiv 2404.10157), over area(m_in)
    """
    area = product.sum()
    return float((product | salient).sum() - area) / max(1, int(area))


def clash_word(gates: Gates, agreement: Agreement) -> str | None:
    """The reject word of a scene that does not fit the product's base or light; what was not found fails no gate."""
    share, least = agreement.contact_share, gates.min_contact_share
    if share is not None and least is not None and share < least:
        return "floating"
    return "harsh_light" if _over(agreement.light_opposition, gates.max_light_opposition) else None


class Inspector:
    """Measures finished pictures for the gates; what no gate needs is not computed."""

    def __init__(self, gates: Gates, ranker: Clip, net: SaliencyNet | None, safety: Safety | None):
        self.gates, self.ranker, self.net, self.safety = gates, ranker, net, safety

    def inspect(
        self,
        pictures_u8: Sequence[np.ndarray],
        alphas_u8: Sequence[np.ndarray],
        scene_vectors: Sequence[np.ndarray] | np.ndarray,
        texts: Sequence[str],
    ) -> list[tuple[str | None, dict]]:
        """Of each picture the reject word of the first gate that fails (None: all pass), and the figures of all gates
        that are set; networks see all pictures in one pass.

        pictures_u8    uint8 [H,W,3] of any sizes; alphas_u8 uint8 [H,W], the products in them
        scene_vectors  CLIP unit vectors of the pictures without their products
        texts          the cohorts', which may ask for people
        """
        shapes = self._shapes(pictures_u8, alphas_u8)
        given = zip(pictures_u8, scene_vectors, texts, shapes, strict=True)
        return [self._verdict(*one) for one in given]

    def _verdict(
        self, picture_u8: np.ndarray, scene_vector: np.ndarray, text: str, figures: dict
    ) -> tuple[str | None, dict]:
        gates, word = self.gates, None
        if _over(figures.get("copy_similarity"), gates.max_copy_similarity):
            word = "second_copy"
        elif _over(figures.get("expansion_share"), gates.max_expansion_share):
            word = "product_expanded"
        if gates.max_people is not None and not asks_for_people(text):
            figures["people"] = self._probability(scene_vector, PEOPLE, NO_PEOPLE)
            word = word or ("people_not_asked" if _over(figures["people"], gates.max_people) else None)
        if gates.max_text is not None:
            figures["text"] = self._probability(scene_vector, TEXT, NO_TEXT)
            word = word or ("text_in_scene" if _over(figures["text"], gates.max_text) else None)
        if self.safety:
            with in_network():
                figures["unsafe"] = self.safety.unsafe(picture_u8)
            word = word or ("unsafe" if figures["unsafe"] else None)
        return word, figures

    def _probability(self, vector: np.ndarray, texts: tuple[str, ...], others: tuple[str, ...]) -> float:
        with in_network():
            return self.ranker.probability(vector, texts, others)

    def _shapes(self, pictures_u8: Sequence[np.ndarray], alphas_u8: Sequence[np.ndarray]) -> list[dict]:
        """Figures of the products' shapes; empty where no gate asks for them."""
        asked = self.gates.max_expansion_share is not None or self.gates.max_copy_similarity is not None
        if not (self.net and asked and len(pictures_u8)):
            return [{} for _ in pictures_u8]
        small = [images.resize(p, INSPECT_PX, INSPECT_PX) for p in pictures_u8]
        with in_network():
            maps = self.net.probabilities_of(small)
        out = []
        for picture, alpha, found in zip(pictures_u8, alphas_u8, maps, strict=True):
            product, salient = images.resize(alpha, INSPECT_PX, INSPECT_PX) > 127, found > 0.5
            expansion = expansion_share(product, salient)
            out.append(
                {"expansion_share": expansion, "copy_similarity": self._copy_similarity(picture, product, salient)}
            )
        return out

    def _copy_similarity(self, picture_u8: np.ndarray, product: np.ndarray, salient: np.ndarray) -> float | None:
        """Cosine between the product and the most similar other salient thing over a tenth of its size; None: alone."""
        if self.gates.max_copy_similarity is None:
            return None
        near = np.asarray(ndimage.binary_dilation(product, iterations=3))
        apart = np.zeros(product.shape, np.int32)
        ndimage.label(salient & np.logical_not(near), output=apart)
        sizes = np.bincount(apart.ravel())[1:]
        others = [s for s, size in zip(ndimage.find_objects(apart), sizes, strict=True) if size >= product.sum() / 10]
        if not others or not product.any():
            return None
        crops = [_crop(picture_u8, s) for s in [ndimage.find_objects(product.astype(int))[0], *others]]
        with in_network():
            vectors = self.ranker.embed_images(crops)
        return float((vectors[1:] @ vectors[0]).max())


def _crop(picture_u8: np.ndarray, window: tuple[slice, slice]) -> np.ndarray:
    """The part of the picture that a window of the INSPECT_PX square shows."""
    high, wide = (n / INSPECT_PX for n in picture_u8.shape[:2])
    ys, xs = window
    return picture_u8[int(ys.start * high) : int(ys.stop * high) + 1, int(xs.start * wide) : int(xs.stop * wide) + 1]


def _over(value: float | None, most: float | None) -> bool:
    return value is not None and most is not None and value > most
