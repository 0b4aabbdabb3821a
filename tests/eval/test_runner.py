"""Runs: the same answers in any batch, on any number of ranks, and however often they are continued."""

import dataclasses
import io
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from owl2.api import Owl2
from owl2.data.sample import StoredImage
from owl2.eval.answers.predictions import PredictionError, PredictionWriter
from owl2.eval.engines.engine import EngineError, Prompt
from owl2.eval.engines.local import OwlEngine, identity_of, log_likelihoods
from owl2.eval.formats.frames import NUM_FRAMES, frames_of
from owl2.eval.runner import (
    Batching,
    RunError,
    Shard,
    choose_tasks,
    config_of,
    plan_tasks,
    prompt_of,
    run_plan,
)
from owl2.eval.task import Decoding, UnknownTask, find_task
from tests.eval.small import CONTEXT, NUM_QUESTIONS, lines, outputs, plan, read, run, write_json, write_vqa


def test_any_batching_gives_the_answers_of_one_question_at_a_time(
    engine: OwlEngine, vqa_data: Path, tmp_path: Path
) -> None:
    run(engine, vqa_data, tmp_path / "1", batching=Batching(max_rows=1))
    alone = outputs(tmp_path / "1")
    assert len(alone) == NUM_QUESTIONS
    assert len(set(alone.values())) > 10, "a model that always says the same would prove nothing"
    for number, batching in enumerate((Batching(32), Batching(7, 200))):
        run(engine, vqa_data, tmp_path / f"many{number}", batching=batching)
        assert outputs(tmp_path / f"many{number}") == alone


def test_a_batch_opens_and_encodes_an_image_once_however_many_questions_show_it(engine: OwlEngine) -> None:
    reads: list[str] = []
    images = [counted_image(name, colour, reads) for name, colour in (("a", "red"), ("b", "green"))]
    shown = [images[:1], images[1:], images[::-1], [], images[:1]]
    prompts = [question(str(number), *images) for number, images in enumerate(shown)]
    alone = [engine.answer(engine.prepare([prompt]))[0] for prompt in prompts]
    assert reads == ["a", "b", "b", "a", "a"]
    reads.clear()
    prepared = engine.prepare(prompts)
    assert reads == ["a", "b"]
    assert len(prepared.pixel_values) == 2
    assert engine.answer(prepared) == alone
    assert alone[0].output != alone[1].output


def test_questions_on_one_image_are_asked_together_the_longest_first(
    engine: OwlEngine, vqa_data: Path, tmp_path: Path
) -> None:
    run(engine, vqa_data, tmp_path, batching=Batching(3))
    image = {item.id: item.images for item in plan(vqa_data).items}
    rows = lines(tmp_path)
    seen = [images for images, _ in itertools.groupby(image[row["id"]] for row in rows)]
    assert len(seen) == len(set(seen)) == NUM_QUESTIONS / 2
    assert rows[0]["prompt_tokens"] == max(row["prompt_tokens"] for row in rows)


def test_frames_of_one_part_of_a_clip_are_the_same_images() -> None:
    clip = Path("clip.mp4")
    assert frames_of(clip, (1.0, 2.0)) == frames_of(clip, (1.0, 2.0))
    assert (
        len({*frames_of(clip, None), *frames_of(clip, None), *frames_of(clip, (1.0, 2.0))}) == 2 * NUM_FRAMES
    )


@pytest.mark.parametrize(("template", "between", "ending"), [("owl2-2024", " ", " "), ("llava15", "\n", "")])
def test_an_answer_is_what_the_model_says_to_the_published_prompt(
    engine: OwlEngine, owl: Owl2, vqa_data: Path, tmp_path: Path, template: str, between: str, ending: str
) -> None:
    run(engine, vqa_data, tmp_path, limit=3, template=template)
    for item in plan(vqa_data, limit=3).items:
        short = "Answer the question using a single word or phrase."
        raw = f"USER: <|image|>{item.question}{between}{short} ASSISTANT:{ending}"
        batch = owl.processor(text=[raw], images=[[item.images[0].open()]])
        (ids,) = owl.generate(**batch, max_new_tokens=10, min_new_tokens=1, do_sample=False)
        answer = read(tmp_path).by_id[item.id]
        assert answer.output == owl.processor.decode(ids)
        assert (answer.prompt_tokens, answer.new_tokens) == (batch["input_ids"].shape[1], len(ids))


