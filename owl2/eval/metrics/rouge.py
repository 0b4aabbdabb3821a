"""ROUGE by the `rouge-score` package, which Hugging Face's `evaluate` wraps and OpenCompass reports for XSum.

The paper prints one figure for XSum without saying which; all four are reported.
"""

from collections.abc import Sequence

METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """F-measures by name, 0 to 1, each against its best reference; without stemming.

    For rougeLsum, each line is a sentence.

    Raises:
        ImportError: `rouge-score` is not installed.
        ValueError: no references.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError("ROUGE needs rouge-score: pip install 'owl2[eval]'") from error
    if not references:
        raise ValueError("ROUGE needs at least one reference")
    best = RougeScorer(METRICS, use_stemmer=False).score_multi(references, prediction)
    return {name: best[name].fmeasure for name in METRICS}
