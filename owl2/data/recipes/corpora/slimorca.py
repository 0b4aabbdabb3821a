"""SlimOrca (Lian et al. 2023): GPT-4's reasoned answers to FLAN questions, text alone.

The system prompt comes before the question, on a line of its own: the release's template has no place for
one, and without it nothing would explain the answer's length and style.
"""

from collections.abc import Iterator

from owl2.data.recipes.recipe import ConversationRecipe, CorpusFile, Files, Rejected, Row, recipe
from owl2.jsonl import parse_object


@recipe
class SlimOrca(ConversationRecipe):
    name = "slimorca"
    title = "SlimOrca"
    stage = "instruct"
    in_paper = True
    licence = "MIT"
    size = "517,982 conversations"
    weight = 518
    file = "oo-labeled_correct.gpt4.sharegpt.jsonl"
    files = (CorpusFile(file, "huggingface.co/datasets/Open-Orca/SlimOrca"),)

    def rows(self, files: Files) -> Iterator[Row | Rejected]:
        with files[self.file].open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _read(f"slimorca-{number}", line)


def _read(key: str, line: bytes) -> Row | Rejected:
    try:
        turns = [
            {"from": turn["from"], "value": turn["value"].strip()}
            for turn in parse_object(line, key)["conversations"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Rejected(key, "not a record of the official format", repr(error))
    if len(turns) > 1 and turns[0]["from"] == "system":
        system = turns.pop(0)["value"]
        turns[0] = {**turns[0], "value": f"{system}\n{turns[0]['value']}".strip()}
    return {"id": key, "conversations": turns}
