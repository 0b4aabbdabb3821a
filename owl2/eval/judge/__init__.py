"""Judges: language models that grade free answers.

Start with `grading.py`, which asks; `prompts.py` has each judge's prompt and how its reply is read, and
`official.py` takes over grades that the benchmarks' own scripts wrote. For a new judge copy `ask_mmvet` and
`read_mmvet` in `prompts.py`.
"""
