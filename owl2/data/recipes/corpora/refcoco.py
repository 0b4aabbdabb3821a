"""RefCOCO, RefCOCO+ and RefCOCOg (Kazemzadeh et al. 2014, Yu et al. 2016, Mao et al. 2016) in one corpus.

All referents of an image, from the three corpora, in one conversation: each with a random one of its
expressions, and a random question, for the expression or for the region. The official files are pickles; they
are read with an unpickler that builds nothing but numbers, text, lists and dictionaries.
"""

import io
import pickle
from collections.abc import Iterator
from typing import Any

from owl2.data.recipes.corpora.vqav2 import TRAIN2014
from owl2.data.recipes.recipe import ConversationRecipe, CorpusFile, Files, Rejected, Row, recipe
from owl2.data.recipes.wording import conversation, region_exchanges, region_text, seeded
from owl2.data.sample import DataError

MAX_REGIONS = 10
ORIGIN = "github.com/lichengunc/refer, refcoco.zip, refcoco+.zip, refcocog.zip"
SPLITS = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
"""The authors of the split into train and test: for RefCOCOg the one whose images do not overlap."""


@recipe
class RefCoco(ConversationRecipe):
    name = "refcoco"
    title = "RefCOCO, RefCOCO+, RefCOCOg"
    stage = "instruct"
    in_paper = True
    licence = "annotations: Apache 2.0; images: terms of Flickr"
    size = "126,000 referents of about 28,000 images (train)"
    weight = 30
    files = (
        *(CorpusFile(f"{name}/refs({by}).p", ORIGIN) for name, by in SPLITS.items()),
        *(CorpusFile(f"{name}/instances.json", ORIGIN) for name in SPLITS),
        TRAIN2014,
    )

    def rows(self, files: Files) -> Iterator[Row | Rejected]:
        regions: dict[int, list[tuple[str, str]]] = {}
        images: dict[int, dict[str, Any]] = {}
        for name, by in SPLITS.items():
            instances = files.read_json(f"{name}/instances.json")
            images |= {image["id"]: image for image in instances["images"]}
            boxes = {annotation["id"]: annotation["bbox"] for annotation in instances["annotations"]}
            for ref in _read_refs(files, f"{name}/refs({by}).p"):
                key = f"{name}-{ref.get('ref_id', '?')}"
                try:
                    if ref["split"] != "train":
                        continue
                    image = images[ref["image_id"]]
                    region = region_text(boxes[ref["ann_id"]], image["width"], image["height"])
                    phrase = seeded(self.name, key).choice(ref["sentences"])["sent"]
                except (KeyError, IndexError, TypeError, ValueError) as error:
                    yield Rejected(key, "referent without a usable region", repr(error))
                    continue
                regions.setdefault(ref["image_id"], []).append((region, phrase))
        for image_id, found in regions.items():
            rng = seeded(self.name, str(image_id))
            chosen = rng.sample(found, min(MAX_REGIONS, len(found)))
            image_name = files.name_of("train2014", images[image_id]["file_name"])
            yield conversation(str(image_id), image_name, region_exchanges(chosen, rng))


class _PlainUnpickler(pickle.Unpickler):
    """Loads containers, numbers and text; a pickle that asks for anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which annotations have no use for")


def _read_refs(files: Files, path: str) -> list[dict[str, Any]]:
    try:
        refs = _PlainUnpickler(io.BytesIO(files[path].read_bytes()), encoding="latin-1").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"refcoco: {files[path]} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise DataError(f"refcoco: {files[path]} is not a list of referents")
    return refs
