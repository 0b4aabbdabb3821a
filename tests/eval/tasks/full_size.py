"""Writes benchmarks in the number of records, the layout and with the defects of their official files.

Contents are made up. Numbers of records a file are those of the published files; where only the sum is known
(MMLU's subjects), the parts are made up. Media are empty files: readers only look whether they are there.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from owl2.eval.tasks.bbh import CHOICE, FREE_FORM

Write = Callable[[Path], None]


def lines(file: Path, rows: Iterable[Any], end: str = "\n") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(map(json.dumps, rows)) + end)


def whole(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def touch(folder: Path, names: Iterable[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


BBH = {name: 250 for name in (*CHOICE, *FREE_FORM)} | {
    "causal_judgement": 187,
    "penguins_in_a_table": 146,
    "snarks": 178,
}
BBH_DEFECTS = {
    ("ruin_names", 99): "earth, wind, & tire",
    ("ruin_names", 144): "rita, sue and rob two",
    ("movie_recommendation", 163): "Monsters, Inc",
}
"""Targets that are no letter, at the places of the published ones."""


def bbh(data: Path) -> None:
    for name, count in BBH.items():
        target = "(A)" if name in CHOICE else "yes"
        rows = [
            {"input": f"question {n}", "target": BBH_DEFECTS.get((name, n), target)} for n in range(count)
        ]
        whole(data / f"BIG-Bench-Hard/bbh/{name}.json", {"canary": "x", "examples": rows})
        prompts = data / "BIG-Bench-Hard/cot-prompts"
        prompts.mkdir(exist_ok=True)
        (prompts / f"{name}.txt").write_text("canary\n-----\nQ: a\nA: So the answer is b.")


AGIEVAL = {
    **{"aqua-rat": 254, "gaokao-biology": 210, "gaokao-chemistry": 207, "gaokao-chinese": 246},
    **{"gaokao-english": 306, "gaokao-geography": 199, "gaokao-history": 235, "gaokao-mathcloze": 118},
    **{"gaokao-mathqa": 351, "gaokao-physics": 200, "jec-qa-ca": 1000, "jec-qa-kd": 1000, "logiqa-en": 651},
    **{"logiqa-zh": 651, "lsat-ar": 230, "lsat-lr": 510, "lsat-rc": 269, "math": 1000, "sat-en": 206},
    **{"sat-en-without-passage": 206, "sat-math": 220},
}


def agieval(data: Path) -> None:
    for exam, count in AGIEVAL.items():
        has_several = exam in ("jec-qa-ca", "jec-qa-kd")
        is_gap = exam in ("gaokao-mathcloze", "math")
        row = {
            "passage": None,
            "question": "?",
            "options": None if is_gap else ["(A)a", "(B)b", "(C)c", "(D)d"],
            "label": None if is_gap else ["A", "B"] if has_several else "A",
            "answer": "2" if is_gap else None,
        }
        rows = [dict(row) for _ in range(count)]
        if exam == "jec-qa-kd":
            rows[211]["label"] = []
        if exam == "gaokao-mathqa":
            rows[148]["label"] = "AD"
        # Two of the published files end without a line break.
        lines(data / f"AGIEval/data/v1/{exam}.jsonl", rows, "" if exam in ("sat-en", "math") else "\n")


def pope(data: Path, num_random: int = 3000) -> None:
    images = [f"COCO_val2014_{n:012d}.jpg" for n in range(500)]
    touch(data / "coco/val2014", images)
    for split, count in (("random", num_random), ("popular", 3000), ("adversarial", 3000)):
        rows = [
            {
                "question_id": n + 1,
                "image": images[n // 6],
                "text": "Is there?",
                "label": ("yes", "no")[n % 2],
            }
            for n in range(count)
        ]
        lines(data / f"pope/output/coco/coco_pope_{split}.json", rows)


def pope_of_2910(data: Path) -> None:
    pope(data, 2910)


def mmvet(data: Path) -> None:
    touch(data / "mm-vet/images", [f"v1_{n}.png" for n in range(218)])
    rows = {
        f"v1_{n}": {"imagename": f"v1_{n}.png", "question": "?", "answer": "a<AND>b", "capability": ["ocr"]}
        for n in range(218)
    }
    whole(data / "mm-vet/mm-vet.json", rows)


def mmlu(data: Path) -> None:
    sizes = [246] * 56 + [14_042 - 56 * 246]
    for part in ("dev", "test"):
        (data / "mmlu/data" / part).mkdir(parents=True)
    for number, size in enumerate(sizes):
        row = '"What, then\nis it?",one,two,"three, or so",four,B\n'
        (data / f"mmlu/data/dev/subject_{number}_dev.csv").write_text(row * 5)
        (data / f"mmlu/data/test/subject_{number}_test.csv").write_text(row * size)


def arc(data: Path) -> None:
    for name, sizes in (("Challenge", (1172, 299)), ("Easy", (2376, 570))):
        for split, size in zip(("Test", "Dev"), sizes, strict=True):
            rows = [
                {
                    "id": f"{split}_{n}",
                    "question": {
                        "stem": "?",
                        "choices": [
                            {"text": "a", "label": label} for label in ("1234" if n % 9 == 0 else "ABCD")
                        ],
                    },
                    "answerKey": "2" if n % 9 == 0 else "B",
                }
                for n in range(size)
            ]
            lines(data / f"ARC-V1-Feb2018-2/ARC-{name}/ARC-{name}-{split}.jsonl", rows)


def boolq(data: Path) -> None:
    rows = [{"question": "is it", "passage": "P -- p.", "idx": n, "label": n % 2 == 0} for n in range(3270)]
    lines(data / "BoolQ/val.jsonl", rows)


def tgif_qa(data: Path) -> None:
    touch(data / "tgif_qa/gifs", [f"tumblr_{n}.gif" for n in range(500)])
    rows = [
        f'tumblr_{n % 500}\twhat "is it ?\tcat\t{n % 4}\tFRAMEQA{n}\t{n}\ta cat sits' for n in range(13_691)
    ]
    head = "gif_name\tquestion\tanswer\ttype\tvid_id\tkey\tdescription"
    (data / "tgif_qa/Test_frameqa_question.csv").write_bytes(("\r\n".join([head, *rows]) + "\r\n").encode())


def seed_bench(data: Path) -> None:
    touch(data / "seed_bench/SEED-Bench-image", [f"{n}.jpg" for n in range(100)])
    rows = [
        {
            "answer": "A",
            **{f"choice_{letter}": letter for letter in "abcd"},
            "data_id": f"{n % 100}.jpg",
            "data_type": "image",
            "question": "?",
            "question_id": str(n),
            "question_type_id": n % 9 + 1,
        }
        for n in range(19_242)
    ]
    rows[19_000]["question_id"] = "49914"
    rows[19_001]["question_id"] = "49914"
    types = {f"type {n}": n for n in range(1, 13)}
    whole(data / "seed_bench/SEED-Bench.json", {"questions": rows, "question_type": types})


def xsum(data: Path) -> None:
    rows = [{"id": n, "dialogue": "text", "summary": "s"} for n in range(11_000)]
    rows[219]["dialogue"] = float("nan")
    rows[500]["dialogue"] = float("nan")
    lines(data / "Xsum/dev.jsonl", rows)


def triviaqa(data: Path) -> None:
    (data / "triviaqa").mkdir()
    rows = "".join(f'question {n}\t"[\'a\', \'b ""c""\']"\r\n' for n in range(8837))
    (data / "triviaqa/trivia-dev.qa.csv").write_text(rows)


def hellaswag(data: Path) -> None:
    row = {"ctx": "a. b", "ctx_a": "a.", "ctx_b": "b", "activity_label": "x", "source_id": "wikihow~1"}
    rows = [{**row, "ind": n, "endings": list("abcd"), "label": n % 4} for n in range(10_042)]
    lines(data / "hellaswag/hellaswag_val.jsonl", rows)


def okvqa(data: Path) -> None:
    touch(data / "coco/val2014", [f"COCO_val2014_{n:012d}.jpg" for n in range(300)])
    ids = [{"image_id": n % 300, "question_id": 10 * n} for n in range(5046)]
    whole(
        data / "okvqa/OpenEnded_mscoco_val2014_questions.json",
        {"data_subtype": "val2014", "questions": [{**row, "question": "?"} for row in ids]},
    )
    answers = [{"answer": "stop", "raw_answer": "stopping", "answer_id": n} for n in range(1, 11)]
    rows = [{**row, "answers": answers, "answer_type": "other"} for row in reversed(ids)]
    whole(data / "okvqa/mscoco_val2014_annotations.json", {"annotations": rows})


def vizwiz_test(data: Path) -> None:
    names = [f"VizWiz_test_{n:08d}.jpg" for n in range(8000)]
    touch(data / "vizwiz/test", names)
    whole(data / "vizwiz/test.json", [{"image": name, "question": "?"} for name in names])


def mmbench_dev(data: Path) -> None:
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "l2-category"]
    rows = ["\t".join(columns)]
    for question in range(1164):
        num_options = 3 if question < 279 else 4
        for rotation in range(num_options):
            index = question + 1_000_000 * rotation
            options = [*"abcd"[:num_options], *[""] * (4 - num_options)]
            cells = [str(index), "?", "", *options, "A", "x", "A" * 80, "coarse_perception"]
            rows.append("\t".join(cells))
    (data / "mmbench").mkdir()
    (data / "mmbench/mmbench_dev_20230712.tsv").write_text("\n".join(rows) + "\n")
