"""A feed's entries as the text of a file, in every form that a channel takes, and back."""

import base64
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from lxml import etree

from adbooster.channels.feeds import Feed, Feeds
from adbooster.channels.presets import Form
from adbooster.contracts.errors import AdboosterError

FORMAT = "adbooster-delivery-1"
EXTENSIONS: dict[Form, str] = {"tsv": "tsv", "csv": "csv", "json": "json", "xml": "xml", "merchant_api": "jsonl"}
NAMESPACE = "http://base.google.com/ns/1.0"
LISTS = {"lifestyle_image_link": "lifestyleImageLinks", "additional_image_link": "additionalImageLinks"}
Entries = dict[str, dict[str, Any]]


class Difference(NamedTuple):
    """Entries of a feed against those of the feed before it, by id."""

    added: list[str]
    changed: list[str]
    removed: list[str]


def difference(before: Mapping[str, dict], now: Mapping[str, dict]) -> Difference:
    """An entry is changed where a value is; a column that is empty says no more than one that is not there."""
    both = before.keys() & now.keys()
    return Difference(
        added=sorted(now.keys() - before.keys()),
        changed=sorted(key for key in both if _filled(before[key]) != _filled(now[key])),
        removed=sorted(before.keys() - now.keys()),
    )


def _filled(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if value != ""}


def encode(feed: Feed, form: Form | None = None, only: Iterable[str] | None = None) -> bytes:
    """The feed's file in a form, its first if none is named, or one of some entries `only`; UTF-8.

    raises  AdboosterError if another reader would not find the same entries in it
    """
    form = form or feed.forms[0]
    entries = feed.entries if only is None else {key: feed.entries[key] for key in only}
    write = {"tsv": _delimited, "csv": _delimited, "json": _json, "xml": _xml, "merchant_api": _merchant_api}[form]
    content = write(feed, entries, form)
    if difference(parse(content, form, feed.key), entries) != ([], [], []):
        raise AdboosterError(f"a feed does not read back from {form} as it was written; nothing was published")
    return content


def parse(content: bytes, form: Form, key: str) -> Entries:
    """The entries of a feed's file by id; XML and the Merchant API do not tell empty columns from missing ones."""
    read = {"tsv": _of_delimited, "csv": _of_delimited, "json": _of_json, "xml": _of_xml, "merchant_api": _of_bodies}
    return {entry[key]: entry for entry in read[form](content, form)}


def _delimited(feed: Feed, entries: Entries, form: Form) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n", **_dialect(form))
    writer.writerow(feed.columns)
    writer.writerows([entry[name] for name in feed.columns] for entry in entries.values())
    return text.getvalue().encode()


def _of_delimited(content: bytes, form: Form) -> Iterator[dict[str, Any]]:
    return map(dict, csv.DictReader(io.StringIO(content.decode(), newline=""), **_dialect(form)))


def _dialect(form: Form) -> dict[str, Any]:
    """Google's tab-delimited text knows no quotes; tabs and line ends are in no value."""
    if form == "tsv":
        return {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
    return {"quoting": csv.QUOTE_MINIMAL}


def _json(feed: Feed, entries: Entries, form: Form) -> bytes:
    content = {"format": FORMAT, "entries": list(entries.values())}
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _of_json(content: bytes, form: Form) -> Iterator[dict[str, Any]]:
    return iter(json.loads(content)["entries"])


def _xml(feed: Feed, entries: Entries, form: Form) -> bytes:
    """RSS 2.0, an item a line; of a list every value is an element of its own."""
    channel, out = feed.settings.channel.name, io.BytesIO()
    head = {"title": channel, "link": feed.settings.public_base_url, "description": f"The feed of {channel}"}
    with etree.xmlfile(out, encoding="utf-8") as file:
        file.write_declaration()
        with file.element("rss", version="2.0", nsmap={"g": NAMESPACE}), file.element("channel"):
            for name, text in head.items():
                _element(file, name, text)
            for entry in entries.values():
                file.write("\n")
                with file.element("item"):
                    for name, value in _filled(entry).items():
                        for text in _values(name, value):
                            _element(file, f"{{{NAMESPACE}}}{name}", text)
            file.write("\n")
    return out.getvalue()


def _element(file: Any, name: str, text: str) -> None:
    with file.element(name):
        file.write(text)


def _values(name: str, text: str) -> list[str]:
    """Several addresses are separated by commas, which are in none of them."""
    return text.split(",") if name in LISTS else [text]


def _of_xml(content: bytes, form: Form) -> Iterator[dict[str, Any]]:
    safe: dict[str, Any] = {"resolve_entities": False, "no_network": True}
    for _, item in etree.iterparse(io.BytesIO(content), tag="item", **safe):
        entry: dict[str, str] = {}
        for child in item:
            name, text = etree.QName(child).localname, child.text or ""
            entry[name] = f"{entry[name]},{text}" if name in entry else text
        yield entry
        item.clear()
        while item.getprevious() is not None:
            del item.getparent()[0]


def _merchant_api(feed: Feed, entries: Entries, form: Form) -> bytes:
    """A line is the body of a `productInputs:insert` (Merchant API, products v1), which replaces what the data source had."""
    target = target_of(feed.settings.feeds)
    return _lines(
        {"offerId": entry[feed.key]} | target | {"productAttributes": _attributes(entry)} for entry in entries.values()
    )


def _lines(values: Iterable[dict]) -> bytes:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()


def _attributes(entry: dict[str, str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in _filled(entry).items():
        if name in LISTS:
            out[LISTS[name]] = value.split(",")
        elif name.startswith("custom_label_"):
            out[f"customLabel{name[-1]}"] = value
    return out


def _of_bodies(content: bytes, form: Form) -> Iterator[dict[str, Any]]:
    ours = {theirs: name for name, theirs in LISTS.items()} | {f"customLabel{n}": f"custom_label_{n}" for n in range(5)}
    for line in content.decode().split("\n")[:-1]:
        body = json.loads(line)
        values = {ours[k]: ",".join(v) if isinstance(v, list) else v for k, v in body["productAttributes"].items()}
        yield {"id": body["offerId"]} | values


def target_of(feeds: Feeds) -> dict[str, str]:
    """What names a product in Merchant Center beside its id."""
    return {"contentLanguage": feeds.content_language, "feedLabel": feeds.feed_label}


def deletions(ids: Iterable[str], target: Mapping[str, str]) -> bytes:
    """Lines that name the product inputs to be deleted, below the account; then the shop's own values hold again."""
    return _lines({"offerId": one, "name": f"productInputs/{product_input(one, target)}"} for one in ids)


def product_input(offer_id: str, target: Mapping[str, str]) -> str:
    """The last part of a product input's name.

    It is base64url without padding where the id holds anything but letters, digits, - and _: for / % ~ . : and others
    Google's guide to the Merchant API asks for that, and it takes it for every name.
    """
    plain = f"{target['contentLanguage']}~{target['feedLabel']}~{offer_id}"
    if re.fullmatch(r"[A-Za-z0-9_-]+", offer_id):
        return plain
    return base64.urlsafe_b64encode(plain.encode()).decode().rstrip("=")
