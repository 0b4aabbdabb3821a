"""COYO-700M (Byeon et al. 2022): alt texts; img2dataset is told --caption_col text.

Pre-training, image to caption; the turn is the image alone.
"""

from owl2.data.recipes.img2dataset import ShardRecipe, shard_files
from owl2.data.recipes.recipe import recipe


@recipe
class Coyo(ShardRecipe):
    name = "coyo"
    title = "COYO-700M"
    licence = "metadata CC BY 4.0; images: their sites"
    size = "747 million addresses"
    weight = 100
    files = shard_files("huggingface.co/datasets/kakaobrain/coyo-700m, parquet")
