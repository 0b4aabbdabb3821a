"""Corpora on disk or at URLs, the order of their samples, and the micro-batches that training reads.

Start with `order.py` (which sample comes when), `dataset.py` (sample n as tokens and images) and `loader.py`
(micro-batches of a step, and the count of unusable samples); `sample.py` is what every corpus becomes. For
another format copy `JsonlSource` in `readers/jsonl.py`, for another corpus `recipes/corpora/gqa.py`.
"""
