"""Mathematical answers as AGIEval scores them: find the expression in the output and compare it.

Strings are compared after a fixed tidying of LaTeX (Hendrycks et al. 2021, MATH): 1/2, 0.5, \\frac12 and
\\dfrac{1}{2} are equal, 0.50 and 1/2 are not. There is no algebra, as in the released scores.
"""

import re

_DROPPED = (r"\!", r"\left", r"\right", r"^{\circ}", r"^\circ", r"\$", r"\%")
_PREFIXES = ("The answer is therefore", "答案是")
_UNIT = r"\text{ "


def find_math_answer(output: str) -> str | None:
    """The last boxed expression; else the last between dollars; else what follows the last `=`, or the last
    number. None if there is none of these."""
    for prefix in _PREFIXES:
        output = output.rpartition(prefix)[2].strip() if prefix in output else output
    if r"\boxed" in output:
        return _last_boxed(output)
    between_dollars = re.findall(r"\$(.*)\$", output)
    if between_dollars and _right_side(between_dollars[-1]):
        return _right_side(between_dollars[-1])
    if "=" in output:
        return _right_side(output).rstrip(".").split(r"\n")[0]
    numbers = re.findall(r"\$?\d+(?:\.\d+)?(?!\w)", output)
    return numbers[-1] if numbers else None


def math_equal(answer: str | None, right: str) -> bool:
    """Whether two expressions are the same after tidying; no answer is wrong."""
    return answer is not None and _tidy(answer) == _tidy(right)


def _right_side(expression: str) -> str:
    return expression.rpartition("=")[2].lstrip(" ") if "=" in expression else expression


def _last_boxed(text: str) -> str | None:
    start = text.rfind(r"\boxed")
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if text[at] == "}" and depth == 0:
            boxed = text[start : at + 1]
            return _right_side(boxed[len(r"\boxed{") : -1]) if boxed.startswith(r"\boxed{") else None
    return None


def _tidy(expression: str) -> str:
    text = expression.replace("\n", "").replace(r"\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    for piece in _DROPPED:
        text = text.replace(piece, "")
    text = text.partition(_UNIT)[0]
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    text = "0" + text if text.startswith(".") else text
    if text.count("=") == 1 and len(text.partition("=")[0]) <= 2:
        text = text.partition("=")[2]  # "x = 3" is 3
    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac([^{])(?:(?=\{)|(.))", _brace_fraction, text)
    if text == "0.5":
        return r"\frac{1}{2}"
    return re.sub(r"^(0|-?[1-9]\d*)/(0|-?[1-9]\d*)$", r"\\frac{\1}{\2}", text)


def _brace_fraction(found: re.Match[str]) -> str:
    above, below = found.groups()
    return rf"\frac{{{above}}}" + (rf"{{{below}}}" if below else "")
