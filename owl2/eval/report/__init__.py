"""Reports: figures next to the paper's in five formats, comparisons of runs, submission files.

Start with `rows.py`, the view of a figure that all formats share; `write.py` makes the files. For a new
submission format copy `vizwiz` in `export.py`.
"""