def test_ranks_share_the_questions_and_another_number_of_ranks_goes_on(
    engine: OwlEngine, vqa_data: Path, tmp_path: Path
) -> None:
    run(engine, vqa_data, tmp_path / "alone")
    ranks = [Shard(rank, 2) for rank in range(2)]
    shares = [{item.id for item in plan(vqa_data, shard=shard).items} for shard in ranks]
    assert not shares[0] & shares[1]
    assert min(len(share) for share in shares) > 3
    run(engine, vqa_data, tmp_path / "two", shard=ranks[0])
    outcome = run(engine, vqa_data, tmp_path / "two")
    assert (outcome.num_asked, outcome.num_kept) == (len(shares[1]), len(shares[0]))
    assert outputs(tmp_path / "two") == outputs(tmp_path / "alone")
    assert len(lines(tmp_path / "two")) == NUM_QUESTIONS


def test_a_finished_run_asks_nothing_again_and_a_larger_limit_asks_the_rest(
    engine: OwlEngine, vqa_data: Path, tmp_path: Path
) -> None:
    assert run(engine, vqa_data, tmp_path, limit=6).num_asked == 6
    assert run(engine, vqa_data, tmp_path, limit=6).num_asked == 0
    assert run(engine, vqa_data, tmp_path).num_asked == NUM_QUESTIONS - 6


def test_a_torn_last_line_is_cut_off_and_its_question_asked_again(
    engine: OwlEngine, vqa_data: Path, tmp_path: Path
) -> None:
    run(engine, vqa_data, tmp_path)
    expected = outputs(tmp_path)
    (path,) = (tmp_path / "predictions").iterdir()
    whole = path.read_bytes()
    for kept in (len(whole) - 1, len(whole) - 40, whole.index(b"\n") - 5, 0):
        path.write_bytes(whole[:kept])
        run(engine, vqa_data, tmp_path)
        assert outputs(tmp_path) == expected
        assert len({row["id"] for row in lines(tmp_path)}) == len(lines(tmp_path)) == NUM_QUESTIONS


def test_a_changed_question_is_asked_again_and_its_last_answer_counts(
    engine: OwlEngine, tmp_path: Path
) -> None:
    data = write_vqa(tmp_path / "data", num_questions=4)
    run(engine, data, tmp_path / "out")
    first = outputs(tmp_path / "out")
    file = data / "vqav2" / "v2_OpenEnded_mscoco_val2014_questions.json"
    file.write_text(file.read_text().replace("?", " now?", 1))
    assert run(engine, data, tmp_path / "out").num_asked == 1
    changed = outputs(tmp_path / "out")
    assert [name for name in first if first[name] != changed[name]] == ["1000"]


def test_answers_in_another_setting_are_not_mixed(engine: OwlEngine, vqa_data: Path, tmp_path: Path) -> None:
    run(engine, vqa_data, tmp_path, limit=2)
    with pytest.raises(PredictionError, match=r"template 'owl2-2023' -> 'llava15'.*another --out"):
        run(engine, vqa_data, tmp_path, limit=2, template="llava15")


def test_one_changed_weight_is_another_model(owl: Owl2) -> None:
    before = identity_of(owl)
    weight = owl.model.model.layers[0].self_attn.q_proj.weight
    with torch.no_grad():
        kept = weight[0, 0].clone()
        weight[0, 0] += 1e-3
        changed = identity_of(owl)
        weight[0, 0] = kept
    assert changed["weights"] != before["weights"]
    assert identity_of(owl) == before


