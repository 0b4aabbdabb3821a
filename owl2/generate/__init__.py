"""From prompts to text: settings, the choice of a token, batches and dialogues."""

from owl2.generate.config import GenerationConfig
from owl2.generate.generate import decode, generate, prefill

__all__ = ["GenerationConfig", "decode", "generate", "prefill"]
