"""Training: both stages of the paper, LoRA and QLoRA, on one process or many, resumable to the bit.

Start reading with `loop.py` (`take_step` is the algorithm), then `config.py` (every setting) and `rules.py`
(what is trainable). For a new stage copy `owl2/configs/instruct.yaml` (it has Table 14's corpora and
weights), for a new objective a function in `objectives.py`, for a new tracker a class in `trackers.py`.
"""
