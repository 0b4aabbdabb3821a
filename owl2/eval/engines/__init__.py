"""Inference engines: what answers the prompts of a benchmark.

Start with `engine.py`, which has the protocol and its shapes; `local.py` runs a checkpoint in this process,
`endpoint.py` asks a server. For a new engine copy `endpoint.py`.
"""
