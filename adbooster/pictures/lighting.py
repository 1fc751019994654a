"""Light and ground: where they are in a scene, where light comes from on a product, and whether the two agree.

Everything is measured on small pictures (LOOK_PX on the longer side), so that it costs a few milliseconds at any size,
and follows from the pixels alone.
"""

from dataclasses import asdict, dataclass

import numpy as np
from scipy import ndimage

from adbooster.pictures import colours, images
from adbooster.pictures.cutouts import ON, Cutout

LOOK_PX = 96
RIM_PX = 3  # of LOOK_PX: how wide the rim of the product and the ring round it are
STEP_PX = 3  # of LOOK_PX: half the height over which a step in colour is measured
MOST = 15.0  # CIELAB distance above which a step counts no more
SURE = 0.3  # confidence from which on a horizon is one
BANDS = 5  # parts of the width in each of which the ground may begin at another height
BAND_LEEWAY = 0.15  # of the height, by which it may differ there; what differs more is a thing on the ground
FOOT = 0.08  # of the product's height: how far from its lowest row a column still touches the ground
MERGES = 0.06  # of the product's height: a horizon this near to its top touches it


@dataclass(frozen=True)
class Light:
    """Where light comes from in the picture's plane: 0 is the right, 90 above, 180 the left; confidence 0-1."""

    angle_deg: float
    confidence: float

    @property
    def sideways(self) -> float:
        """-1 from the left to 1 from the right."""
        return float(np.cos(np.radians(self.angle_deg)))


@dataclass(frozen=True)
class Ground:
    """Where the ground begins, as a share of the height from above, for the picture and each of BANDS columns."""

    line: float
    bands: tuple[float, ...]
    confidence: float


@dataclass(frozen=True)
class Agreement:
    """How a product and the scene round it agree; the column `light` of tables/creatives.

    colour_distance   mean CIEDE2000 between the product's rim and the scene just outside it, above its shadow
    light_opposition  0-1: how surely light comes from opposite sides on the product and in the scene
    ground_line       share of the height at which the ground begins; null where none is found
    contact_share     share of the product's lowest edge that lies on the ground; null where no ground is found
    clash             0-1, the worst of: opposite light, a product above the ground, a horizon that touches its top
    """

    colour_distance: float | None
    scene_light_deg: float
    scene_light_confidence: float
    product_light_deg: float
    product_light_confidence: float
    light_opposition: float
    ground_line: float | None
    contact_share: float | None
    clash: float

    def figures(self) -> dict:
        return asdict(self)


def agreement(scene_u8: np.ndarray, alpha_u8: np.ndarray, product_light: Light, picture_u8: np.ndarray) -> Agreement:
    """All figures of one candidate.

    scene_u8    uint8 [H,W,3], what was painted, of any size
    alpha_u8    uint8 [h,w], the product in the whole picture
    picture_u8  uint8 [h,w,3], the product before the scene
    """
    alpha, light, ground = _looked_at(scene_u8, alpha_u8)
    share = None if ground is None else contact_share(alpha, ground)
    opposed = opposition(light, product_light)
    return Agreement(
        colour_distance=rim_distance(colours.lab(images.resize(picture_u8, *_small(alpha_u8))), alpha),
        scene_light_deg=light.angle_deg,
        scene_light_confidence=light.confidence,
        product_light_deg=product_light.angle_deg,
        product_light_confidence=product_light.confidence,
        light_opposition=opposed,
        ground_line=None if ground is None else ground.line,
        contact_share=share,
        clash=max(opposed, 0.0 if share is None else 1 - share, 0.5 * _merges(alpha, ground)),
    )


def light_of(scene_u8: np.ndarray, alpha_u8: np.ndarray) -> Light:
    """Where light comes from in a scene, seen from the product in it; arrays as for `agreement`."""
    return _looked_at(scene_u8, alpha_u8)[1]


def _looked_at(scene_u8: np.ndarray, alpha_u8: np.ndarray) -> tuple[np.ndarray, Light, Ground | None]:
    """The small alpha, and the scene's light and ground where the product does not hide it."""
    small = _small(alpha_u8)
    alpha = images.resize(alpha_u8, *small)
    visible = np.asarray(ndimage.maximum_filter(alpha, 5) == 0)
    lab = colours.lab(images.resize(scene_u8, *small))
    ground = find_ground(lab, visible)
    return alpha, scene_light(lab[..., 0] / 100, visible, ground, _centre(alpha)), ground


