"""Metrics: pure functions from words to numbers, equal to the official evaluators.

A file a metric: `choice.py` (how a letter is read), `vqa.py`, `gqa.py`, `cider.py` (with `ptb.py`, its
tokenizer), `rouge.py`, `yes_no.py`; `averages.py` makes means of them.
To add one, copy `gqa.py`, and compare it with its official code as `tests/eval/metrics` does.
"""
