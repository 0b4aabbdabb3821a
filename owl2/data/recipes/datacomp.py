"""DataComp-1B (Gadre et al. 2023): alt texts, filtered by CLIP score and by likeness to ImageNet.

Pre-training, image to caption; the turn is the image alone.
"""

from owl2.data.recipes.img2dataset import ShardRecipe, shard_files
from owl2.data.recipes.recipe import recipe


@recipe
class DataComp(ShardRecipe):
    name = "datacomp"
    title = "DataComp-1B"
    licence = "index CC BY 4.0; images: their sites"
    size = "1.3 billion addresses"
    weight = 100
    files = shard_files(
        "huggingface.co/datasets/mlfoundations/datacomp_1b; its download_upstream.py runs img2dataset",
        folder="shards",
    )
