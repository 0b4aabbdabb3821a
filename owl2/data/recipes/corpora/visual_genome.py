"""Visual Genome (Krishna et al. 2017): regions and their phrases, up to ten of an image in one conversation.

A region is written as four shares of the image's sides; a random question asks for the phrase of a region or
for the region of a phrase. If there are more than ten regions (there are fifty on average), ten random ones
are used.
"""

from collections.abc import Iterator
from typing import Any

from owl2.data.recipes.recipe import (
    ConversationRecipe,
    CorpusFile,
    Files,
    Rejected,
    Row,
    read_records,
    recipe,
)
from owl2.data.recipes.wording import conversation, region_exchanges, region_text, seeded

MAX_REGIONS = 10


@recipe
class VisualGenome(ConversationRecipe):
    name = "visual_genome"
    title = "Visual Genome"
    stage = "instruct"
    in_paper = True
    licence = "CC BY 4.0"
    size = "5.4 million regions of 108,077 images"
    weight = 86
    origin = "homes.cs.washington.edu/~ranjay/visualgenome/api.html"
    files = (
        CorpusFile("region_descriptions.json", f"{origin}, version 1.2 or 1.4"),
        CorpusFile("image_data.json", f"{origin}, image meta data"),
        CorpusFile("VG_100K", f"{origin}, images part 1"),
        CorpusFile("VG_100K_2", f"{origin}, images part 2"),
    )

    def rows(self, files: Files) -> Iterator[Row | Rejected]:
        images = {image["image_id"]: image for image in files.read_json("image_data.json")}

        def read(_: str, record: dict[str, Any]) -> Row | Rejected:
            key = str(record["id"])
            image = images[record["id"]]
            rng = seeded(self.name, key)
            regions = [
                (text, region["phrase"])
                for region in record["regions"]
                if (text := _region(region, image)) and region["phrase"].strip()
            ]
            if not regions:
                return Rejected(key, "image without a usable region")
            chosen = rng.sample(regions, min(MAX_REGIONS, len(regions)))
            folder, name = image["url"].split("/")[-2:]
            return conversation(key, files.name_of(folder, name), region_exchanges(chosen, rng))

        yield from read_records("image", files.read_json("region_descriptions.json"), read)


def _region(region: dict[str, Any], image: dict[str, Any]) -> str | None:
    box = (region["x"], region["y"], region["width"], region["height"])
    try:
        return region_text(box, image["width"], image["height"])
    except ValueError:
        return None
