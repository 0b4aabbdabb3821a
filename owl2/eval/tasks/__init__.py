"""Benchmarks: one file each, a class registered by `@task`; `owl2/eval/task.py` says what each part means.

Start reading with `mme.py` (a benchmark with its prompt), `prompts.py` (prompts that several share) and
`base.py` (base tasks).
To add one, copy `mme.py` (multiple choice: `scienceqa.py`; with a judge: `mmvet.py`; with video:
`msrvtt_qa.py`; text alone: `boolq.py`) and put a few records in its official format into
`tests/data/benchmarks`.
"""
