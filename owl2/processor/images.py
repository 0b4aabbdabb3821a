"""Image files and PIL images of any mode as upright RGB.

A file that is whole is read, whatever surrounds its pixels: malformed EXIF, long texts and colour profiles, a
missing end mark. A file that lacks pixels is an error. Every exception of a decoder becomes an `ImageError`.
"""

import base64
import binascii
import io
import os
import re
import struct
import urllib.request
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image, UnidentifiedImageError

from owl2.errors import Owl2Error, Owl2Warning

MAX_PIXELS = 178_956_970
"""Pillow's own limit for a decompression bomb; checked in the header, before anything is decoded."""
MAX_SIDE = 65_535
MAX_DOWNLOAD = 64 * 2**20
"""Bytes that are read from a URL at most."""
URL_TIMEOUT_S = 20

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that undoes an EXIF orientation."""

Alpha = Literal["white", "drop"]
"""What becomes of transparency: shown on white, or dropped, as the released code does."""
ImageSource = Image.Image | str | Path | bytes | np.ndarray | BinaryIO

BLANK = Image.new("RGB", (1, 1))
"""A black image: takes the place of an image where only its number of tokens matters, which is the same for
all images, and shows what a model answers without seeing."""

_warned: set[str] = set()
"""Kinds of warnings that this process has given."""


class ImageError(Owl2Error, ValueError):
    """An image that cannot be read or used; the message names the file and the reason."""


def load_image(source: ImageSource, alpha: Alpha = "white") -> Image.Image:
    """Return an image as RGB, upright.

    The first frame of an animation, turned as EXIF says. Grey values of more than 8 bits are scaled (see
    `_to_8_bits`). A JPEG without its end mark is read if all its pixels are there.

    Args:
        source: a path, an http(s) URL, a data URI, the bytes of an image file, an open binary file, a PIL
            image in any mode, or a uint8 array (H, W), (H, W, 3) or (H, W, 4) of grey, RGB or RGBA.
        alpha: what becomes of transparency.

    Raises:
        ImageError: no such file, not an image, truncated, too large, or pixels without a known range.
        TypeError: a source of another type.
    """
    name = _name_of(source)
    if isinstance(source, np.ndarray):
        source = _from_array(source, name)
    image = _load(source, name) if isinstance(source, Image.Image) else _decode(_read(source, name), name)
    orientation = _orientation(image)
    try:
        image = _to_rgb(image, alpha, name)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
            image.info = {}  # it states the orientation too, and the image would be turned again
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{name}: damaged ({type(error).__name__}: {error})") from error
    return image


def _name_of(source: Any) -> str:
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or f"an image of mode {source.mode}")
    if isinstance(source, np.ndarray):
        return f"an array of shape {source.shape} and type {source.dtype}"
    if isinstance(source, bytes):
        return f"image data of {len(source):,} bytes"
    if isinstance(source, str) and source[:5].lower() == "data:":
        return f"{source[:40]}... ({len(source):,} characters)"
    return str(source if isinstance(source, str | Path) else getattr(source, "name", type(source).__name__))


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)):
        raise ImageError(f"{name}: expected uint8 of shape (H, W), (H, W, 3) or (H, W, 4), values 0 to 255")
    if not array.size:
        raise ImageError(f"{name}: there is nothing to see")
    return Image.fromarray(np.ascontiguousarray(array))


def _read(source: Any, name: str) -> bytes:
    """Return the bytes of an image file, wherever it is."""
    try:
        if isinstance(source, bytes):
            return source
        if isinstance(source, str) and (scheme := re.match(r"(?i)(data|https?):", source)):
            return _from_data_uri(source) if scheme[1].lower() == "data" else _download(source)
        if isinstance(source, str | Path):
            return Path(os.path.expanduser(source)).read_bytes()
        if isinstance(data := source.read() if hasattr(source, "read") else None, bytes):
            return data
    except (binascii.Error, EOFError) as error:
        raise ImageError(f"{name}: {error}") from error
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # a NUL, or half a surrogate pair, in the path
        raise ImageError(f"{name!a}: cannot be read ({error})") from error
    raise TypeError(
        f"an image of type {type(source).__name__}; expected a path, URL, data URI, bytes, file open for "
        f"binary reading, PIL image or uint8 array"
    )


def _from_data_uri(uri: str) -> bytes:
    """Decode `data:image/png;base64,...` (RFC 2397), with white space and without padding too."""
    header, comma, content = uri.partition(",")
    if not comma:
        raise EOFError("a data URI without a comma has no data")
    data = unquote_to_bytes(content)
    if not header.lower().endswith(";base64"):
        return data
    data = b"".join(data.split())
    return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)


def _download(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "owl2"})
    with urllib.request.urlopen(request, timeout=URL_TIMEOUT_S) as reply:
        data: bytes = reply.read(MAX_DOWNLOAD + 1)
    if len(data) > MAX_DOWNLOAD:
        raise EOFError(f"more than {MAX_DOWNLOAD:,} bytes; download it and scale it down")
    return data


def _decode(data: bytes, name: str) -> Image.Image:
    """Decode a file, without what surrounds the pixels if it fails for that."""
    try:
        return _load(_open(data, name), name)
    except ImageError:
        repaired = _png_without_texts(data) or _whole_jpeg(data, name)
        if repaired is None:
            raise
    return _load(_open(repaired, name), name)


def _open(data: bytes, name: str) -> Image.Image:
    Image.init()
    formats = [format_ for format_ in Image.ID if format_ != "EPS"]  # EPS would run Ghostscript on the file
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image that Pillow reads ({len(data):,} bytes)") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: refused before decoding: {error}") from error
    except Exception as error:
        raise ImageError(f"{name}: damaged header ({type(error).__name__}: {error})") from error


def _load(image: Image.Image, name: str) -> Image.Image:
    """Decode an opened image of a size that is allowed."""
    width, height = image.size
    if width * height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        raise ImageError(
            f"{name}: {width:,} x {height:,} pixels; at most {MAX_PIXELS:,} in all and {MAX_SIDE:,} on "
            f"a side are read, scale it down"
        )
    if not width or not height:
        raise ImageError(f"{name}: {width} x {height} pixels, there is nothing to see")
    try:
        image.load()
    except Exception as error:  # decoders fail with OSError, SyntaxError, struct.error, EOFError, ...
        raise ImageError(f"{name}: damaged or truncated ({type(error).__name__}: {error})") from error
    return image


def _png_without_texts(data: bytes) -> bytes | None:
    """Return a PNG without the chunks that do not change its pixels, or None for another file.

    Pillow refuses a file for a text or colour profile above 1 MB, and for a wrong checksum of either.
    """
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    kept = [data[:8]]
    for kind, chunk in _png_chunks(data):
        is_whole = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if (
            kind[:1].isupper()
            or kind in (b"tRNS", b"acTL", b"fcTL", b"fdAT")
            or (kind == b"eXIf" and is_whole)
        ):
            kept.append(chunk)
    return b"".join(kept)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the type of each chunk and the whole of it: length, type, content and checksum."""
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        yield data[at + 4 : at + 8], data[at : at + 12 + length]
        at += 12 + length


