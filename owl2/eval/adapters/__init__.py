"""owl2 as a model of other evaluation harnesses, to compare with what they published.

`lm_eval.py` is for EleutherAI's lm-evaluation-harness, `lmms_eval.py` for lmms-eval. Prompts, splits and
scores are then the harness's, which for most of the paper's benchmarks are not the paper's. Both modules
import without their harness and say what to install when a model is made.
"""