def test_two_processes_cannot_write_the_same_file(engine: OwlEngine, vqa_data: Path, tmp_path: Path) -> None:
    planned = plan(vqa_data, limit=2)
    with (
        PredictionWriter(tmp_path, config_of(planned, engine, vqa_data)),
        pytest.raises(PredictionError, match="written by another process"),
    ):
        run(engine, vqa_data, tmp_path, limit=2)


def test_a_question_that_cannot_be_asked_is_recorded_and_tried_again(
    engine: OwlEngine, tmp_path: Path
) -> None:
    data = write_vqa(tmp_path / "data", num_questions=6, num_images=3)
    image = data / "coco" / "val2014" / "COCO_val2014_000000000001.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[:50])
    outcome = run(engine, data, tmp_path / "out")
    assert set(outcome.errors) == {"1001", "1004"}
    assert "COCO_val2014_000000000001.jpg" in outcome.errors["1001"]
    assert not outcome.has_failed
    image.write_bytes(whole)
    assert run(engine, data, tmp_path / "out").num_asked == 2
    assert not any(row.error for row in read(tmp_path / "out").by_id.values())


def test_whatever_is_wrong_with_a_question_costs_that_question(engine: OwlEngine, tmp_path: Path) -> None:
    data = write_vqa(tmp_path / "data", num_questions=6, num_images=6)
    planned = plan(data)

    def broken() -> bytes:
        raise MemoryError("a library's own exception")

    images = [
        (StoredImage("gone.jpg", (tmp_path / "gone.jpg").read_bytes),),
        (StoredImage("broken.jpg", broken),),
    ]
    odd = [
        dataclasses.replace(item, images=image) for item, image in zip(planned.items, images, strict=False)
    ]
    odd.append(dataclasses.replace(planned.items[2], question="what is \ud83d"))
    items = [*odd, *planned.items[3:]]
    whole = run_plan(engine, planned, data, tmp_path / "whole")
    outcome = run_plan(engine, dataclasses.replace(planned, items=items), data, tmp_path / "odd")
    assert not whole.errors
    assert list(sorted(outcome.errors)) == ["1000", "1001", "1002"]
    assert "FileNotFoundError" in outcome.errors["1000"]
    assert "a library's own exception" in outcome.errors["1001"]
    kept = [item.id for item in planned.items[3:]]
    assert [outputs(tmp_path / "odd")[name] for name in kept] == [
        outputs(tmp_path / "whole")[name] for name in kept
    ]
    json.loads(next((tmp_path / "odd" / "predictions").iterdir()).read_text().splitlines()[1])