def _small(array: np.ndarray) -> tuple[int, int]:
    high, wide = array.shape[:2]
    factor = LOOK_PX / max(high, wide)
    return max(8, round(wide * factor)), max(8, round(high * factor))


def _centre(alpha_u8: np.ndarray) -> tuple[float, float]:
    """(x, y) of the middle of the product."""
    ys, xs = np.nonzero(alpha_u8 > ON)
    if not len(ys):
        return alpha_u8.shape[1] / 2, alpha_u8.shape[0] / 2
    return (xs.min() + xs.max()) / 2, (ys.min() + ys.max()) / 2


def find_ground(lab: np.ndarray, visible: np.ndarray) -> Ground | None:
    """The horizon: the row over which colour changes in most columns; None where no row stands out.

    A step counts up to MOST and hardly beyond, so that a horizon seen across the width outweighs the strong edges of
    single things, and is found where it is strongest.

    lab      float [h,w,3], CIELAB
    visible  bool [h,w], where the scene is to be seen
    """
    smooth = ndimage.gaussian_filter(lab, (1, 2, 0))
    steps = np.zeros(visible.shape, np.float32)
    steps[STEP_PX:-STEP_PX] = np.linalg.norm(smooth[2 * STEP_PX :] - smooth[: -2 * STEP_PX], axis=-1)
    steps = np.where(visible, np.minimum(steps, MOST) + 0.03 * steps, 0)
    high = len(lab)
    row, confidence = _horizon(steps, visible)
    if confidence < SURE:
        return None
    bands = []
    for some, seen in zip(np.array_split(steps, BANDS, axis=1), np.array_split(visible, BANDS, axis=1), strict=True):
        own, sure = _horizon(some, seen)
        bands.append((own if sure >= SURE and abs(own - row) <= BAND_LEEWAY * high else row) / high)
    return Ground(row / high, tuple(bands), confidence)


def _horizon(steps: np.ndarray, visible: np.ndarray) -> tuple[int, float]:
    """(row, confidence 0-1) of the strongest mean step, between a fifth of the height and nearly its end."""
    seen = visible.sum(axis=1)
    high = len(steps)
    means = steps.sum(axis=1) / np.maximum(seen, 1)
    usual = float(np.median(means[seen > 0])) if seen.any() else 0.0
    means[(seen < visible.shape[1] / 5) | (np.arange(high) < high / 5)] = 0
    best = int(np.argmax(means))
    return best, float(np.clip((means[best] - usual) / (0.6 * MOST), 0, 1))


def contact_share(alpha_u8: np.ndarray, ground: Ground) -> float | None:
    """Share of the product's lowest edge, in columns, that lies below where the ground begins; None without a product."""
    lowest, touches = base(alpha_u8)
    columns = np.nonzero(touches)[0]
    if not len(columns):
        return None
    high, wide = alpha_u8.shape
    begins = np.concatenate(
        [np.full(len(c), b) for c, b in zip(np.array_split(np.arange(wide), BANDS), ground.bands, strict=True)]
    )
    return float((lowest[columns] + 1 >= begins[columns] * high).mean())


