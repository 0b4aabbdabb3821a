"""Streaming decoder: ids to text, token by token, without ever revising text.

A token may end in the middle of a character, so text is released only when its bytes are complete. Since
decoding is defined on bytes (tokenizer.py), an incremental UTF-8 decoder does this exactly and in constant
time per token: the texts of `push` and `finish`, joined, equal `decode` of all ids.
"""

import codecs

from owl2.processor.tokenizer import Tokenizer


class StreamDecoder:
    """Decodes the ids of one answer as they are generated."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._drops_space = tokenizer.dummy_space

    def push(self, token_id: int) -> str:
        """Return the characters that this id completes, possibly none; special tokens add nothing."""
        data = self._tokenizer.token_bytes(token_id)
        if data and self._drops_space:
            data = data.removeprefix(b" ")
            self._drops_space = False
        return self._utf8.decode(data)

    def finish(self) -> str:
        """Return U+FFFD for a last character whose bytes are incomplete, else nothing."""
        return self._utf8.decode(b"", final=True)
