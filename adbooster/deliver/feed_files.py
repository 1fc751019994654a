"""Feeds as files below delivery/<channel>/: whole or not at all, with what changed since the last one beside them.

A feed's own files, one of each form, are named by their content and never change; then the files that channels fetch are
replaced, and last the pointer latest.json, which names all of them and the deltas.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from adbooster.channels.feed_text import EXTENSIONS, FORMAT, Difference, deletions, difference, encode, parse, target_of
from adbooster.channels.feeds import Feed, FeedSettings
from adbooster.channels.presets import Form
from adbooster.contracts.errors import ConfigError, PublishConflict
from adbooster.contracts.redaction import redact
from adbooster.deliver.config import FeedReport
from adbooster.deliver.sources import Sources, State
from adbooster.storage import lock
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)
POINTER = "latest.json"
ATTEMPTS = 5  # of making a feed again that other runs overtake


def folder(channel: str) -> str:
    """Where a channel's feed lies; relative to the root."""
    return f"delivery/{channel}"


def read_pointer(root: Root, channel: str) -> dict[str, Any] | None:
    """What latest.json of a channel says; None if it has no feed yet."""
    try:
        return json.loads(root.read(f"{folder(channel)}/{POINTER}"))
    except FileNotFoundError:
        return None


@dataclass(frozen=True)
class Ready:
    """A feed that is encoded and checked, and not written yet."""

    feed: Feed
    contents: dict[Form, bytes]
    differing: Difference
    last: dict[str, Any] | None
    report: FeedReport

    @property
    def channel(self) -> str:
        return self.feed.settings.channel.name

    @property
    def entries_before(self) -> int:
        """Of the last feed."""
        return len(self.feed.entries) - len(self.differing.added) + len(self.differing.removed)

    def named(self) -> dict[Form, dict[str, Any]]:
        """What the pointer says of each form, beside what changed in it."""
        name = folder(self.channel)
        files: dict[Form, dict[str, Any]] = {
            form: {"feed": _named(name, content, EXTENSIONS[form]), "fetch": f"{name}/feed.{EXTENSIONS[form]}"}
            for form, content in self.contents.items()
        }
        if "merchant_api" in files:
            files["merchant_api"] |= {"target": target_of(self.feed.settings.feeds)}
        return files


def _files(pointer: dict[str, Any] | None) -> dict[Form, dict[str, Any]]:
    """What a pointer says of each form; one that was written before there were several says it of itself."""
    if pointer is None:
        return {}
    only = {name: pointer[name] for name in ("feed", "fetch", "previous", "delta") if name in pointer}
    return pointer.get("files", {pointer["kind"]: only})


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


def ready(root: Root, feed: Feed) -> Ready:
    """A feed beside the last one of its channel; nothing is written.

    raises  AdboosterError for a feed that does not read back
    """
    last = read_pointer(root, feed.settings.channel.name)
    differing = difference(_entries(root, last), feed.entries)
    left_out = {word: n for word, n in sorted(feed.left_out.items()) if n}
    report = FeedReport(
        entries=len(feed.entries),
        added=len(differing.added),
        changed=len(differing.changed),
        removed=len(differing.removed),
        left_out=left_out,
    )
    return Ready(feed, {form: encode(feed, form) for form in feed.forms}, differing, last, report)


