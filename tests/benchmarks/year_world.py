"""A shop that changes from night to night: which products and cohorts there are, and with what it paints."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adbooster.tiny import world as tiny

MODELS = Path(tiny.__file__).parent / "models"
LEAVE, CHANGE_PHOTO, CHANGE_TITLE, COME_BACK = 0.004, 0.004, 0.002, 0.25  # shares of the products a night; of those new
WEIGHTS_EVERY, COHORT_EVERY = 30, 7  # nights
CRASHES = 0.05  # of the nights
THINGS = ("mug", "lamp", "chair", "coat", "tent", "boot", "watch", "kettle")
SCENES = ("in the snow", "on a beach", "at a party", "in a stadium", "in the woods", "on a market", "at night")


class Tonight(NamedTuple):
    """What changes what is painted tonight, and how the night ends."""

    recipe: int
    weights: int
    crash: str
    """prepared, painted or committing: where the night is stopped; empty: it is not"""


class Shop:
    """The same shop for the same numbers, however often it is begun again: `advance` goes to the next night.

    products, cohorts  how many there are on every night
    nights             of the year: the recipe changes after one and after two thirds of them
    """

    def __init__(self, folder: Path, products: int, cohorts: int, nights: int):
        self.folder, self.nights, self.night = folder, nights, -1
        self.ids, self.next_id = np.arange(products), products
        self.photos, self.titles = np.zeros(products, int), np.zeros(products, int)
        self.gone = np.zeros(0, int)
        self.cohorts = list(range(cohorts))

    def advance(self) -> Tonight:
        self.night += 1
        chance = np.random.default_rng(self.night)
        crash = ("prepared", "painted", "committing")[chance.integers(3)] if chance.random() < CRASHES else ""
        if self.night:
            self._leave_and_come(chance)
            for share, version in ((CHANGE_PHOTO, self.photos), (CHANGE_TITLE, self.titles)):
                version[chance.random(len(self.ids)) < share] += 1
            if self.night % COHORT_EVERY == 0:
                self.cohorts = [*self.cohorts[1:], self.cohorts[-1] + 1]
        recipe = 3 * self.night // max(self.nights, 1)
        return Tonight(recipe, self.night // WEIGHTS_EVERY, crash if self.night else "")

    def _leave_and_come(self, chance: np.random.Generator) -> None:
        leave = np.flatnonzero(chance.random(len(self.ids)) < LEAVE)
        back = min(len(self.gone), int(len(leave) * COME_BACK))
        new = np.arange(self.next_id, self.next_id + len(leave) - back)
        come, self.next_id = np.concatenate([self.gone[:back], new]), self.next_id + len(new)
        self.gone = np.concatenate([self.gone[back:], self.ids[leave]])
        self.ids[leave], self.photos[leave], self.titles[leave] = come, self.night, 0

    def feed(self) -> Path:
        """Tonight's feed; a changed photo has another address."""
        rows = zip(self.ids.tolist(), self.photos.tolist(), self.titles.tolist(), strict=True)
        lines = [f"P{i}\tA {THINGS[i % len(THINGS)]}, edition {t}\tp{i}-{v}.png\n" for i, v, t in rows]
        return self._written("feed.tsv", "id\ttitle\timage_link\n" + "".join(lines))

    def cohort_file(self) -> Path:
        entries = [{"id": f"c{i}", "query": THINGS[i % len(THINGS)], "context": self._context(i)} for i in self.cohorts]
        return self._written("cohorts.yaml", json.dumps(entries))

    def _context(self, i: int) -> str:
        return f"{SCENES[i % len(SCENES)]}, number {i}"

    def weights(self, number: int) -> Path:
        """The tiny model, each month under another name: with one file more than its content hash is another."""
        folder = self.folder / f"weights-{number}"
        if not folder.exists():
            shutil.copytree(MODELS / "outpaint", folder)
            (folder / "scheduler" / "month.json").write_text(json.dumps({"month": number}))
        return folder

    def _written(self, name: str, text: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        path.write_text(text)
        return path
