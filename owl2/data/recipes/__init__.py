"""The paper's corpora: from their official files to what training reads.

Start with `recipe.py` (what a corpus declares) and `convert.py` (how it is converted); every corpus is a file
in `corpora/`. For another one copy `corpora/gqa.py`, for shards of img2dataset a row of `corpora/web.py`.
"""
