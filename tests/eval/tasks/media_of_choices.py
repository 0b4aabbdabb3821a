"""Images of the miniatures of multiple choice and yes-or-no, and the tables that hold images.

The other annotations are written by hand. The output is committed: MME in both layouts, MMBench's tables (the
legacy one with an image in each row, VLMEvalKit's with images by index), Q-Bench's, and SEED-Bench's clips:
`python -m tests.eval.tasks.media_of_choices tests/data/benchmarks`.
"""

import base64
import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import av
from PIL import Image

from tests.eval.tasks.media import SIZE, Shape, draw

IMAGES: dict[str, Shape] = {
    "coco/val2014/COCO_val2014_000000310196.jpg": ("circle", "red", "white"),
    "mm-vet/images/v1_0.png": ("x = -1", "black", "white"),
    "mm-vet/images/v1_1.jpg": ("square", "green", "white"),
    "mm-vet/images/v1_2.jpg": ("triangle", "red", "yellow"),
    "MMHal-Bench/images/47604332_c306b496b5_o.jpg": ("circle", "brown", "green"),
    "MMHal-Bench/images/5117062_2f0e4c0c2a_o.jpg": ("square", "blue", "white"),
    "seed_bench/SEED-Bench-image/1454426_2591111986": ("square", "white", "blue"),
    "seed_bench/SEED-Bench-image/1454427_1000000001": ("circle", "red", "white"),
    "q_bench/images/00097.jpg": ("square", "gray", "black"),
    "q_bench/images/00098.jpg": ("circle", "white", "gray"),
}
MME: dict[str, tuple[str, Shape, str, str]] = {
    "existence": (
        "000000006040.jpg",
        ("circle", "red", "white"),
        "Is there a circle in this image?",
        "Is there a car in this image?",
    ),
    "count": (
        "000000006471.jpg",
        ("square", "blue", "white"),
        "Is there one square in this image?",
        "Are there two squares in this image?",
    ),
    "position": (
        "000000009448.jpg",
        ("square", "red", "gray"),
        "Is the square in the middle?",
        "Is the square in a corner?",
    ),
    "color": ("000000012120.jpg", ("circle", "green", "white"), "Is the circle green?", "Is the circle red?"),
    "OCR": (
        "0001.jpg",
        ("STOP", "white", "red"),
        'Is the word in the logo "stop"?',
        'Is the word in the logo "step"?',
    ),
    "commonsense_reasoning": (
        "0001.png",
        ("triangle", "orange", "white"),
        "Can this roll down a hill without turning over?",
        "Has this three corners?",
    ),
    "numerical_calculation": (
        "0001.png",
        ("2 + 3", "black", "white"),
        "Is the answer 5?",
        "Is the answer 6?",
    ),
    "text_translation": (
        "0001.png",
        ("chat", "black", "white"),
        'Does this French word mean "cat"?',
        'Does this French word mean "dog"?',
    ),
    "code_reasoning": (
        "0001.png",
        ("print(1)", "black", "white"),
        "Does this print 1?",
        "Does this print 2?",
    ),
    "posters": ("tt0048028.jpg", ("FILM", "red", "black"), "Is this a film poster?", "Is this a menu?"),
    "celebrity": (
        "tt0032138_shot_0395_img_0.jpg",
        ("circle", "pink", "white"),
        "Is this person round?",
        "Is this person square?",
    ),
    "scene": (
        "Places365_val_00000001.jpg",
        ("square", "yellow", "navy"),
        "Is this picture of a window at night?",
        "Is this picture of a beach?",
    ),
    "landmark": (
        "006adf999ccc899a.jpg",
        ("triangle", "tan", "skyblue"),
        "Is this a pyramid?",
        "Is this a bridge?",
    ),
    "artwork": (
        "16006.jpg",
        ("square", "black", "white"),
        "Is this a work of Malevich?",
        "Is this a work of Monet?",
    ),
}
"""Image, and a question whose answer is yes and one whose answer is no, of each subtask."""
SPLIT_LAYOUT = ("posters", "celebrity", "scene", "landmark", "artwork")
CLIPS: dict[str, tuple[Shape, str, int, int]] = {
    "seed_bench/SSV2/videos/94328.webm": (("circle", "red", "white"), "libvpx-vp9", 12, 8),
    "seed_bench/EPIC-KITCHENS/3h91syskeag572hl6tvuovwv4d/videos/test/P03/P03_24.MP4": (
        ("square", "blue", "white"),
        "mpeg4",
        5,
        20,
    ),
    "seed_bench/BreakfastII_15fps_qvga_sync/P06/cam01/P06_cereals.avi": (
        ("triangle", "green", "white"),
        "mpeg4",
        15,
        45,
    ),
}
"""What moves, codec, frames a second, number of frames."""
MMBENCH_COLUMNS = (
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "image",
    "source",
    "l2-category",
    "comment",
    "split",
)
MMBENCH_DEV = (
    (
        241,
        'Which shape is\n"in the middle"?',
        "The ground is white.",
        ("a circle", "a square", "a triangle"),
        "A",
        "identity_reasoning",
        "attribute_reasoning",
        ("circle", "red", "white"),
    ),
    (
        242,
        "How many squares are red?",
        "nan",
        ("One", "Two", "None", "All"),
        "C",
        "object_localization",
        "finegrained_perception (instance-level)",
        ("square", "blue", "white"),
    ),
)
MMBENCH_TEST = (
    (
        8,
        "Is the shape filled?",
        "",
        ("yes", "no"),
        "A",
        "image_quality",
        "coarse_perception",
        ("square", "green", "white"),
    ),
    (
        9,
        "What is left of the shape?",
        "",
        ("A tree", "None", "A dog", "A house"),
        "B",
        "spatial_relationship",
        "finegrained_perception (cross-instance)",
        ("triangle", "black", "white"),
    ),
)
Q_BENCH_COLUMNS = ("index", "image", "question", "A", "B", "C", "D", "answer", "category")
Q_BENCH_TEST = (
    (0, ("circle", "gray", "black"), "Is this image dark?", ("Yes", "No", "", ""), "A", "Yes-or-No"),
    (
        1,
        ("square", "white", "white"),
        "How is the contrast of this image?",
        ("High", "Low", "Medium", ""),
        "B",
        "How",
    ),
    (
        2,
        ("triangle", "red", "white"),
        "What is the most colourful part?",
        ("The ground", "The shape", "The sky", "Nothing"),
        "B",
        "What",
    ),
)


