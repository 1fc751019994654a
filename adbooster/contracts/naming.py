"""Names and seeds that follow from content alone."""

import hashlib

BUCKETS = 1 << 16


def digest(*parts: str) -> str:
    """SHA-256 hex of the parts, each kept apart from the next."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def seed_of(name: str, number: int) -> int:
    """A seed, 0 <= seed < 2^63, from content alone: of a request's candidate, or of a product's place."""
    return int(digest(name, str(number))[:16], 16) >> 1


def bucket(product_id: str) -> int:
    """0 <= bucket < BUCKETS, the first 16 bits of the id's SHA-256: rows of one product are stored together."""
    return int.from_bytes(hashlib.sha256(product_id.encode()).digest()[:2])
