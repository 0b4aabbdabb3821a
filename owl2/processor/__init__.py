"""Conversations, raw prompts and images as model inputs, and ids back to text.

Start with processor.py, which puts template.py, tokenizer.py and images.py together. For a prompt template
copy a row of `TEMPLATES`, for another resizing `_pad` of images.py.
"""

from owl2.processor.images import ImageError, ImageTransform, load_image
from owl2.processor.processor import ContextError, Encoding, ImageCountError, Processor
from owl2.processor.streaming import StreamDecoder
from owl2.processor.template import IMAGE_MARK, TEMPLATES, Chunk, Message, TemplateError, render
from owl2.processor.tokenizer import (
    JsonTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    TokenizerError,
    load_tokenizer,
)

__all__ = [
    "IMAGE_MARK",
    "TEMPLATES",
    "Chunk",
    "ContextError",
    "Encoding",
    "ImageCountError",
    "ImageError",
    "ImageTransform",
    "JsonTokenizer",
    "Message",
    "Processor",
    "SentencePieceTokenizer",
    "StreamDecoder",
    "TemplateError",
    "Tokenizer",
    "TokenizerError",
    "load_image",
    "load_tokenizer",
    "render",
]
