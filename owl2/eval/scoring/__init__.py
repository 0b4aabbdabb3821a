"""Scoring: answers and official files become figures with intervals, without a model.

Start with `score.py`; `intervals.py` has the statistics, `averages.py` the means that tasks use. For a new
kind of figure copy `mean` in `averages.py`.
"""
