"""Files of samples with random access: JSONL, tar shards, Parquet and Arrow, local or at a URL.

Start with `sources.py`, which opens them all; `base.py` says what a source is, `rows.py` how a row becomes a
sample. For another format, copy `JsonlSource` in `jsonl.py` and enter it in `open_source`.
"""
