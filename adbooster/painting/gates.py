"""What CLIP's score does not see: whether the product grew, floats or was painted twice, its light, people, writing,
unsafe scenes."""

import re

import numpy as np
from scipy import ndimage

from adbooster.contracts.recipe import Gates
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
        self, picture_u8: np.ndarray, alpha_u8: np.ndarray, scene_vector: np.ndarray, text: str
    ) -> tuple[str | None, dict]:
        """The reject word of the first gate that fails (None: all pass), and the figures of all gates that are set.

        picture_u8    uint8 [H,W,3]; alpha_u8 uint8 [H,W], the product in it
        scene_vector  CLIP unit vector of the picture without its product
        text          the cohort's, which may ask for people
        """
        gates, word = self.gates, None
        figures: dict = {}
        if self.net and (gates.max_expansion_share is not None or gates.max_copy_similarity is not None):
            figures |= self._shapes(picture_u8, alpha_u8)
            if _over(figures["copy_similarity"], gates.max_copy_similarity):
                word = "second_copy"
            elif _over(figures["expansion_share"], gates.max_expansion_share):
                word = "product_expanded"
        if gates.max_people is not None and not asks_for_people(text):
            figures["people"] = self.ranker.probability(scene_vector, PEOPLE, NO_PEOPLE)
            word = word or ("people_not_asked" if _over(figures["people"], gates.max_people) else None)
        if gates.max_text is not None:
            figures["text"] = self.ranker.probability(scene_vector, TEXT, NO_TEXT)
            word = word or ("text_in_scene" if _over(figures["text"], gates.max_text) else None)
        if self.safety:
            figures["unsafe"] = self.safety.unsafe(picture_u8)
            word = word or ("unsafe" if figures["unsafe"] else None)
        return word, figures

    def _shapes(self, picture_u8: np.ndarray, alpha_u8: np.ndarray) -> dict:
        assert self.net is not None
        product = images.resize(alpha_u8, INSPECT_PX, INSPECT_PX) > 127
        salient = self.net.probabilities(images.resize(picture_u8, INSPECT_PX, INSPECT_PX)) > 0.5
        return {
            "expansion_share": expansion_share(product, salient),
            "copy_similarity": self._copy_similarity(picture_u8, product, salient),
        }

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
        vectors = self.ranker.embed_images(crops)
        return float((vectors[1:] @ vectors[0]).max())


def _crop(picture_u8: np.ndarray, window: tuple[slice, slice]) -> np.ndarray:
    """The part of the picture that a window of the INSPECT_PX square shows."""
    high, wide = (n / INSPECT_PX for n in picture_u8.shape[:2])
    ys, xs = window
    return picture_u8[int(ys.start * high) : int(ys.stop * high) + 1, int(xs.start * wide) : int(xs.stop * wide) + 1]


def _over(value: float | None, most: float | None) -> bool:
    return value is not None and most is not None and value > most
