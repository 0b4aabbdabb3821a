"""COCO and Flickr30K captions: three layouts are one benchmark, and CIDEr is over the whole of it."""

from pathlib import Path

import pytest

from owl2.eval.metrics.cider import cider_d
from owl2.eval.task import DataMissing, EvalDataError, Item, find_task
from tests.eval.tasks.miniature import (
    DATA,
    answers,
    copy,
    edit,
    figures,
    prompt,
    read,
    skipped,
    write,
    write_lines,
)

KARPATHY = "coco/dataset_coco.json"
LAVIS = "coco/coco_karpathy_test.json"
CAPTION = "Provide a one-sentence caption for the provided image."


def shown(items: list[Item]) -> list[tuple[str, tuple[str, ...], str]]:
    return [(item.id, item.references, item.images[0].name) for item in items]


def test_karpathys_file_gives_the_images_of_its_test_split_only() -> None:
    items = find_task("coco_caption").items(DATA)
    splits = [row["split"] for row in read(DATA / KARPATHY)["images"]]
    assert splits == ["test", "restval", "test", "val", "test"]
    assert [item.extra["image_id"] for item in items] == [391895, 262148, 42]
    assert items[1].references[1] == "A circle in red\nin the middle of the picture."
    assert items[0].images[0].open().size == (96, 64)


def test_laviss_and_cocos_layouts_give_the_same_items(tmp_path: Path) -> None:
    data = copy(tmp_path, "coco")
    task = find_task("coco_caption")
    official = task.items(data)
    (data / KARPATHY).unlink()
    lavis = [{"image": f"val2014/{item.id}.jpg", "caption": list(item.references)} for item in official]
    write(data / LAVIS, lavis)
    assert shown(task.items(data)) == shown(official)
    assert [item.extra for item in task.items(data)] == [item.extra for item in official]
    write_lines(data / LAVIS, lavis)
    assert shown(task.items(data)) == shown(official)
    coco = {
        "images": [{"id": item.extra["image_id"], "file_name": f"{item.id}.jpg"} for item in official],
        "annotations": [
            {"id": number, "image_id": item.extra["image_id"], "caption": caption}
            for number, (item, caption) in enumerate((i, c) for i in official for c in i.references)
        ],
    }
    write(data / LAVIS, coco)
    assert shown(task.items(data)) == shown(official)


def test_flickrs_three_layouts_give_the_same_items(tmp_path: Path) -> None:
    data = copy(tmp_path, "flickr30k")
    task = find_task("flickr30k")
    qwen = task.items(data)
    assert [item.id for item in qwen] == ["1007129816", "1009434119"]
    (data / "flickr30k/flickr30k_karpathy_test.json").unlink()
    write(
        data / "flickr30k/flickr30k_test.json",
        [{"image": f"flickr30k-images/{item.id}.jpg", "caption": list(item.references)} for item in qwen],
    )
    assert shown(task.items(data)) == shown(qwen)
    images = [
        {
            "sentids": [0],
            "imgid": number,
            "filename": f"{item.id}.jpg",
            "split": "test",
            "sentences": [{"raw": raw, "tokens": raw.split(), "imgid": number} for raw in item.references],
        }
        for number, item in enumerate(qwen)
    ]
    write(data / "flickr30k/dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    assert shown(task.items(data)) == shown(qwen)


def test_cider_of_all_images_is_what_the_metric_gives_for_them() -> None:
    task = find_task("coco_caption")
    items = task.items(DATA)
    said = {items[0].id: "A blue square.", items[1].id: "a red circle on white ", items[2].id: "A dog"}
    scores = task.score(answers(task, items, said))
    expected = cider_d(list(said.values()), [item.references for item in items])
    assert scores[0].values == tuple(expected)
    assert figures(scores)["CIDEr"] == pytest.approx(100 * sum(expected) / 3)
    assert (scores[0].paper_id, scores[0].n) == ("1/0", 3)
    assert expected[0] > expected[2] == 0
    assert task.parse(items[0], "  \n") is None
    assert task.score(answers(task, items, {}))[0].value == 0


def test_the_authors_caption_prompt_and_lengths() -> None:
    for name in ("coco_caption", "flickr30k"):
        task = find_task(name)
        item = task.items(DATA)[0]
        for template, ending, longest in (("owl2-2023", "", 30), ("owl2-2024", " ", 60)):
            assert prompt(task, item, template) == f"USER: <|image|>{CAPTION} ASSISTANT:{ending}"
            decoding = task.decoding_of(template)
            assert (decoding.max_new_tokens, decoding.min_new_tokens) == (longest, 8)
            assert (decoding.num_beams, decoding.length_penalty) == (1, 0.0)
    coco = find_task("coco_caption")
    assert prompt(coco, coco.items(DATA)[0], "lmms-eval-karpathy") == (
        "USER: <|image|>Describe the image briefly. ASSISTANT:"
    )


def test_no_annotation_file_at_all_names_the_official_one(tmp_path: Path) -> None:
    data = copy(tmp_path, "coco")
    (data / KARPATHY).unlink()
    with pytest.raises(DataMissing, match=r"coco_caption: missing coco/dataset_coco\.json"):
        find_task("coco_caption").items(data)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda value: value["images"][0].update(sentences=[]), "record 1: sentences"),
        (lambda value: value["images"][2]["sentences"][1].pop("raw"), "record 3: sentences: no field 'raw'"),
        (lambda value: value["images"][0].pop("split"), "record 1: no field 'split'"),
    ],
)
def test_a_record_out_of_format_costs_itself_and_is_named(tmp_path: Path, change: object, said: str) -> None:
    data = copy(tmp_path, "coco")
    edit(data / KARPATHY, change)  # type: ignore[arg-type]
    (reason,) = skipped("coco_caption", data)
    assert said in reason
    assert len(find_task("coco_caption").items(data)) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda value: value.pop("images"), "expected images in it, there are dataset"),
        (lambda value: value.update(images=value["images"][1:2]), "no question of this split"),
    ],
)
def test_a_file_out_of_format_is_an_error_that_names_it(tmp_path: Path, change: object, said: str) -> None:
    data = copy(tmp_path, "coco")
    edit(data / KARPATHY, change)  # type: ignore[arg-type]
    with pytest.raises(EvalDataError, match=said):
        find_task("coco_caption").items(data)


def test_laviss_training_layout_and_captions_without_image_are_errors(tmp_path: Path) -> None:
    data = copy(tmp_path, "coco", "flickr30k")
    (data / KARPATHY).unlink()
    write(data / LAVIS, [{"image": "val2014/COCO_val2014_000000000042.jpg", "caption": "one string"}])
    with pytest.raises(EvalDataError, match="caption is 'one string', expected a list"):
        find_task("coco_caption").items(data)
    edit(
        data / "flickr30k/flickr30k_karpathy_test.json",
        lambda value: [row.update(image_id=0) for row in value["annotations"]],
    )
    (reason,) = skipped("flickr30k", data)
    assert reason.endswith("record 2: no annotation has the image_id 1")