def encode(shape: Shape) -> str:
    buffer = io.BytesIO()
    draw(shape).save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode()


def write_table(file: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def mmbench_rows(questions: Sequence[tuple], split: str, has_references: bool) -> list[dict[str, object]]:
    """Each question, then its rotations, each one million further; images repeated or by index."""
    rows = []
    for index, question, hint, options, answer, category, ability, shape in questions:
        for turn in range(len(options)):
            turned = options[turn:] + options[:turn]
            rows.append(
                {
                    "index": index + turn * 1_000_000,
                    "question": question,
                    "hint": hint,
                    **dict(zip("ABCD", turned, strict=False)),
                    "answer": "ABCD"[turned.index(options["ABCD".index(answer)])],
                    "category": category,
                    "image": str(index) if has_references and turn else encode(shape),
                    "source": "drawn",
                    "l2-category": ability,
                    "comment": "",
                    "split": split,
                }
            )
    return sorted(rows, key=lambda row: int(str(row["index"])))


def q_bench_rows() -> list[dict[str, object]]:
    return [
        {
            "index": index,
            "image": encode(shape),
            "question": question,
            **dict(zip("ABCD", options, strict=True)),
            "answer": answer,
            "category": category,
        }
        for index, shape, question, options, answer, category in Q_BENCH_TEST
    ]


def write_mme(root: Path) -> None:
    for subtask, (name, shape, yes, no) in MME.items():
        is_split = subtask in SPLIT_LAYOUT
        images = root / subtask / ("images" if is_split else "")
        if subtask == "artwork":
            images /= "toy_dataset"
        texts = root / subtask / ("questions_answers_YN" if is_split else "")
        for folder in (images, texts):
            folder.mkdir(parents=True, exist_ok=True)
        draw(shape).save(images / name)
        request = "Please answer yes or no."
        text = f"{yes} {request}\tYes\n{no} {request}\tNo\n"
        (texts / name).with_suffix(".txt").write_text(text, encoding="utf-8")


def write_clip(file: Path, shape: Shape, codec: str, rate: int, num_frames: int) -> None:
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(num_frames):
            image: Image.Image = draw(shape, shift=48 * number // num_frames - 24)
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())


def write_media(root: Path) -> None:
    for name in (*IMAGES, *CLIPS):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    for name, shape in IMAGES.items():
        draw(shape).save(root / name, "PNG" if name.endswith(".png") else "JPEG")
    for name, clip in CLIPS.items():
        write_clip(root / name, *clip)
    write_mme(root / "mme/MME_Benchmark_release_version")
    dev, test = mmbench_rows(MMBENCH_DEV, "dev", False), mmbench_rows(MMBENCH_TEST, "test", True)
    write_table(root / "mmbench/mmbench_dev_20230712.tsv", MMBENCH_COLUMNS, dev)
    write_table(root / "mmbench/MMBench_TEST_EN.tsv", MMBENCH_COLUMNS, test)
    write_table(root / "q_bench/Q-Bench1_TEST.tsv", Q_BENCH_COLUMNS, q_bench_rows())


if __name__ == "__main__":
    write_media(Path(sys.argv[1]))
