"""The generator of the demo's world: images with exact truth, captions, questions, and held-out tests.

Start in `corpus.py` (`write_world`), then `vocabulary.py` (what exists, and which split may show it) and
`scenes.py`. For a new kind of question copy `_comparison` in `questions.py`.
"""
