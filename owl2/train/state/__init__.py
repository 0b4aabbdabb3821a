"""A run on disk: its states (`state.py`), written in the background (`saver.py`), and its configuration.

Start reading with `save_state` and `resume` in `state.py`. `config_diff.py` says which settings may change
during a run; `sharded.py` reads and writes checkpoints on many ranks. For something new that a run must
remember, copy `MovingAverage.state` in `ema.py`.
"""
