"""Scoring: answers and official files become figures with intervals, without a model.

Start with `score.py`; `intervals.py` has the statistics. The means that tasks use are in
`owl2/eval/metrics/averages.py`; for a new kind of figure copy `mean` there.
"""