def _whole_jpeg(data: bytes, name: str) -> bytes | None:
    """Return a JPEG that lacks nothing but its end mark, with the mark; None for any other file.

    It is whole if its pixels do not depend on what follows: two different fillers give the same. (Of a
    progressive file, a cut between two scans cannot be noticed; it has all pixels, but fewer details.)
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    data = data.rstrip(b"\xff")
    versions = [data + filler * 64 + b"\xff\xd9" for filler in (b"\x55", b"\xaa")]
    try:
        first, second = (np.asarray(_load(_open(version, name), name)) for version in versions)
    except ImageError:
        return None
    if not np.array_equal(first, second):
        return None
    _warn_once("end mark", f"{name}: the JPEG has no end mark; it is read, because all its pixels are there")
    return data + b"\xff\xd9"


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # malformed EXIF, as whatever library read it
        return 1
    return orientation if isinstance(orientation, int) else 1


def _to_rgb(image: Image.Image, alpha: Alpha, name: str) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image, name)
    try:
        if not image.has_transparency_data:
            return image if image.mode == "RGB" else image.convert("RGB")
        image = image.convert("RGBA")
        coverage = image.getchannel("A")
        if alpha == "white":
            shown = Image.new("RGBA", image.size, "white")
            shown.alpha_composite(image)
            shown = shown.convert("RGB")
            remedy = "put it on a background of another colour"
        else:
            shown = image.convert("RGB")
            remedy = '"owl2": {"alpha": "white"} in preprocessor_config.json shows it on white'
    except ValueError as error:
        raise ImageError(f"{name}: Pillow cannot make RGB of the mode {image.mode}") from error
    if shown.getcolors(1) is not None and coverage.getcolors(1) is None:
        done = "on white" if alpha == "white" else "with its transparency dropped, as in the released code"
        _warn_once(alpha, f"{name}: {done}, the image is one plain colour: {remedy}")
    return shown


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Scale grey values of a wider type to 8 bits.

    White is the greatest value of the number of bits that the file declares (TIFF: 9 to 15), or else of the
    fewest of 8, 12 and 16 bits that hold the brightest pixel; floating-point values may also be in 0..1.
    """
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    whites = [1, 255, 4095, 65_535] if image.mode == "F" else [255, 4095, 65_535]
    (bits,) = getattr(image, "tag_v2", {}).get(258, (16,))[:1]
    if 8 < bits < 16:
        whites.insert(0, 2**bits - 1)
    if not 0 <= low <= high <= whites[-1]:
        kind = "floating-point" if image.mode == "F" else "integer"
        raise ImageError(
            f"{name}: {kind} pixels from {low:g} to {high:g}; expected 0 to 65,535: save it with 8 bits"
        )
    white = next(white for white in whites if high <= white)
    return Image.fromarray(np.floor(values * 255 / white + 0.5).astype(np.uint8), mode="L")


def _warn_once(kind: str, message: str) -> None:
    if kind not in _warned:
        _warned.add(kind)
        warnings.warn(f"{message} (said once, for the first such image)", Owl2Warning, stacklevel=2)
