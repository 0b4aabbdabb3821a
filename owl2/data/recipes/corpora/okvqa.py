"""OK-VQA (Marino et al. 2019): as VQAv2, with the answers that its metric compares.

The file has each annotator's answer as typed (`raw_answer`) and in the standard form (`answer`) that the
benchmark scores; votes are counted over the standard form, which is also the target.
"""

from owl2.data.recipes.corpora.vqav2 import TRAIN2014, VqaRecipe
from owl2.data.recipes.recipe import CorpusFile, recipe


@recipe
class OkVqa(VqaRecipe):
    name = "okvqa"
    title = "OK-VQA"
    stage = "instruct"
    in_paper = True
    licence = "CC BY 4.0; images: terms of Flickr"
    size = "9,009 questions on 8,998 images (train2014)"
    weight = 9
    questions = "OpenEnded_mscoco_train2014_questions.json"
    annotations = "mscoco_train2014_annotations.json"
    files = (
        CorpusFile(questions, "okvqa.allenai.org/download.html, Training questions"),
        CorpusFile(annotations, "okvqa.allenai.org/download.html, Training annotations"),
        TRAIN2014,
    )
