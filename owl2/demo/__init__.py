"""The demo, `owl2 demo`: a small mPLUG-Owl2 from nothing to a report, on a laptop.

Start in `run.py`, then `presets.py` (its sizes and stages as tables) and `world/` (its data). For another
preset copy an entry of `PRESETS`.
"""
