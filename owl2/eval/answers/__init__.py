"""Answers on disk: what a model said, and how judges graded it.

Start with `predictions.py`; `grades.py` joins a judge's grades to the answers they were given for. Nothing
here is copied for something new: engines and judges write through it.
"""
