"""mPLUG-Owl2: images and text in, text out.

    import owl2
    owl = owl2.load("runs/demo/checkpoint")
    owl.chat([{"role": "user", "content": [{"type": "image", "image": "cat.jpg"},
                                           {"type": "text", "text": "What is this?"}]}])

Names are imported when first used, so that `import owl2` and the command line start at once.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from owl2.api import Owl2, load
    from owl2.errors import Owl2Error, Owl2Warning
    from owl2.model import build

__all__ = ["Owl2", "Owl2Error", "Owl2Warning", "__version__", "build", "load"]

__version__ = "0.1.0"

_HOMES = {
    "Owl2": "owl2.api",
    "Owl2Error": "owl2.errors",
    "Owl2Warning": "owl2.errors",
    "build": "owl2.model",
    "load": "owl2.api",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'owl2' has no attribute {name!r}; it has {', '.join(__all__)}")
