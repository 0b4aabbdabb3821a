"""Files of samples with random access: JSON, tar shards, Parquet and Arrow, local or at a URL.

Start with `sources.py`, which opens them all; `paths.py` says which files a path means, `base.py` what a
source is, `rows.py` how a row becomes a sample. For another format, copy `JsonlSource` in `jsonl.py` and
enter it in `READERS`.
"""
