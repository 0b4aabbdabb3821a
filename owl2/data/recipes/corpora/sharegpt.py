"""ShareGPT (2023): conversations of people with a chatbot, text alone.

Shared pages begin and end anywhere, so a conversation starts at the first question and ends with the last
answer. Conversations in which the two sides then do not alternate are left out and counted.
"""

from collections.abc import Iterator
from typing import Any

from owl2.data.recipes.recipe import (
    ConversationRecipe,
    CorpusFile,
    Files,
    Rejected,
    Row,
    read_records,
    recipe,
)

ROLES = {"human": "human", "user": "human", "gpt": "gpt", "chatgpt": "gpt", "bing": "gpt", "bard": "gpt"}


@recipe
class ShareGpt(ConversationRecipe):
    name = "sharegpt"
    title = "ShareGPT"
    stage = "instruct"
    in_paper = True
    licence = "none stated; texts of users and of OpenAI's models"
    size = "about 94,000 conversations (V3, cleaned and split)"
    weight = 40
    file = "ShareGPT_V3_unfiltered_cleaned_split.json"
    files = (CorpusFile(file, "huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered"),)

    def rows(self, files: Files) -> Iterator[Row | Rejected]:
        yield from read_records("conversation", files.read_json(self.file), _read)


def _read(_: str, record: dict[str, Any]) -> Row | Rejected:
    turns = [
        {"from": ROLES.get(turn["from"], turn["from"]), "value": turn["value"].strip()}
        for turn in record["conversations"]
    ]
    while turns and turns[0]["from"] != "human":
        turns.pop(0)
    while turns and turns[-1]["from"] != "gpt":
        turns.pop()
    if not turns:
        return Rejected(str(record["id"]), "no question with an answer")
    return {"id": str(record["id"]), "conversations": turns}