def _entries(root: Root, pointer: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """What the feed that a pointer names holds, by id; nothing where it is gone."""
    try:
        return parse(root.read(pointer["feed"]), pointer["kind"], pointer["key"]) if pointer else {}
    except FileNotFoundError:
        return {}


def remade(root: Root, channel: str, sources: Sources) -> Ready:
    """A channel's feed with the settings of its last one; what a catalog that cannot be read would say is taken from that."""
    settings = read_settings(root, channel)
    return ready(root, sources.feed(settings, _entries(root, read_pointer(root, channel))))


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
        renew(root, made.channel, run_id)
        raise


def _write(root: Root, made: Ready, state: State, run_id: str) -> FeedReport:
    """Write a feed where it differs from what is there.

    raises  PublishConflict if it was overtaken before its pointer, or just after: what channels fetch is to be made again then
    """
    name, last, files = folder(made.channel), made.last, made.named()
    first = made.feed.forms[0]
    report = made.report.model_copy(
        update={"uri": f"{root.uri}/{files[first]['fetch']}", "pointer_uri": f"{root.uri}/{name}/{POINTER}"}
    )
    fetched = {files[form]["fetch"]: content for form, content in made.contents.items()}
    pointer: dict[str, Any] = {"format": FORMAT, "channel": made.channel, "kind": first, "key": made.feed.key}
    settings = redact(made.feed.settings.model_dump(mode="json"))
    if _stored_settings(root, made.channel) != settings:
        root.write_json(_settings_file(made.channel), settings)
    if (
        last is not None
        and all(last.get(key) == value for key, value in pointer.items())
        and _same(files, _files(last))
    ):
        # a killed run can have left another feed there than the pointer names
        _replace(root, {path: content for path, content in fetched.items() if not _holds(root, path, content)}, state)
        return report
    writes = {files[form]["feed"]: content for form, content in made.contents.items()}
    for form, about in files.items():
        changes = _changed(made, form, about)
        about |= {"previous": _files(last).get(form, {}).get("feed")} | {
            key: path for key, (path, _) in changes.items()
        }
        writes |= dict(changes.values())
    changes = json.dumps(made.differing._asdict(), indent=1).encode()
    writes[_named(name, changes, "changes.json")] = changes
    pointer |= {key: files[first][key] for key in ("feed", "fetch", "previous", "delta")}
    pointer |= {
        "changes": _named(name, changes, "changes.json"),
        "files": files,
        "entries": len(made.feed.entries),
        **{word: len(ids) for word, ids in made.differing._asdict().items()},
        "deliveries_version": state.version,
        "run_id": run_id,
        "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for path, content in writes.items():
        root.write(path, content)
    _replace(root, fetched, state)
    kept = {f"{name}/{POINTER}", pointer["changes"]}
    kept |= {path for about in files.values() for path in about.values() if isinstance(path, str)}
    spare = [path for file in root.files(name) if (path := f"{name}/{file}") not in kept and _OURS.fullmatch(file)]
    root.remove(path for path in spare if path.startswith(f"{name}/feed."))  # of a form that is left out now
    root.write(f"{name}/{POINTER}", (json.dumps(pointer, indent=2) + "\n").encode())
    _check_current(root, state)
    root.remove(spare)
    return report


_OURS = re.compile(r"(feed|[0-9a-f]{64}(\.changes|\.delete|\.delta)?)\.(tsv|csv|json|xml|jsonl)")


def _same(now: dict[Form, dict[str, Any]], last: dict[Form, dict[str, Any]]) -> bool:
    """Whether a pointer names these files, in these forms and no others."""
    return list(now) == list(last) and all(last[form].get(key) == now[form][key] for form in now for key in now[form])


def _replace(root: Root, files: dict[str, bytes], state: State) -> None:
    """Make these what channels fetch, by path; raises PublishConflict as soon as another run has overtaken this one."""
    for path, content in files.items():
        root.write(path, content)
        _check_current(root, state)


def _changed(made: Ready, form: Form, about: dict[str, Any]) -> dict[str, tuple[str, bytes]]:
    """Files of what changed in a form since its last file, as (path, content); everything where it had none.

    In the Merchant API another language or label names other products: those of the last are deleted.
    """
    name, before, end = folder(made.channel), _files(made.last).get(form), EXTENSIONS[form]
    afresh = before is None or before.get("target") != about.get("target")
    added, changed, removed = made.differing
    delta = encode(made.feed, form, made.feed.entries if afresh else added + changed)
    files = {"delta": (_named(name, delta, f"delta.{end}"), delta)}
    if form == "merchant_api":
        target = before["target"] if before else about["target"]
        gone = removed if not afresh else sorted({*made.feed.entries, *removed} - set(added)) if before else []
        content = deletions(gone, target)
        files["delete"] = (_named(name, content, f"delete.{end}"), content)
    return files


def _named(folder: str, content: bytes, extension: str) -> str:
    return f"{folder}/{hashlib.sha256(content).hexdigest()}.{extension}"


def _holds(root: Root, relative: str, content: bytes) -> bool:
    try:
        return root.read(relative) == content
    except FileNotFoundError:
        return False


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
