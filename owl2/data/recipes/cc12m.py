"""Conceptual 12M (Changpinyo et al. 2021): alt texts, cleaned less strictly than CC3M's.

Pre-training, image to caption; the turn is the image alone.
"""

from owl2.data.recipes.img2dataset import ShardRecipe, shard_files
from owl2.data.recipes.recipe import recipe


@recipe
class Cc12m(ShardRecipe):
    name = "cc12m"
    title = "Conceptual 12M"
    licence = "Google, free use with attribution; images: their sites"
    size = "12.4 million addresses"
    weight = 12
    files = shard_files("github.com/google-research-datasets/conceptual-12m, cc12m.tsv")
