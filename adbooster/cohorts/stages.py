"""The stage that embeds the distinct texts of an interest log by CLIP's text tower."""

import pyarrow as pa

from adbooster.contracts import schema
from adbooster.storage.model_store import local_copy

_TEXT = pa.schema([("text", pa.string()), ("at", pa.int32()), ("reject", pa.string())])
_EMBEDDED = _TEXT.append(pa.field("vector", pa.list_(pa.float32())))


class TextEmbedder:
    """Texts to unit vectors by the text tower of CLIP."""

    def __init__(self, model: str, device: str):
        from adbooster.models.clip import Clip

        self.ranker = Clip(local_copy(model), device)

    def __call__(self, rows: pa.Table) -> pa.Table:
        vectors = self.ranker.embed_texts(rows["text"].to_pylist())
        self.ranker.texts.clear()  # every text comes once
        return schema.extend(rows, _EMBEDDED, vector=list(vectors))
