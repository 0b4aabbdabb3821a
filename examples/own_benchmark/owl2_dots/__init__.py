"""Dots: how many dots are on the image? A benchmark (`task.py`), a corpus (`recipe.py`) and their images."""
