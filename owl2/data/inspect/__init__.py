"""`owl2 data inspect`: what a source holds, and what the model sees of it: prompt, targets, images.

All of it is measured on the path that training takes.

Start with `inspection.py`, which counts; `page.py` shows it. For another figure add a field to `Inspection`
and a line to `facts`.
"""
