"""One corpus a file, found by its decorator `@recipe`.

`web.py` is a table of the corpora that img2dataset fetches; the others read official annotation files. Start
with `gqa.py`, which is the one to copy.
"""
