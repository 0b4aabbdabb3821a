"""From prompts to text: settings, the choice of a token, batches and dialogues."""

from owl2.generate.config import GenerationConfig, GenerationError
from owl2.generate.generate import decode, generate, prefill
from owl2.generate.session import ChatSession

__all__ = [
    "ChatSession",
    "GenerationConfig",
    "GenerationError",
    "decode",
    "generate",
    "prefill",
]
