"""Visual tokens of images that were encoded before.

Encoding an image costs more than reading a short prompt and its answer, and the same image is asked about
again and again: in a dialogue, in the rotations of a multiple-choice question, by several questions of a
benchmark. One cache belongs to a loaded model and serves every way of asking it.
"""

import hashlib
from collections import OrderedDict

import torch
from torch import Tensor

from owl2.model import Owl2Model

MAX_BYTES = 256 * 2**20
"""About 250 images of the released model in float32."""


class ImageCache:
    """The visual tokens of the images that were used last, bounded in bytes. Not thread-safe.

    An image is known by its pixels, and what it became is forgotten when a weight of the vision encoder or
    the abstractor changes.
    """

    def __init__(self, max_bytes: int = MAX_BYTES):
        """Begin empty; `max_bytes` of 0 keeps nothing."""
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._weights: tuple[int, ...] = ()
        self._tokens: OrderedDict[bytes, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tokens)

    @torch.inference_mode()
    def encode(self, model: Owl2Model, pixel_values: Tensor) -> Tensor:
        """Return the visual tokens (I, Q + 1, D) of images (I, 3, H, W); only new ones are encoded.

        Images that occur several times are encoded once.
        """
        if self._weights != (weights := _state_of(model)):
            self.clear()
            self._weights = weights
        keys = [_key(image) for image in pixel_values]
        new = {key: place for place, key in enumerate(keys) if key not in self._tokens}
        found = {key: self._tokens[key] for key in keys if key in self._tokens}
        if new:
            pixels = pixel_values[list(new.values())].to(model.device)
            found |= dict(zip(new, model.encode_images(pixels), strict=True))
        for key in keys:
            self._keep(key, found[key])
        return torch.stack([found[key] for key in keys])

    def clear(self) -> None:
        """Forget everything."""
        self._tokens.clear()
        self.num_bytes = 0

    def _keep(self, key: bytes, tokens: Tensor) -> None:
        if tokens.nbytes > self.max_bytes:
            return
        if key not in self._tokens:
            self._tokens[key] = tokens.clone()  # not a view of its whole batch
            self.num_bytes += tokens.nbytes
        self._tokens.move_to_end(key)
        while self.num_bytes > self.max_bytes:
            self.num_bytes -= self._tokens.popitem(last=False)[1].nbytes


def _key(image: Tensor) -> bytes:
    pixels = image.detach().cpu().contiguous()
    digest = hashlib.blake2b(pixels.numpy().tobytes(), digest_size=16)
    digest.update(repr(tuple(pixels.shape)).encode())
    return digest.digest()


def _state_of(model: Owl2Model) -> tuple[int, ...]:
    """Where the weights that images pass are, and how often each was written to."""
    parts = (model.model.vision_model, model.model.visual_abstractor)
    tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    versions = (0 if tensor.is_inference() else tensor._version for tensor in tensors)
    return (*versions, *(tensor.data_ptr() for tensor in tensors))
