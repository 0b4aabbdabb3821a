"""Metrics: pure functions from words to numbers, equal to the official evaluators.

Start reading with `choice.py` (how a letter is read) or `vqa.py` (VQA accuracy and its variants).
To add one, copy `gqa.py`, and compare it with its official code as `tests/eval/metrics` does.
"""
