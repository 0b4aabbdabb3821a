"""Corpora on disk or at URLs, the order of their samples, and the micro-batches that training reads.

Start with `order.py` (which sample comes when) and `loader.py` (from sample n to a batch); `sample.py` is
what every corpus becomes. To read another format, copy `JsonlSource` in `readers/jsonl.py`; for another
corpus of instructions, copy `recipes/corpora/gqa.py`.
"""
