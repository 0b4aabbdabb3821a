"""Formats: official files as records, the annotation formats that benchmarks share, their images and clips.

Start reading with `records.py`: a bad record costs itself, a bad file is an error.
To add a shared annotation format, copy `caption_items` in `annotations.py`.
"""
