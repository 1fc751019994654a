"""Feeds as files below delivery/<channel>/: whole or not at all, with what changed since the last one beside them.

A feed's own file is named by its content and never changes; then the file that channels fetch is replaced, and last the
pointer latest.json, which names both and the delta.
"""

import csv
import hashlib
import io
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pydantic import ValidationError

from adbooster.channels.feeds import Feed, FeedSettings, FileKind
from adbooster.contracts.errors import AdboosterError, ConfigError, PublishConflict
from adbooster.contracts.redaction import redact
from adbooster.deliver.config import FeedReport
from adbooster.deliver.sources import Sources, State
from adbooster.storage import lock
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)
FORMAT = "adbooster-delivery-1"
POINTER = "latest.json"
ATTEMPTS = 5  # of making a feed again that other runs overtake


class Difference(NamedTuple):
    """Entries of a feed against those of the feed before it, by id."""

    added: list[str]
    changed: list[str]
    removed: list[str]


def folder(channel: str) -> str:
    """Where a channel's feed lies; relative to the root."""
    return f"delivery/{channel}"


def encode(feed: Feed, only: list[str] | None = None) -> bytes:
    """The feed's file, or one of some entries `only`; UTF-8.

    raises  AdboosterError if another reader would not find the same entries in it
    """
    entries = feed.entries if only is None else {key: feed.entries[key] for key in only}
    if feed.kind == "json":
        content = json.dumps({"format": FORMAT, "entries": list(entries.values())}, indent=1, sort_keys=True) + "\n"
    else:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n", **_dialect(feed.kind))
        writer.writerow(feed.columns)
        writer.writerows([entry[name] for name in feed.columns] for entry in entries.values())
        content = text.getvalue()
    if parse(content.encode(), feed.kind, feed.key) != entries:
        raise AdboosterError("a feed does not read back as it was written; nothing was published")
    return content.encode()


def parse(content: bytes, kind: FileKind, key: str) -> dict[str, dict[str, Any]]:
    """The entries of a feed's file by id."""
    if kind == "json":
        return {entry[key]: entry for entry in json.loads(content)["entries"]}
    reader = csv.DictReader(io.StringIO(content.decode(), newline=""), **_dialect(kind))
    return {row[key]: dict(row) for row in reader}


