"""What a file says of itself: an XMP packet with IPTC's properties, written when the file is encoded and read back from it."""

import io
from typing import NamedTuple
from xml.sax.saxutils import escape

from lxml import etree
from PIL import Image

from adbooster.contracts.text import clean

VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
MAX_PROMPT = 4000  # characters; a JPEG holds 65,502 bytes of XMP in one segment
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_DC = "http://purl.org/dc/elements/1.1/"


class Marks(NamedTuple):
    """What a file says; null: it says nothing of that.

    digital_source_type  code of IPTC's vocabulary
    ai_system            what painted the scene, and its version (IPTC 2025.1)
    prompt               what it was painted from, and who wrote that (IPTC 2025.1)
    source               what the file was made from: urn:sha256:<hash of the creative's file>
    """

    digital_source_type: str | None = None
    ai_system: str | None = None
    ai_version: str | None = None
    prompt: str | None = None
    prompt_writer: str | None = None
    source: str | None = None


_NAMES = {
    "digital_source_type": f"{{{_IPTC}}}DigitalSourceType",
    "ai_system": f"{{{_IPTC}}}AISystemUsed",
    "ai_version": f"{{{_IPTC}}}AISystemVersionUsed",
    "prompt": f"{{{_IPTC}}}AIPromptInformation",
    "prompt_writer": f"{{{_IPTC}}}AIPromptWriterName",
    "source": f"{{{_DC}}}source",
}
_PREFIXES = {_IPTC: "Iptc4xmpExt", _DC: "dc"}


def packet(marks: Marks) -> bytes:
    """The XMP packet of these marks, UTF-8; the same bytes for the same marks."""
    properties = "".join(f"\n   {_element(name, text)}" for name, text in _texts(marks).items())
    spaces = "".join(f' xmlns:{prefix}="{uri}"' for uri, prefix in _PREFIXES.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/">\n <rdf:RDF xmlns:rdf="{_RDF}">\n'
        f'  <rdf:Description rdf:about=""{spaces}>{properties}\n  </rdf:Description>\n'
        ' </rdf:RDF>\n</x:xmpmeta>\n<?xpacket end="w"?>'
    ).encode()


def _texts(marks: Marks) -> dict[str, str]:
    texts = {name: clean(text)[:MAX_PROMPT] for name, text in marks._asdict().items() if text}
    if "digital_source_type" in texts:
        texts["digital_source_type"] = VOCABULARY + texts["digital_source_type"]
    return {name: text for name, text in texts.items() if text}


def _element(name: str, text: str) -> str:
    uri, _, local = _NAMES[name][1:].partition("}")
    return f"<{_PREFIXES[uri]}:{local}>{escape(text)}</{_PREFIXES[uri]}:{local}>"


def read(image: bytes) -> Marks:
    """The marks that an encoded picture carries; none where it has no XMP, or one that cannot be parsed."""
    with Image.open(io.BytesIO(image), formats=["JPEG", "PNG", "WEBP"]) as opened:
        xmp = opened.info.get("xmp") or opened.info.get("XML:com.adobe.xmp") or b""
    content = xmp.encode() if isinstance(xmp, str) else xmp
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        tree = etree.fromstring(content, parser)
    except etree.XMLSyntaxError:
        return Marks()
    found = {name: tree.findtext(f".//{tag}") for name, tag in _NAMES.items()}
    if kind := found["digital_source_type"]:
        found["digital_source_type"] = kind.removeprefix(VOCABULARY)
    return Marks(**found)


def expected(marks: Marks) -> Marks:
    """What `read` gives of a file that carries these marks."""
    texts = _texts(marks)
    if "digital_source_type" in texts:
        texts["digital_source_type"] = texts["digital_source_type"].removeprefix(VOCABULARY)
    return Marks(**texts)
