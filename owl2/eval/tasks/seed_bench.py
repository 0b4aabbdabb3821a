"""SEED-Bench: four-option questions on images (types 1-9) and videos (10-12), accuracy over all (Table 2).

The authors asked for the letter with MMBench's prompt (X-PLUG/mPLUG-Owl#185); the benchmark's own way, the
likeliest of the options' texts, is `seed_bench_ppl`. Videos: Something-Something v2 (type 10, whole clips),
EPIC-KITCHENS (11, `segment` in seconds), Breakfast (12, `segment` in frames at 15 a second). Each of the four
sources runs if its folder is there; the paper's figure is over all. Not verified: the number of questions
(14,233 and 5,009). The published frames (v1_video.zip) are not read; clips are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from owl2.eval.formats.annotations import checked
from owl2.eval.formats.records import Record, as_records, folder_images, read_json
from owl2.eval.metrics.choice import parse_choice
from owl2.eval.scoring.averages import is_right, mean, mean_by_group
from owl2.eval.task import (
    Answer,
    DataFile,
    DataMissing,
    Decoding,
    EvalDataError,
    Item,
    Score,
    Task,
    Template,
    task,
)
from owl2.eval.tasks.prompts import (
    VLMEVALKIT_CHOICE,
    bare_question,
    multiple_choice,
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
        "owl2-paper": Template("evaluate_mmbench.py, which the authors refer to", multiple_choice),
        "owl2-vlmevalkit": VLMEVALKIT_CHOICE,
        "llava15": Template("LLaVA, llava-seed-bench.jsonl", multiple_choice_llava),
        "lmms-eval": Template("lmms-eval 0.7.3, seedbench.yaml", multiple_choice_llava),
    }
    decoding = Decoding(max_new_tokens=10, min_new_tokens=1)
    expected = (19242,)

    def items(self, data: Path) -> list[Item]:
        there = self.find(data)
        folders = [file.path for file in self.files[1:]]
        if not any(folder in there for folder in folders):
            raise DataMissing(self.name, folders)
        names, records = _questions(there[QUESTIONS])
        chosen = [record for record in records if _folder(record) in there]
        files = [record.text("data_id") for record in chosen if _folder(record) == IMAGES]
        images = folder_images(self.name, data, IMAGES, files) if files else {}
        _check_clips(data, [record for record in chosen if _folder(record) != IMAGES])
        items = []
        for record in chosen:
            is_image = _folder(record) == IMAGES
            name = record.text("data_id")
            items.append(
                Item(
                    id=record.text("question_id"),
                    question=record.text("question"),
                    images=(images[name],) if is_image else (),
                    video=None if is_image else data / _folder(record) / name,
                    segment=None if is_image else _segment(record),
                    choices={letter: record.text(f"choice_{letter.lower()}") for letter in LETTERS},
                    references=(record.one_of("answer", LETTERS),),
                    category={
                        "data": record["data_type"],
                        "type": names.get(record["question_type_id"], str(record["question_type_id"])),
                    },
                    cluster=name,
                    extra={"type_id": record["question_type_id"]},
                )
            )
        return checked(self.name, items)

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


def _questions(file: Path) -> tuple[dict[int, str], list[Record]]:
    """Names of the types, and the questions."""
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("question_type"), dict):
        raise EvalDataError(f"{file}: expected an object with questions and question_type")
    names = {number: name for name, number in content["question_type"].items()}
    return names, as_records(content.get("questions"), file)


def _folder(record: Record) -> str:
    if record.one_of("data_type", ("image", "video")) == "image":
        return IMAGES
    if record["question_type_id"] not in CLIPS:
        raise record.error(f"a video of type {record['question_type_id']}; videos are 10, 11 and 12")
    return CLIPS[record["question_type_id"]]


def _check_clips(data: Path, records: Sequence[Record]) -> None:
    paths = dict.fromkeys(f"{_folder(record)}/{record.text('data_id')}" for record in records)
    missing = [path for path in paths if not (data / path).is_file()]
    if missing:
        raise EvalDataError(
            f"seed_bench: {len(missing)} of {len(paths)} clips are not in {data}, the first is {missing[0]}"
        )


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
        raise record.error(f"segment is {segment!r}, expected begin and end")
    per_second = BREAKFAST_FPS if kind == 12 else 1
    return segment[0] / per_second, segment[1] / per_second
