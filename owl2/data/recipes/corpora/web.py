"""Web corpora for pre-training: images with their alt texts, fetched by img2dataset.

The question is the image alone, the answer its text. Papers: Sharma et al. 2018 (CC3M, with names made
general), Changpinyo et al. 2021 (CC12M, cleaned less strictly), Schuhmann et al. 2022 (LAION-2B-en, CLIP
similarity of at least 0.28), Byeon et al. 2022 (COYO-700M; img2dataset needs `--caption_col text`), Gadre et
al. 2023 (DataComp-1B, filtered by CLIP score and likeness to ImageNet).
"""

from owl2.data.recipes.img2dataset import ShardRecipe, shard_files
from owl2.data.recipes.recipe import recipe

GOOGLE = "Google, free use with attribution; images: their sites"
CC_BY = "metadata CC BY 4.0; images: their sites"
HUB = "huggingface.co/datasets"

# Name, title, licence, size, weight (millions, at most 100), where its list of addresses is.
CORPORA = [
    ("cc3m", "Conceptual Captions 3M", GOOGLE, "3.3 million addresses", 3,
     shard_files("ai.google.com/research/ConceptualCaptions, Train-GCC-training.tsv")),
    ("cc12m", "Conceptual 12M", GOOGLE, "12.4 million addresses", 12,
     shard_files("github.com/google-research-datasets/conceptual-12m, cc12m.tsv")),
    ("laion_en", "LAION-2B-en", CC_BY, "2.3 billion addresses", 100,
     shard_files(f"{HUB}/laion (Re-LAION-2B-en-research), parquet")),
    ("coyo", "COYO-700M", CC_BY, "747 million addresses", 100,
     shard_files(f"{HUB}/kakaobrain/coyo-700m, parquet")),
    ("datacomp", "DataComp-1B", "index CC BY 4.0; images: their sites", "1.3 billion addresses", 100,
     shard_files(f"{HUB}/mlfoundations/datacomp_1b; its download_upstream.py runs img2dataset", "shards")),
]  # fmt: skip

for name, title, licence, size, weight, files in CORPORA:
    declared = {
        "name": name,
        "title": title,
        "licence": licence,
        "size": size,
        "weight": weight,
        "files": files,
        "in_paper": True,
    }
    recipe(type(name, (ShardRecipe,), declared))
