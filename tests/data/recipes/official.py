"""Miniature corpora in the exact layout and record format of the official downloads, made here.

Two to five records each, with tiny images, under one root: `coco/` is shared, every other corpus has a
folder of its own name, as `owl2 data convert instruct --source ROOT` expects. Records have all the fields
that the official ones have, those that recipes ignore included.
"""

import io
import json
import pickle
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image

from tests.data.small import write_tar

COCO_2014 = (9, 25, 30)
COCO_2017 = (33471, 52846)
SHARDED = ("cc3m", "cc12m", "coco_captions", "laion_en", "coyo", "datacomp")


def jpeg(size: tuple[int, int], seed: int) -> bytes:
    rng = random.Random(seed)
    image = Image.new("RGB", size, tuple(rng.choices(range(256), k=3)))
    image.paste(tuple(rng.choices(range(256), k=3)), (3, 3, size[0] // 2, size[1] // 2))
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


def write_image(path: Path, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(size, len(path.name)))


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_official(root: Path) -> Path:
    """Write every instruction corpus."""
    for image_id in COCO_2014:
        write_image(root / "coco" / "train2014" / f"COCO_train2014_{image_id:012d}.jpg")
    for image_id in COCO_2017:
        write_image(root / "coco" / "train2017" / f"{image_id:012d}.jpg")
    vqa = (write_vqav2, write_okvqa, write_gqa, write_ocrvqa, write_aokvqa)
    others = (write_coco, write_textcaps, write_refcoco, write_visual_genome)
    for write in (*vqa, *others, write_llava_158k, write_sharegpt, write_slimorca):
        write(root)
    return root


def answers(*given: tuple[str, str]) -> list[dict[str, Any]]:
    return [
        {"answer": text, "answer_confidence": confidence, "answer_id": number}
        for number, (text, confidence) in enumerate(given, start=1)
    ]


def write_vqav2(root: Path) -> None:
    """Two questions on image 9, one on 25; "white" has fewer votes than "grey" and more confidence."""
    header = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": "train2014"}
    texts = {9000: "What is on the plate?", 25000: "What colour is it?", 9001: "Is it  raw? "}
    write_json(
        root / "vqav2" / "v2_OpenEnded_mscoco_train2014_questions.json",
        {
            **header,
            "task_type": "Open-Ended",
            "questions": [
                {"image_id": question_id // 1000, "question": text, "question_id": question_id}
                for question_id, text in texts.items()
            ],
        },
    )
    given = {
        9000: answers(*[("broccoli", "yes")] * 7, *[("food", "maybe")] * 3),
        25000: answers(*[("grey", "no")] * 4, *[("grey", "maybe")] * 2, *[("white", "yes")] * 4),
        9001: answers(("no", "maybe"), ("yes", "maybe"), *[("no", "yes")] * 8),
    }
    annotations = [
        {
            "question_type": "what",
            "multiple_choice_answer": "?",
            "answers": given[question_id],
            "image_id": question_id // 1000,
            "answer_type": "other",
            "question_id": question_id,
        }
        for question_id in sorted(texts)
    ]
    write_json(
        root / "vqav2" / "v2_mscoco_train2014_annotations.json", {**header, "annotations": annotations}
    )


def write_okvqa(root: Path) -> None:
    questions = [{"image_id": 30, "question": "What sport is this?", "question_id": 305}]
    given = [
        {**answer, "raw_answer": raw}
        for answer, raw in zip(
            answers(*[("race", "yes")] * 6, *[("motocross", "yes")] * 4),
            ["racing"] * 4 + ["races"] * 2 + ["motocross"] * 4,
            strict=True,
        )
    ]
    annotation = {
        "image_id": 30,
        "answer_type": "other",
        "question_type": "four",
        "question_id": 305,
        "answers": given,
        "confidence": 3,
    }
    folder = root / "okvqa"
    write_json(folder / "OpenEnded_mscoco_train2014_questions.json", {"questions": questions})
    write_json(folder / "mscoco_train2014_annotations.json", {"annotations": [annotation]})


def write_gqa(root: Path) -> None:
    def question(text: str, image: str, answer: str) -> dict[str, Any]:
        return {
            "semantic": [{"operation": "select", "dependencies": [], "argument": "scene"}],
            "entailed": [],
            "equivalent": [],
            "question": text,
            "imageId": image,
            "isBalanced": True,
            "groups": {"global": None, "local": "10q-sky"},
            "answer": answer,
            "semanticStr": "select: sky",
            "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
            "types": {"detailed": "place", "semantic": "global", "structural": "query"},
            "fullAnswer": f"It is {answer}.",
        }

    records = {
        "02930152": question("Is the sky dark?", "2354786", "yes"),
        "07333408": question("What is on the white wall?", "n375319", "pipe"),
        "02930153": question("What colour is the sky?", "2354786", "blue"),
    }
    write_json(root / "gqa" / "train_balanced_questions.json", records)
    for image in ("2354786", "n375319"):
        write_image(root / "gqa" / "images" / f"{image}.jpg")


def write_ocrvqa(root: Path) -> None:
    """Three covers to learn from, the last renamed from `.png` to `.jpg`, and one of the test set."""

    def cover(address: str, split: int) -> dict[str, Any]:
        return {
            "imageURL": f"http://ecx.images-amazon.com/images/I/{address}",
            "questions": ["Who wrote this book?", "Is this a fitness book?"],
            "answers": ["Sandra Boynton", "No"],
            "title": "Mom's Family Wall Calendar 2016",
            "authorName": "Sandra Boynton",
            "genre": "Calendars",
            "split": split,
        }

    covers = {
        "761183272": ("61Y5.jpg", 1),
        "B0000": ("71a.gif", 1),
        "B0001": ("71b.png", 1),
        "B0002": ("7.jpg", 3),
    }
    write_json(root / "ocrvqa" / "dataset.json", {key: cover(*value) for key, value in covers.items()})
    for name in ("761183272.jpg", "B0000.gif", "B0001.jpg"):
        write_image(root / "ocrvqa" / "images" / name)


def write_aokvqa(root: Path) -> None:
    records = [
        {
            "split": "train",
            "image_id": COCO_2017[number],
            "question_id": f"22MexNkBPpdZGX6sxbxVB{number}",
            "question": "What is the man by the bags awaiting?",
            "choices": ["skateboarder", "train", "delivery", "cab"],
            "correct_choice_idx": 3,
            "direct_answers": ["ride", "ride", "bus", "taxi", "cab", "cab", "cab", "cab", "his ride", "taxi"],
            "difficult_direct_answer": False,
            "rationales": ["A cab would be on the street.", "He has bags.", "He waits for a ride."],
        }
        for number in range(2)
    ]
    write_json(root / "aokvqa" / "aokvqa_v1p0_train.json", records)


def write_coco(root: Path) -> None:
    images = [
        {
            "license": 5,
            "file_name": f"COCO_train2014_{image_id:012d}.jpg",
            "coco_url": f"http://images.cocodataset.org/train2014/COCO_train2014_{image_id:012d}.jpg",
            "height": 30,
            "width": 40,
            "date_captured": "2013-11-14 16:28:13",
            "flickr_url": "http://farm4.staticflickr.com/3153/2970773875_164f0c0b83_z.jpg",
            "id": image_id,
        }
        for image_id in COCO_2014
    ]
    annotations = [
        {"image_id": image_id, "id": 10 * image_id + n, "caption": f"Caption {n} of image {image_id}. "}
        for n in range(5)
        for image_id in COCO_2014
    ]
    value = {"info": {}, "images": images, "licenses": [], "annotations": annotations}
    write_json(root / "coco" / "annotations" / "captions_train2014.json", value)


def write_textcaps(root: Path) -> None:
    def record(image_id: str, number: int, text: str) -> dict[str, Any]:
        return {
            "caption_str": text,
            "caption_tokens": text.lower().split(),
            "reference_strs": ["not used"] * 5,
            "reference_tokens": [["not", "used"]] * 5,
            "image_id": image_id,
            "image_classes": ["Poster"],
            "flickr_original_url": "https://farm7.staticflickr.com/6024/1.jpg",
            "flickr_300k_url": "https://c6.staticflickr.com/1.jpg",
            "image_width": 1024,
            "image_height": 730,
            "set_name": "train",
            "image_name": image_id,
            "image_path": f"train/{image_id}.jpg",
            "caption_id": number,
        }

    ids = ("0054c91397f2fe05", "005635e119b9f32f")
    data = [record(ids[n // 5], n + 1, f"Caption {n} says STOP") for n in range(10)]
    value = {"dataset_type": "train", "dataset_name": "textcaps", "dataset_version": "0.1", "data": data}
    write_json(root / "textcaps" / "TextCaps_0.1_train.json", value)
    for image_id in ids:
        write_image(root / "textcaps" / "train_images" / f"{image_id}.jpg")


def write_refcoco(root: Path) -> None:
    """A referent of image 9 in each of the three, one of 25 in RefCOCO, and one of its validation set."""
    for name, by, image_ids in (
        ("refcoco", "unc", (9, 25, 30)),
        ("refcoco+", "unc", (9,)),
        ("refcocog", "umd", (9,)),
    ):
        refs = [
            {
                "sent_ids": [2 * n, 2 * n + 1],
                "file_name": f"COCO_train2014_{image_id:012d}_{n}.jpg",
                "ann_id": 100 + n,
                "ref_id": n,
                "image_id": image_id,
                "split": "val" if image_id == 30 else "train",
                "sentences": [
                    {"tokens": ["the", "cup"], "raw": "THE cup", "sent_id": 2 * n, "sent": f"the {name} cup"},
                    {"tokens": ["cup"], "raw": "cup!", "sent_id": 2 * n + 1, "sent": f"{name} cup"},
                ],
                "category_id": 47,
            }
            for n, image_id in enumerate(image_ids)
        ]
        instances = {
            "images": [
                {"file_name": f"COCO_train2014_{i:012d}.jpg", "height": 30, "width": 40, "id": i}
                for i in image_ids
            ],
            "annotations": [
                {"segmentation": [[1, 2, 3]], "area": 9.0, "iscrowd": 0, "image_id": i, "category_id": 47,
                 "bbox": [10.0, 15.0, 20.0, 7.5], "id": 100 + n}
                for n, i in enumerate(image_ids)
            ],
            "categories": [{"supercategory": "kitchen", "id": 47, "name": "cup"}],
        }  # fmt: skip
        write_json(root / "refcoco" / name / "instances.json", instances)
        (root / "refcoco" / name / f"refs({by}).p").write_bytes(pickle.dumps(refs, protocol=2))


def write_visual_genome(root: Path) -> None:
    """Twelve regions on image 1, one of them outside it, and one region on image 2."""
    images, descriptions = [], []
    for image_id, folder in ((1, "VG_100K_2"), (2, "VG_100K")):
        images.append(
            {
                "width": 40,
                "url": f"https://cs.stanford.edu/people/rak248/{folder}/{image_id}.jpg",
                "height": 30,
                "image_id": image_id,
                "coco_id": None,
                "flickr_id": None,
            }
        )
        regions = [
            {"region_id": 1382 + n, "width": 10, "height": 15, "image_id": image_id, "phrase": f"part {n}",
             "y": 15, "x": 2 * n if n < 11 else 90}
            for n in range(12 if image_id == 1 else 1)
        ]  # fmt: skip
        descriptions.append({"regions": regions, "id": image_id})
        write_image(root / "visual_genome" / folder / f"{image_id}.jpg")
    write_json(root / "visual_genome" / "image_data.json", images)
    write_json(root / "visual_genome" / "region_descriptions.json", descriptions)


def write_llava_158k(root: Path) -> None:
    def record(image_id: int, *values: str) -> dict[str, Any]:
        turns = [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)]
        return {"id": f"{image_id:012d}", "image": f"{image_id:012d}.jpg", "conversations": turns}

    first, second = COCO_2017
    records = [
        record(first, "<image>\nWhat colours are there?", "White and red.", "Anything else?", "A bus stop."),
        record(first, "Describe the image in detail.\n<image>", "The image shows a bus."),
        record(second, "<image>\nWhat might happen?", "The cat may jump."),
    ]
    write_json(root / "llava_158k" / "llava_instruct_150k.json", records)


def write_sharegpt(root: Path) -> None:
    """A plain one; one that begins with an answer and ends with a question; one without any; one torn."""

    def record(key: str, *turns: tuple[str, str]) -> dict[str, Any]:
        return {"id": key, "conversations": [{"from": role, "value": value} for role, value in turns]}

    records = [
        record("QWJhYvA_0", ("human", "Hello?"), ("gpt", "Hello! 你好 🦙")),
        record("i6IyJda_17", ("gpt", "I said."), ("user", "Why?"), ("chatgpt", "So."), ("human", "And?")),
        record("empty_0"),
        record("torn_0", ("human", "One"), ("human", "Two"), ("gpt", "Three")),
        record("marked_0", ("human", "What does <image> mean in SVG?"), ("gpt", "An image.")),
    ]
    write_json(root / "sharegpt" / "ShareGPT_V3_unfiltered_cleaned_split.json", records)


def write_slimorca(root: Path) -> None:
    def turn(role: str, value: str, weight: float | None) -> dict[str, Any]:
        return {"from": role, "value": value, "weight": weight}

    system = turn("system", "You are an AI assistant.", None)
    rows = [
        [system, turn("human", "Write a sentence.", 0.0), turn("gpt", "Midsummer House is modern.", 1.0)],
        [turn("human", "Is it?", 0.0), turn("gpt", "It is.", 1.0)],
    ]
    lines = [json.dumps({"conversations": row}) for row in rows]
    (root / "slimorca").mkdir(parents=True, exist_ok=True)
    path = root / "slimorca" / "oo-labeled_correct.gpt4.sharegpt.jsonl"
    path.write_text("\n".join([*lines, "{broken"]) + "\n", encoding="utf-8")


def write_shards(folder: Path, *, num_shards: int = 2, column: str = "caption") -> Path:
    """Write what img2dataset leaves: shards of three pairs, and metadata that also has a failed address."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        members, rows = {}, []
        for number in range(4):
            key = f"{shard:05d}{number:04d}"
            row = {
                "url": f"https://example.org/{key}.jpg",
                column: f"Image {number} of shard {shard}",
                "key": key,
                "status": "success" if number < 3 else "failed_to_download",
                "error_message": None if number < 3 else "HTTP Error 404: Not Found",
                "width": 40,
                "height": 30,
                "original_width": 400,
                "original_height": 300,
                "exif": "{}",
                "sha256": "0" * 64,
            }
            rows.append(row)
            if number < 3:
                members[f"{key}.jpg"] = jpeg((40, 30), 10 * shard + number)
                members[f"{key}.json"] = json.dumps(row).encode()
                members[f"{key}.txt"] = str(row[column]).encode()
        write_tar(folder / f"{shard:05d}.tar", members)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{shard:05d}.parquet")
        write_json(folder / f"{shard:05d}_stats.json", {"count": 4, "successes": 3, "failed_to_download": 1})
    return folder


def write_web(root: Path) -> Path:
    """Write every pre-training corpus; DataComp where its own script puts it, COYO with its own column."""
    for name in SHARDED:
        folder = root / name / "shards" if name == "datacomp" else root / name
        write_shards(folder, column="text" if name == "coyo" else "caption")
    return root
