"""Stages whose networks take the time that they take on an H100, by sleeping: for measuring what happens around them.

The pictures that come out are made; nothing here says anything about quality, and nothing about a GPU but its time.
"""

import time

import numpy as np
import pyarrow as pa

from adbooster.painting.finish import Finisher
from adbooster.painting.painter import Painter
from adbooster.painting.placing import Placer
from adbooster.pictures import images
from adbooster.tiny import world

REQUEST_S = 0.3  # SD 1.5, four candidates, 512 px, 25 steps
U2NET_S = 0.01
CONDITION_S = 0.01


class SleepingOutpainter:
    """In place of the UNet: sleeps, and hands out scenes of the tiny world."""

    def __init__(self, real, recipe):
        self.batch, self.recipe = real.batch, recipe
        size = recipe.paint_size("square")
        self.scenes = [images.resize(world.compose(s, "mug", 256, 3)[0], *size, bicubic=True) for s in world.SCENES]

    def condition(self, image_u8, product_mask_u8):
        time.sleep(CONDITION_S)
        return None

    def paint(self, paintings, *_):
        time.sleep(REQUEST_S * len(paintings) / self.recipe.candidates)
        return [self.scenes[p.seed % len(self.scenes)] for p in paintings]


class SleepingNet:
    """In place of U2-Net: sleeps, and finds nothing."""

    def probabilities_of(self, pictures_u8):
        time.sleep(U2NET_S * len(pictures_u8))
        return [np.zeros(p.shape[:2], np.float32) for p in pictures_u8]


class SleepingPainter(Painter):
    """A painter with the networks above; CLIP and all that is no network are real."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.outpainter = self.conditions.outpainter = SleepingOutpainter(self.outpainter, self.recipe)
        if self.inspector.net is not None:
            self.inspector.net = SleepingNet()


class OneActor:
    """Placing, painting and finishing in one actor in turn, as it was before they were split."""

    def __init__(self, root, config, recipe_id, weights_revision):
        self.stages = [
            Placer(root, config),
            SleepingPainter(config),
            Finisher(root, config, recipe_id, weights_revision),
        ]

    def __call__(self, rows: pa.Table) -> pa.Table:
        for stage in self.stages:
            rows = stage(rows)
        return rows
