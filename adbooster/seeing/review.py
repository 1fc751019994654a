"""A vision model looks at pictures while others are still made; each picture and question is asked about once."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from types import TracebackType
from typing import Self

from adbooster.prompts import endpoint
from adbooster.seeing import sightings
from adbooster.seeing.client import DOWN, Client
from adbooster.seeing.config import Seeing, SeeingFigures
from adbooster.seeing.questions import Answer, Picture, name
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)
# Answers are kept when this is over, between two batches of calls; a run that is killed asks again about those after it.
SAVE_S = 20
SAVE_ROWS = 500
_BATCH = 4  # calls of each connection after which answers may be kept
OVER_BUDGET = "over max_calls"


class Review:
    """Looks at the pictures that it is given, in a thread of its own. Use as a context: what was answered is kept at its end.

    run_id   whose answers from before count against seeing.max_calls
    stop_at  time (as of time.time) after which nothing more is looked at; None: never
    """

    def __init__(self, root: Root, seeing: Seeing, run_id: str, stop_at: float | None = None):
        self.root, self.seeing, self.run_id = root, seeing, run_id
        self.client = Client(seeing, stop_at)
        self.left = max(0, seeing.max_calls - sightings.spent(root, run_id))
        self.kept = sightings.known(root, seeing.model)
        self.answers: dict[str, Answer] = {}
        self.failed: dict[str, str] = {}
        self.known = self.calls = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._given: set[str] = set()
        self._waiting: dict[str, Picture] = {}
        self._unsaved: dict[str, tuple[Picture, Answer]] = {}
        self._saved_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.client.stop_at = 0  # after an error calls may be under way, and no more begin
        self._save()

    def add(self, pictures: Iterable[Picture]) -> None:
        """Look at these as soon as there is time; those that were given before are passed over."""
        named = {name(picture, self.seeing): picture for picture in pictures}
        with self._lock:
            new = {key: picture for key, picture in named.items() if key not in self._given}
            self._given |= new.keys()
            self._waiting |= new
            if self._waiting and self._thread is None and self._error is None:
                self._thread = threading.Thread(target=self._work, name="review", daemon=True)
                self._thread.start()

    def wait(self) -> None:
        """Until all that was given is looked at, or known not to be; what went wrong meanwhile is raised here."""
        while (thread := self._thread) is not None:
            thread.join()
        if self._error is not None:
            raise self._error
        self._save()

    def answer(self, picture: Picture) -> Answer | None:
        """What was seen in a picture; None: nobody has looked at it."""
        return self.answers.get(name(picture, self.seeing))

    def figures(self) -> SeeingFigures:
        """The counts of what was given so far; call `wait` before."""
        return SeeingFigures(
            looked=len(self.answers),
            known=self.known,
            calls=self.calls,
            not_looked=endpoint.reasons(self.failed.values()),
        )

    def report_missing(self) -> None:
        """One line in the log where pictures were not looked at."""
        missing = Counter(self.failed.values())
        if missing:
            why, _ = missing.most_common(1)[0]
            total = len(self.failed) + len(self.answers)
            log.warning("%d of %d pictures were not looked at (mostly: %s)", missing.total(), total, why)

    def _work(self) -> None:
        try:
            while some := self._take():
                self._look_at(some)
        except BaseException as e:
            self._error = e
            self._thread = None

    def _take(self) -> dict[str, Picture]:
        with self._lock:
            some, self._waiting = self._waiting, {}
            if not some:
                self._thread = None
            return some

    def _look_at(self, pictures: dict[str, Picture]) -> None:
        found = {key: self.kept[key] for key in pictures if key in self.kept}
        self.known += len(found)
        self.answers |= found
        new = {key: picture for key, picture in pictures.items() if key not in found}
        affordable = dict(islice(new.items(), self.left))
        self.failed |= dict.fromkeys(new.keys() - affordable.keys(), OVER_BUDGET)
        each = iter(affordable.items())
        while batch := dict(islice(each, _BATCH * self.seeing.concurrency)):
            was_down = self.client.failures >= self.seeing.max_failures
            sent = self.client.ask(
                batch, self.root.read, lambda key, answer: self._answered(key, pictures[key], answer), self._failed
            )
            self.calls, self.left = self.calls + sent, self.left - sent
            if not was_down and self.client.failures >= self.seeing.max_failures:
                log.warning("%s after %d calls in a row: %s", DOWN, self.client.failures, self.seeing.base_url)
            if len(self._unsaved) >= SAVE_ROWS or time.monotonic() - self._saved_at > SAVE_S:
                self._save()

    def _answered(self, key: str, picture: Picture, answer: Answer) -> None:
        self.answers[key] = answer
        with self._lock:
            self._unsaved[key] = picture, answer

    def _failed(self, key: str, why: str) -> None:
        self.failed[key] = why

    def _save(self) -> None:
        with self._lock:
            unsaved, self._unsaved = self._unsaved, {}
        sightings.keep(self.root, self.run_id, self.seeing, unsaved)
        self._saved_at = time.monotonic()
