"""Conversations, raw prompts and images as model inputs, and ids back to text.

Start with processor.py, which uses template.py, tokenizer.py, images.py and transform.py. For a prompt
template copy a row of `TEMPLATES`, for another resizing `_pad` of transform.py.
"""

from owl2.processor.images import BLANK, ImageError, ImageSource, load_image
from owl2.processor.processor import ContextError, Encoding, ImageCountError, Processor
from owl2.processor.streaming import StreamDecoder
from owl2.processor.template import (
    IMAGE_MARK,
    TEMPLATES,
    Chunk,
    Message,
    TemplateError,
    render,
    with_blank_images,
)
from owl2.processor.tokenizer import (
    JsonTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    TokenizerError,
    load_tokenizer,
)
from owl2.processor.transform import ImageTransform

__all__ = [
    "BLANK",
    "IMAGE_MARK",
    "TEMPLATES",
    "Chunk",
    "ContextError",
    "Encoding",
    "ImageCountError",
    "ImageError",
    "ImageSource",
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
    "with_blank_images",
]
