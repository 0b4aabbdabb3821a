"""Conceptual Captions 3M (Sharma et al. 2018): alt texts, cleaned and with names made general.

Pre-training, image to caption; the turn is the image alone.
"""

from owl2.data.recipes.img2dataset import ShardRecipe, shard_files
from owl2.data.recipes.recipe import recipe


@recipe
class Cc3m(ShardRecipe):
    name = "cc3m"
    title = "Conceptual Captions 3M"
    licence = "Google, free use with attribution; images: their sites"
    size = "3.3 million addresses"
    weight = 3
    files = shard_files("ai.google.com/research/ConceptualCaptions, Train-GCC-training.tsv")
