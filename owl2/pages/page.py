"""HTML documents from templates: everything is escaped, images travel inside, nothing is loaded.

A page is a template in `templates/` that extends `base.html`, which holds the only stylesheet. Python gathers
what is shown, the template lays it out. Only drawings (`drawing.py`) are HTML already.
"""

import base64
import io
from functools import cache
from pathlib import Path, PurePath
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from owl2.files import write_file
from owl2.provenance import stamp

FOLDER = Path(__file__).parent
MIME = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}


def render(template: str, **data: Any) -> str:
    """The document that `templates/{template}` makes of `data`; a name it lacks is an error.

    Its last line says when it was made, and by which command and version.
    """
    return _environment().get_template(template).render(data, stamp=stamp())


def write_page(path: Path, html: str) -> None:
    """Write a document; what UTF-8 cannot hold, such as half a surrogate pair, becomes a question mark."""
    write_file(path, html.encode(errors="replace"))


def embedded(data: bytes, name: str) -> str:
    """An image file as the address of an `<img>`; the suffix of `name` tells its format."""
    return f"data:{MIME[PurePath(name).suffix.lower()]};base64,{base64.b64encode(data).decode()}"


def jpeg(image: Image.Image, quality: int = 92) -> str:
    """An image as the address of an `<img>`."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return embedded(stream.getvalue(), "image.jpg")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["style"] = Markup((FOLDER / "style.css").read_text(encoding="utf-8"))
    environment.filters |= {"jpeg": jpeg, "thousands": "{:,}".format, "embedded": embedded}
    return environment
