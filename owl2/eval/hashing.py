"""The hash that names prompts, answers and identities in evaluation folders."""

import hashlib


def short_hash(text: str) -> str:
    """The first 16 hexadecimal digits of SHA-256, enough to tell apart what one run holds."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
