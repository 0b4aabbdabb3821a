"""Evaluation: the benchmarks of the paper with its prompts, splits and metrics, next to its numbers.

Start with `task.py` (what a benchmark is) and `runner.py` (how it is asked). The rooms build on each other:
task, formats, metrics, tasks, engines, answers, judge, runner and scoring, report. For a new benchmark
copy a file of `tasks/`, whose docstring says which. `owl2 eval show` prints what a model is asked.
"""