def test_a_full_device_is_an_error_that_says_what_to_do(
    engine: OwlEngine, vqa_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine.owl.image_cache.clear()
    monkeypatch.setattr(engine.owl.model, "encode_images", full)
    with pytest.raises(EngineError, match=r"no memory left for a batch of 16 prompts.*--batch-size"):
        run(engine, vqa_data, tmp_path)


def test_a_prompt_longer_than_the_context_is_recorded_and_a_tight_one_answered_within_it(
    engine: OwlEngine, tmp_path: Path
) -> None:
    data = write_vqa(tmp_path / "data", num_questions=3)
    file = data / "vqav2" / "v2_OpenEnded_mscoco_val2014_questions.json"
    asked = plan(data).items
    planned = plan(data)
    used = engine.measure(prompt_of(planned.task, planned.template, planned.decoding, asked[0]))
    tight = asked[0].question + " 1" * ((CONTEXT - used - 4) // 2)
    questions = [tight, asked[1].question + " owl" * 300, asked[2].question]
    rows = [
        {"image_id": 0, "question_id": 1000 + i, "question": question} for i, question in enumerate(questions)
    ]
    write_json(file, {"data_subtype": "val2014", "questions": rows})
    outcome = run(engine, data, tmp_path / "out")
    assert list(outcome.errors) == ["1001"]
    assert "context is 256" in outcome.errors["1001"]
    found = read(tmp_path / "out").by_id
    assert 1 <= found["1000"].new_tokens <= CONTEXT - found["1000"].prompt_tokens < 10


def test_a_task_none_of_whose_questions_can_be_asked_has_failed(engine: OwlEngine, tmp_path: Path) -> None:
    data = write_vqa(tmp_path / "data", num_questions=2, num_images=1)
    next((data / "coco" / "val2014").iterdir()).write_bytes(b"no image")
    assert run(engine, data, tmp_path / "out").has_failed


def test_likelihoods_of_choices_are_those_of_whole_forward_passes(engine: OwlEngine, owl: Owl2) -> None:
    images = [Image.new("RGB", (20, 20), colour) for colour in ("red", "green")]
    conversations = [
        [{"role": "user", "content": [{"type": "image", "image": p}, {"type": "text", "text": text}]}]
        for p, text in zip(
            images, ("What is this?", "What is on the left of the tree, and how many?"), strict=True
        )
    ]
    encode = owl.processor.tokenizer.encode
    texts = ["owl", "a red bird on the tree", "two"]
    flat = [(row, encode(text, space=True)) for row in range(2) for text in texts]
    assert {len(ids) for _, ids in flat} > {1}
    found = log_likelihoods(owl.model, owl.processor.chat(conversations), flat)
    for (row, ids), (sum_found, _) in zip(flat, found, strict=True):
        answered = [*conversations[row], {"role": "assistant", "content": texts[flat.index((row, ids)) % 3]}]
        whole = owl.processor.encode(answered)
        batch = owl.processor.collate([whole])
        log_p = owl.model(**batch)[0].detach().log_softmax(-1)
        end = len(whole.ids) - 1  # without the end token
        expected = sum(float(log_p[i - 1, whole.ids[i]]) for i in range(end - len(ids), end))
        assert sum_found == pytest.approx(expected, abs=1e-4)


def test_rank_mode_answers_with_the_letter_of_the_likeliest_choice(engine: OwlEngine) -> None:
    choices = {"A": "owl", "B": "a red bird on the tree", "C": "two"}
    messages = [{"role": "user", "content": "What is this?"}]
    prompt = Prompt("1", messages, "", Decoding(1), choices)
    (reply,) = engine.answer(engine.prepare([prompt]))
    means = {letter: total / count for letter, (total, count) in reply.log_likelihoods.items()}
    assert reply.output == max(means, key=means.__getitem__)
    assert list(means) == list(choices)
    together = engine.answer(engine.prepare([prompt, prompt, Prompt("2", messages, "", Decoding(4))]))
    assert [r.output for r in together[:2]] == [reply.output] * 2
    assert together[2].new_tokens <= 4


def test_an_unknown_task_or_template_is_an_error_with_the_nearest(vqa_data: Path) -> None:
    with pytest.raises(UnknownTask, match="'vqa2'; nearest is 'vqav2'"):
        choose_tasks("pope,vqa2")
    with pytest.raises(RunError, match="'llava'; nearest is 'llava15'"):
        plan_tasks([find_task("vqav2")], vqa_data, template="llava")


def test_missing_files_are_returned_and_the_other_tasks_planned(vqa_data: Path, tmp_path: Path) -> None:
    plans, missing = plan_tasks(choose_tasks("vqav2,gqa"), vqa_data)
    assert [planned.task.name for planned in plans] == ["vqav2"]
    assert [error.task for error in missing] == ["gqa"]
    shutil.copytree(vqa_data / "vqav2", tmp_path / "vqav2")
    assert plan_tasks([find_task("vqav2")], tmp_path)[1][0].missing == ("coco/val2014",)


def counted_image(name: str, colour: str, reads: list[str]) -> StoredImage:
    """An image that says when it is read."""
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(stream, format="PNG")

    def read() -> bytes:
        reads.append(name)
        return stream.getvalue()

    return StoredImage(name, read)


def question(name: str, *images: StoredImage) -> Prompt:
    parts = [{"type": "image", "image": image} for image in images]
    content = [*parts, {"type": "text", "text": "What is on the left?"}]
    return Prompt(name, [{"role": "user", "content": content}], " ", Decoding(8))