def base(alpha_u8: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each column the product's lowest row (-1: none), and whether it is near enough to the lowest of all to touch."""
    solid = alpha_u8 > ON
    high = len(solid)
    lowest = np.where(solid.any(axis=0), high - 1 - np.argmax(solid[::-1], axis=0), -1)
    rows = np.nonzero(solid.any(axis=1))[0]
    if not len(rows):
        return lowest, np.zeros(solid.shape[1], bool)
    return lowest, lowest >= rows[-1] - max(1.0, FOOT * (rows[-1] - rows[0] + 1))


def scene_light(
    luminance: np.ndarray, visible: np.ndarray, ground: Ground | None, seen_from: tuple[float, float]
) -> Light:
    """The direction from a point (x, y) to the brightest part of the scene above the ground.

    luminance  float [h,w], 0-1. Confidence is how much that part stands out in brightness times how narrow it is: a
    sky that is as bright on the left as on the right says nothing.
    """
    high, wide = luminance.shape
    ys, xs = np.nonzero(visible & (np.arange(high)[:, None] < high * (ground.line if ground else 0.6)))
    if len(ys) < high * wide / 50:
        return Light(90.0, 0.0)
    values = ndimage.gaussian_filter(luminance, 2)[ys, xs]
    middle, bright = np.quantile(values, (0.5, 0.9))
    weight = np.maximum(values - bright, 0) ** 2 + 1e-12
    x, y = np.average(xs, weights=weight), np.average(ys, weights=weight)
    narrow = 1 - min(1.0, float(np.sqrt(np.average((xs - x) ** 2, weights=weight))) / max(float(xs.std()), 1e-6))
    stands_out = min(1.0, float(values[values >= bright].mean() - middle) / 0.25)
    angle = np.degrees(np.arctan2(max(seen_from[1] - y, 1.0), x - seen_from[0]))
    return Light(float(angle), max(0.0, stands_out * narrow))


def product_light(cutout: Cutout) -> Light:
    """Where the light on a product comes from, by its shading along the outline.

    There the surface turns away from the eye, so that its normal lies in the picture's plane and is the outline's:
    brightness is a line in the normal, whose slope is the light. Confidence is the share of the variance that this
    explains, lower where the slope is slight. Source: Johnson & Farid, Exposing Digital Forgeries by Detecting
    Inconsistencies in Lighting, 2005.
    """
    small = cutout.scaled(*_small(cutout.alpha))
    alpha = np.pad(small.alpha, 4)
    luminance = colours.lab(np.pad(small.pixels, ((4, 4), (4, 4), (0, 0))))[..., 0] / 100
    depth = np.asarray(ndimage.distance_transform_edt(alpha > 250))
    outline = (depth >= 2) & (depth <= 2 + RIM_PX)
    if outline.sum() < 40:
        return Light(90.0, 0.0)
    down, right = (
        np.asarray(slope)[outline] for slope in np.gradient(ndimage.gaussian_filter(alpha.astype(np.float32), 3))
    )
    length = np.maximum(np.hypot(right, down), 1e-6)
    terms = np.column_stack([np.ones_like(length), -right / length, -down / length])
    values = luminance[outline]
    fitted = np.linalg.lstsq(terms, values, rcond=None)[0]
    _, light_right, light_down = fitted
    spread = float(((values - values.mean()) ** 2).sum())
    left_over = float(((values - terms @ fitted) ** 2).sum())
    explained = 1 - left_over / spread if spread > 1e-6 else 0.0
    strength = min(1.0, float(np.hypot(light_right, light_down)) / 0.1)
    return Light(float(np.degrees(np.arctan2(-light_down, light_right))), max(0.0, explained * strength))


def opposition(a: Light, b: Light) -> float:
    """0-1: how far two lights come from opposite sides, left and right, times how sure both are."""
    return max(0.0, -a.sideways * b.sideways) * (a.confidence * b.confidence) ** 0.5


def rim_distance(lab: np.ndarray, alpha_u8: np.ndarray) -> float | None:
    """Mean CIEDE2000 between the product's rim and the nearest pixels of the scene; None without a product.

    The lowest fifth is left out: there the scene lies in the product's shadow.

    lab  float [h,w,3] of the whole picture
    """
    product, scene = alpha_u8 > 250, alpha_u8 == 0
    depth = np.asarray(ndimage.distance_transform_edt(product))
    rim = (depth > 0) & (depth <= RIM_PX)
    rows = np.nonzero(product.any(axis=1))[0]
    rim[round(rows[0] + 0.8 * (rows[-1] + 1 - rows[0])) if len(rows) else 0 :] = False
    if not rim.any() or not scene.any():
        return None
    hidden = np.logical_not(scene)
    near = np.asarray(ndimage.distance_transform_edt(hidden, return_distances=False, return_indices=True))
    ys, xs = (n[rim] for n in near)
    return float(colours.ciede2000(lab[rim], lab[ys, xs]).mean())


def _merges(alpha_u8: np.ndarray, ground: Ground | None) -> float:
    """1 where the horizon touches the product's top, falling to 0 at MERGES of its height from it."""
    rows = np.nonzero((alpha_u8 > ON).any(axis=1))[0]
    if ground is None or not len(rows):
        return 0.0
    away = abs(ground.line * len(alpha_u8) - rows[0]) / (rows[-1] - rows[0] + 1)
    return ground.confidence * max(0.0, 1 - away / MERGES)
