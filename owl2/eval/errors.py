"""What a wrong file, setting or name raises in evaluation.

A program shows the message, which says what to do; other exceptions are our mistakes and keep their trace.
"""

from owl2.eval.chat_client import EndpointError
from owl2.eval.compare import CompareError
from owl2.eval.engine import EngineError
from owl2.eval.export import ExportError
from owl2.eval.judge import JudgeError
from owl2.eval.predictions import PredictionError
from owl2.eval.runner import RunError
from owl2.eval.score import ScoreError
from owl2.eval.task import DataMissing, EvalDataError, UnknownTask

EVAL_ERRORS: tuple[type[Exception], ...] = (
    CompareError,
    DataMissing,
    EndpointError,
    EngineError,
    EvalDataError,
    ExportError,
    JudgeError,
    PredictionError,
    RunError,
    ScoreError,
    UnknownTask,
)