def _dialect(kind: FileKind) -> dict[str, Any]:
    """Google's tab-delimited text knows no quotes; tabs and line ends are in no value."""
    if kind == "tsv":
        return {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
    return {"quoting": csv.QUOTE_MINIMAL}


def difference(before: dict[str, dict], now: dict[str, dict]) -> Difference:
    both = before.keys() & now.keys()
    return Difference(
        added=sorted(now.keys() - before.keys()),
        changed=sorted(key for key in both if before[key] != now[key]),
        removed=sorted(before.keys() - now.keys()),
    )


def read_pointer(root: Root, channel: str) -> dict[str, Any] | None:
    """What latest.json of a channel says; None if it has no feed yet."""
    try:
        return json.loads(root.read(f"{folder(channel)}/{POINTER}"))
    except FileNotFoundError:
        return None


@dataclass(frozen=True)
class Ready:
    """A feed that is encoded and checked, and not written yet."""

    settings: FeedSettings
    feed: Feed
    content: bytes
    differing: Difference
    last: dict[str, Any] | None
    report: FeedReport

    @property
    def entries_before(self) -> int:
        """Of the last feed."""
        return len(self.feed.entries) - len(self.differing.added) + len(self.differing.removed)


def channels(root: Root) -> list[str]:
    """Every channel that has a feed, or the files of one that a killed run began."""
    return [name for name in root.folders("delivery") if root.files(folder(name))]


def read_settings(root: Root, channel: str) -> FeedSettings:
    """The settings that a channel's last feed was made with.

    raises  ConfigError where they are gone, or another version wrote them and they cannot be read
    """
    stored = _stored_settings(root, channel)
    if stored is None:
        raise ConfigError(f"{_settings_file(channel)} is gone; run jobs.deliver for {channel} once")
    try:
        return FeedSettings.model_validate(stored)
    except ValidationError as e:
        raise ConfigError(
            f"{_settings_file(channel)} was written by another version; run jobs.deliver for {channel} once"
        ) from e


def _stored_settings(root: Root, channel: str) -> dict[str, Any] | None:
    try:
        return json.loads(root.read(_settings_file(channel)))
    except FileNotFoundError:
        return None


def _settings_file(channel: str) -> str:
    """Beside delivery/, which is public: settings name addresses of the shop."""
    return f"channels/{channel}.json"


def ready(root: Root, settings: FeedSettings, feed: Feed) -> Ready:
    """A feed beside the last one of its channel; nothing is written.

    raises  AdboosterError for a feed that does not read back
    """
    last = read_pointer(root, settings.channel.name)
    differing = difference(_entries(root, last), feed.entries)
    left_out = {word: n for word, n in sorted(feed.left_out.items()) if n}
    report = FeedReport(
        entries=len(feed.entries),
        added=len(differing.added),
        changed=len(differing.changed),
        removed=len(differing.removed),
        left_out=left_out,
    )
    return Ready(settings, feed, encode(feed), differing, last, report)


def _entries(root: Root, pointer: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """What the feed that a pointer names holds, by id; nothing where it is gone."""
    try:
        return parse(root.read(pointer["feed"]), pointer["kind"], pointer["key"]) if pointer else {}
    except FileNotFoundError:
        return {}


def remade(root: Root, channel: str, sources: Sources) -> Ready:
    """A channel's feed with the settings of its last one; what a catalog that cannot be read would say is taken from that."""
    settings = read_settings(root, channel)
    return ready(root, settings, sources.feed(settings, _entries(root, read_pointer(root, channel))))


def renew(root: Root, channel: str, run_id: str, sources_of: Callable[[State], Sources] | None = None) -> FeedReport:
    """Make a channel's feed again from the tables as they are, without what was withdrawn, until no run overtakes it.

    sources_of  a state; read from the tables if not given
    raises  PublishConflict if others commit all the time; ConfigError as `read_settings`
    """
    for _ in range(ATTEMPTS):
        state = State.read(root)
        try:
            sources = sources_of(state) if sources_of else Sources.of(root, state)
            return _write(root, remade(root, channel, sources), state, run_id)
        except PublishConflict as e:
            log.info("the feed of %s is made again: %s", channel, e)
    raise PublishConflict(f"{ATTEMPTS} times another run committed while the feed of {channel} was written; try again")


def publish(root: Root, made: Ready, state: State, run_id: str) -> FeedReport:
    """Make a feed what the channel fetches; an unchanged one is left as it is.

    state   that it was made from
    raises  PublishConflict if anything was committed to deliveries or withdrawn since: the last feed stays, or, where that is
            noticed too late for it, the feed is made again from the tables as they are; LockLost if another night runs
    """
    lock.fence(root)
    _check_current(root, state)
    try:
        return _write(root, made, state, run_id)
    except PublishConflict:
        renew(root, made.settings.channel.name, run_id)
        raise


def _write(root: Root, made: Ready, state: State, run_id: str) -> FeedReport:
    """Write a feed where it differs from what is there.

    raises  PublishConflict if it was overtaken before its pointer, or just after: what channels fetch is to be made again then
    """
    name, kind, last = folder(made.settings.channel.name), made.feed.kind, made.last
    stable, sha256 = f"{name}/feed.{kind}", hashlib.sha256(made.content).hexdigest()
    report = made.report.model_copy(
        update={"uri": f"{root.uri}/{stable}", "pointer_uri": f"{root.uri}/{name}/{POINTER}"}
    )
    pointer: dict[str, Any] = {
        "format": FORMAT,
        "channel": made.settings.channel.name,
        "kind": kind,
        "key": made.feed.key,
        "feed": f"{name}/{sha256}.{kind}",
        "fetch": stable,
    }
    settings = redact(made.settings.model_dump(mode="json"))
    if _stored_settings(root, made.settings.channel.name) != settings:
        root.write_json(_settings_file(made.settings.channel.name), settings)
    named = last is not None and all(last.get(key) == value for key, value in pointer.items())
    if named and _sha256(root, stable) == sha256:
        return report
    if named:  # a killed run left another feed there than the pointer names
        root.write(stable, made.content)
        _check_current(root, state)
        return report
    delta = encode(made.feed, made.differing.added + made.differing.changed)
    changes = json.dumps(made.differing._asdict(), indent=1).encode()
    pointer |= {
        "previous": last["feed"] if last else None,
        "delta": _named(name, delta, f"delta.{kind}"),
        "changes": _named(name, changes, "changes.json"),
        "entries": len(made.feed.entries),
        **{word: len(ids) for word, ids in made.differing._asdict().items()},
        "deliveries_version": state.version,
        "run_id": run_id,
        "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    root.write(pointer["feed"], made.content)
    root.write(pointer["delta"], delta)
    root.write(pointer["changes"], changes)
    root.write(stable, made.content)
    _check_current(root, state)
    root.write(f"{name}/{POINTER}", (json.dumps(pointer, indent=2) + "\n").encode())
    _check_current(root, state)
    kept = {stable, f"{name}/{POINTER}", *(pointer[key] for key in ("feed", "previous", "delta", "changes"))}
    root.remove(path for file in root.files(name) if (path := f"{name}/{file}") not in kept and _OURS.fullmatch(file))
    return report


_OURS = re.compile(r"[0-9a-f]{64}\.(changes\.|delta\.)?(tsv|csv|json)")


def _named(folder: str, content: bytes, extension: str) -> str:
    return f"{folder}/{hashlib.sha256(content).hexdigest()}.{extension}"


def _sha256(root: Root, relative: str) -> str | None:
    """Of a file's content; None if it is not there."""
    try:
        return hashlib.sha256(root.read(relative)).hexdigest()
    except FileNotFoundError:
        return None


def _check_current(root: Root, state: State) -> None:
    now = State.read(root)
    if now.withdrawn != state.withdrawn:
        raise PublishConflict(
            "something was withdrawn while feeds were written; run again: files that are made are kept"
        )
    if now.version != state.version:
        raise PublishConflict(
            f"tables/deliveries was at version {state.version} when these feeds were made and another run has committed "
            "since; run again: files that are made are kept"
        )
