"""Generation: from prompts to text.

Start with `generate.py`: a batch is read once, then grows token by token (`sampling.py` chooses, `beams.py`
searches). `session.py` keeps a dialogue in the cache, `complete.py` gives several answers with probabilities,
`likelihoods.py` scores given texts, `why.py` explains an answer, and `image_cache.py` remembers images. A new
setting is a field of `GenerationConfig`.
"""

from owl2.generate.complete import Completion, complete
from owl2.generate.config import GenerationConfig, GenerationError, end_tokens
from owl2.generate.generate import decode, generate, prefill
from owl2.generate.image_cache import ImageCache
from owl2.generate.likelihoods import log_likelihoods
from owl2.generate.session import ChatSession
from owl2.generate.why import TokenWhy, Why, explain

__all__ = [
    "ChatSession",
    "Completion",
    "GenerationConfig",
    "GenerationError",
    "ImageCache",
    "TokenWhy",
    "Why",
    "complete",
    "decode",
    "end_tokens",
    "explain",
    "generate",
    "log_likelihoods",
    "prefill",
]
