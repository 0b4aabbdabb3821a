"""A-OKVQA (Schwenk et al. 2022): multiple choice, each question with its options in several orders.

Appendix B.1: "we augment the dataset by switching the order of options". Three orders of 17,056 questions are
51,168 samples, the 50K of Table 14: the given order and two random others. The answer is the option's letter.
"""

import itertools
from collections.abc import Iterator

from owl2.data.recipes.recipe import ConversationRecipe, CorpusFile, Files, Rejected, Row, recipe
from owl2.data.recipes.wording import LETTERS, choice_question, conversation, seeded

ORDERS = 3


@recipe
class AOkVqa(ConversationRecipe):
    name = "aokvqa"
    title = "A-OKVQA"
    stage = "instruct"
    in_paper = True
    licence = "Apache 2.0; images: terms of Flickr"
    size = "17,056 questions (train), COCO train2017"
    weight = 50
    files = (
        CorpusFile("aokvqa_v1p0_train.json", "allenai.org/project/a-okvqa, aokvqa_v1p0.tar.gz"),
        CorpusFile("train2017", "cocodataset.org, 2017 Train images (train2017.zip)", folder="coco"),
    )

    def rows(self, files: Files) -> Iterator[Row | Rejected]:
        for record in files.read_json("aokvqa_v1p0_train.json"):
            try:
                key, choices = record["question_id"], record["choices"]
                right = choices[record["correct_choice_idx"]]
                image = files.name_of("train2017", f"{record['image_id']:012d}.jpg")
                question = record["question"]
            except (KeyError, IndexError, TypeError, ValueError) as error:
                name = str(record.get("question_id", "?")) if isinstance(record, dict) else repr(record)[:40]
                yield Rejected(name, "not a record of the official format", repr(error))
                continue
            others = list(itertools.permutations(choices))[1:]
            orders = [tuple(choices), *seeded(self.name, key).sample(others, min(ORDERS - 1, len(others)))]
            for number, order in enumerate(orders):
                exchange = (choice_question(question, order), LETTERS[order.index(right)])
                yield conversation(f"{key}-{number}", image, [exchange])
