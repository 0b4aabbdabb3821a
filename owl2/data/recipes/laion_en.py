"""LAION-2B-en (Schuhmann et al. 2022): alt texts in English, CLIP similarity of 0.28 or more.

Pre-training, image to caption; the turn is the image alone.
"""

from owl2.data.recipes.img2dataset import ShardRecipe, shard_files
from owl2.data.recipes.recipe import recipe


@recipe
class LaionEn(ShardRecipe):
    name = "laion_en"
    title = "LAION-2B-en"
    licence = "metadata CC BY 4.0; images: their sites"
    size = "2.3 billion addresses"
    weight = 100
    files = shard_files("huggingface.co/datasets/laion (Re-LAION-2B-en-research), parquet")
