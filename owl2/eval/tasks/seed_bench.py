"""SEED-Bench: four-option questions on images (types 1-9) and videos (10-12), accuracy over all (Table 2).

The authors asked for the letter with MMBench's prompt (X-PLUG/mPLUG-Owl#185); the benchmark's own method, the
likeliest of the options' texts, is `seed_bench_ppl`. Videos: Something-Something v2 (type 10, whole clips),
EPIC-KITCHENS (11, `segment` in seconds), Breakfast (12, `segment` in frames at 15 a second). Each of the four
sources runs if its folder is there; the paper's figure is over all. Clips are read, not the published frames
(v1_video.zip). The question file was replaced on 30 November 2023, after the paper.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from owl2.eval.formats.media import MediaFolder
from owl2.eval.formats.records import Record, as_records, read_object, usable
from owl2.eval.metrics.averages import is_right, mean, mean_by_group
from owl2.eval.metrics.choice import parse_choice
from owl2.eval.task import (
    Answer,
    DataFile,
    DataMissing,
    EvalDataError,
    Item,
    Score,
    Skipped,
    Task,
    Template,
    task,
)
from owl2.eval.tasks.prompts import (
    CHOICE,
    CHOICE_VLMEVALKIT,
    SHORT_ANSWER,
    bare_question,
    by_analogy,
    multiple_choice_llava,
)
from owl2.eval.tasks.ranked import Ranked

QUESTIONS = "seed_bench/SEED-Bench.json"
IMAGES = "seed_bench/SEED-Bench-image"
CLIPS = {
    10: "seed_bench/SSV2/videos",
    11: "seed_bench/EPIC-KITCHENS/3h91syskeag572hl6tvuovwv4d/videos/test",
    12: "seed_bench/BreakfastII_15fps_qvga_sync",
}
"""Folder of each video type, named as the downloads unpack."""
CLIP_SOURCES = {
    10: "https://developer.qualcomm.com/software/ai-datasets/something-something",
    11: "https://github.com/epic-kitchens/epic-kitchens-download-scripts",
    12: "https://serre-lab.clps.brown.edu/resource/breakfast-actions-dataset/",
}
BREAKFAST_FPS = 15
SOURCE = "https://huggingface.co/datasets/AILab-CVC/SEED-Bench"
LETTERS = "ABCD"


@task
class SeedBench(Task):
    name = "seed_bench"
    title = "SEED-Bench"
    files = (
        DataFile(QUESTIONS, f"{SOURCE}/resolve/main/SEED-Bench.json", "CC-BY-NC-4.0"),
        DataFile(IMAGES, f"{SOURCE}/resolve/main/SEED-Bench-image.zip", "CC-BY-NC-4.0", is_required=False),
        *(DataFile(folder, CLIP_SOURCES[kind], is_required=False) for kind, folder in CLIPS.items()),
    )
    templates: ClassVar[dict[str, Template]] = {
        **by_analogy(CHOICE, "evaluate_mmbench.py, which the authors refer to"),
        "owl2-vlmevalkit": CHOICE_VLMEVALKIT,
        "llava15": Template("LLaVA, llava-seed-bench.jsonl", multiple_choice_llava),
        "lmms-eval": Template("lmms-eval 0.7.3, seedbench.yaml", multiple_choice_llava),
    }
    old_names: ClassVar[dict[str, str]] = {"owl2-paper": "owl2-2023"}
    decoding = SHORT_ANSWER
    expected = (19_242, 17_989)
    defects = (
        "the file of 2023 has question 49914 twice in its 19,242 records: the second is skipped",
        "17,989 records are the ids seen of the file of 30 November 2023; not verified",
    )

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        found = self.find(data)
        folders = {
            file.path: MediaFolder(self.name, data, file.path)
            for file in self.files[1:]
            if file.path in found
        }
        if not folders:
            raise DataMissing(self.name, [file.path for file in self.files[1:]])
        file = found[QUESTIONS]
        content = read_object(file, "questions", "question_type")
        if not isinstance(content["question_type"], dict):
            raise EvalDataError(f"{file}: question_type is no object of numbers by name")
        types = content["question_type"].items()
        names = {number: name for name, number in types if isinstance(number, int)}
        for made in usable(as_records(content["questions"], file), lambda row: _item(row, folders, names)):
            if made is not None:
                yield made

    def parse(self, item: Item, output: str) -> str | None:
        return parse_choice(output, item.choices)

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        right = [float(is_right(answer)) for answer in answers]
        types = {answer.item.extra["type_id"] for answer in answers}
        is_whole = types >= set(CLIPS) and types - set(CLIPS)
        return [
            mean("accuracy", answers, right, paper_id="2/12" if is_whole else ""),
            *mean_by_group("data", "accuracy", answers, right),
            *mean_by_group("type", "accuracy", answers, right),
        ]


@task
class SeedBenchPpl(Ranked, SeedBench):
    name = "seed_bench_ppl"
    title = "SEED-Bench (likeliest option)"
    templates: ClassVar[dict[str, Template]] = {
        "seed-bench": Template(
            "SEED-Bench, eval.py: the question, options compared by likelihood", bare_question
        )
    }


def _item(record: Record, folders: dict[str, MediaFolder], names: dict[int, str]) -> Item | None:
    """The question; None if the data of its source are not there."""
    folder, kind = folders.get(_folder(record)), record.whole("question_type_id")
    if folder is None:
        return None
    if "choice_e" in record.fields:
        record.fail("a choice_e, expected choice_a to choice_d")
    name = record.text("data_id")
    is_image = folder.folder == IMAGES
    return Item(
        id=record.id("question_id"),
        question=record.text("question"),
        images=(folder.image(record, name),) if is_image else (),
        video=None if is_image else folder.file(record, name),
        segment=None if is_image else _segment(record),
        choices={letter: record.text(f"choice_{letter.lower()}") for letter in LETTERS},
        references=(record.one_of("answer", LETTERS),),
        category={"data": record["data_type"], "type": names.get(kind, str(kind))},
        cluster=name,
        extra={"type_id": kind},
    )


def _folder(record: Record) -> str:
    if record.one_of("data_type", ("image", "video")) == "image":
        return IMAGES
    kind = record.whole("question_type_id")
    if kind not in CLIPS:
        record.fail(f"a video of type {kind}; videos are 10, 11 and 12")
    return CLIPS[kind]


def _segment(record: Record) -> tuple[float, float] | None:
    """Begin and end in seconds, or None for the whole clip."""
    kind = record["question_type_id"]
    if kind == 10:
        return None
    segment: Any = record["segment"]
    is_pair = (
        isinstance(segment, list) and len(segment) == 2 and all(isinstance(x, int | float) for x in segment)
    )
    if not is_pair or not 0 <= segment[0] < segment[1]:
        record.fail(f"segment is {segment!r}, expected begin and end")
    per_second = BREAKFAST_FPS if kind == 12 else 1
    return segment[0] / per_second, segment[1] / per_second
