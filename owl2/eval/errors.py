"""What a wrong file, setting or name raises in evaluation.

A program shows the message, which says what to do; other exceptions are our mistakes and keep their trace.
"""

from owl2.eval.answers.predictions import PredictionError
from owl2.eval.engines.chat_client import EndpointError
from owl2.eval.engines.engine import EngineError
from owl2.eval.judge.grading import JudgeError
from owl2.eval.report.compare import CompareError
from owl2.eval.report.export import ExportError
from owl2.eval.runner import RunError
from owl2.eval.scoring.score import ScoreError
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
