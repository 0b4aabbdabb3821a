"""VQAv2 (Goyal et al. 2017): all questions of an image in one conversation, the most confident answer of ten.

Appendix B.1: "selecting the answer with the highest confidence and combining question-answer pairs that
share the same image". The questions of train2014 are on 82,783 images: the 83K of Table 14.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

from owl2.data.recipes.recipe import ConversationRecipe, CorpusFile, Files, Rejected, Row, recipe
from owl2.data.recipes.wording import Exchange, conversation, most_confident, short_question

TRAIN2014 = CorpusFile("train2014", "cocodataset.org, 2014 Train images (train2014.zip)", folder="coco")


class VqaRecipe(ConversationRecipe):
    """A corpus in the VQA format on train2014: a file of questions and one of annotations."""

    questions: ClassVar[str]
    annotations: ClassVar[str]

    def rows(self, files: Files) -> Iterator[Row | Rejected]:
        questions = files.read_json(self.questions)["questions"]
        annotations = files.read_json(self.annotations)["annotations"]
        yield from _joined(files, questions, annotations)


@recipe
class Vqav2(VqaRecipe):
    name = "vqav2"
    title = "VQAv2"
    stage = "instruct"
    in_paper = True
    licence = "annotations CC BY 4.0; images: terms of Flickr"
    size = "443,757 questions on 82,783 images (train2014)"
    weight = 83
    questions = "v2_OpenEnded_mscoco_train2014_questions.json"
    annotations = "v2_mscoco_train2014_annotations.json"
    files = (
        CorpusFile(questions, "visualqa.org/download.html, Training questions 2017 v2.0"),
        CorpusFile(annotations, "visualqa.org/download.html, Training annotations 2017 v2.0"),
        TRAIN2014,
    )


def _joined(
    files: Files, questions: list[dict[str, Any]], annotations: list[dict[str, Any]]
) -> Iterator[Row | Rejected]:
    """Join questions and answers by id; images come in the order of their first question."""
    answers = {annotation["question_id"]: annotation["answers"] for annotation in annotations}
    by_image: dict[int, list[Exchange]] = {}
    for question in questions:
        key = str(question["question_id"])
        try:
            answer = most_confident(answers[question["question_id"]])
            by_image.setdefault(question["image_id"], []).append(
                (short_question(question["question"]), answer)
            )
        except (KeyError, ValueError) as error:
            yield Rejected(key, "question without a usable answer", repr(error))
    for image_id, exchanges in by_image.items():
        image = files.name_of("train2014", f"COCO_train2014_{image_id:012d}.jpg")
        yield conversation(str(image_id), image, exchanges)
