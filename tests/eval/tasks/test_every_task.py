"""What holds for every benchmark, on its miniature: names, prompts, files, figures next to the paper's."""

import json
import sys
from pathlib import Path

import pytest

import owl2.eval
from owl2.eval.task import Answer, DataMissing, Item, Score, Task, UnknownTask, find_task
from owl2.processor.template import images_of, render
from tests.eval.tasks.miniature import NAMES, OF_PAPER, data_of

PAPER = json.loads((Path(owl2.eval.__file__).parent / "report/paper.json").read_text())
BENCHMARKS = {
    "coco_caption",
    "flickr30k",
    "vqav2",
    "okvqa",
    "gqa",
    "vizwiz",
    "textvqa",
    "scienceqa",
    "msrvtt_qa",
    "msvd_qa",
    "tgif_qa",
    "mme",
    "mmbench",
    "mmvet",
    "seed_bench",
    "q_bench",
    "pope",
    "mmhal",
    "mmlu",
    "bbh",
    "agieval",
    "arc_c",
    "arc_e",
    "boolq",
    "triviaqa",
    "xsum",
    "hellaswag",
}
GRADES = {
    "mmvet": {"score": 1.0},
    "mmhal": {"rating": 6.0},
    "video_chatgpt": {"is_right": 1.0, "score": 5.0},
}


def right_answer(task: Task, item: Item) -> Answer:
    said = item.references[0] if item.references else "A"
    output = f"\\boxed{{{said}}}" if item.category.get("exam") == "math" else said
    return Answer(item, output, task.parse(item, output), GRADES.get(task.judge or ""))


def best_scores(name: str) -> list[Score]:
    task = find_task(name)
    return task.score([right_answer(task, item) for item in task.load(data_of(name)).items])


def test_every_benchmark_of_the_paper_is_there() -> None:
    assert set(NAMES) >= BENCHMARKS


def test_the_nearest_name_is_told() -> None:
    with pytest.raises(UnknownTask, match="'mmbench'"):
        find_task("mmbnech")


def test_every_row_of_the_papers_first_four_tables_and_of_pope_is_some_benchmarks() -> None:
    claimed = {score.paper_id for name in NAMES for score in best_scores(name)}
    rows = {row for row, values in PAPER.items() if values["table"] in ("1", "2", "3", "4", "9")}
    assert rows - claimed == set()


@pytest.mark.parametrize("name", NAMES)
def test_items_have_unique_names_and_each_template_shows_all_their_images(name: str) -> None:
    task = find_task(name)
    items = task.load(data_of(name)).items
    assert items
    assert len({item.id for item in items}) == len(items)
    for asked in task.templates.values():
        for item in items:
            messages = asked.messages(item)
            assert images_of(messages) == list(item.images)
            assert render(messages, generation_prompt=True, answer_prefix=asked.answer_prefix)
        assert asked.source


@pytest.mark.parametrize("name", OF_PAPER)
def test_the_papers_prompt_comes_first(name: str) -> None:
    assert next(iter(find_task(name).templates)) == "owl2-2023"


def test_only_one_way_to_ask_a_benchmark_of_the_paper_has_no_prompt_of_the_authors() -> None:
    others = {name for name in NAMES if name.startswith(tuple(BENCHMARKS))} - {*OF_PAPER}
    assert others == {"seed_bench_ppl"}


@pytest.mark.parametrize("name", NAMES)
def test_the_module_says_what_the_benchmark_is(name: str) -> None:
    task = find_task(name)
    assert task.title
    assert len(sys.modules[type(task).__module__].__doc__ or "") > (200 if name in OF_PAPER else 20)


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_is_the_mean_of_its_items_shares_and_stands_beside_a_row_of_the_paper(name: str) -> None:
    scores = best_scores(name)
    for score in scores:
        assert score.paper_id == "" or score.paper_id in PAPER
        if score.values:
            assert len(score.values) == len(score.clusters) == score.n
            assert score.scale * sum(score.values) / score.n == pytest.approx(score.value)
    assert len({(score.metric, score.group) for score in scores}) == len(scores)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_questions_alone_can_be_scored(name: str) -> None:
    task = find_task(name)
    for limit in (1, 2, 3):
        answers = [right_answer(task, item) for item in task.load(data_of(name)).items[:limit]]
        assert all(score.n <= limit for score in task.score(answers))


@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_answer_scores_at_least_the_papers_figure_in_its_unit(name: str) -> None:
    for score in best_scores(name):
        if score.paper_id and score.metric not in ("hallucination rate", "yes ratio"):
            paper = PAPER[score.paper_id]["value"]
            # Captions have no top; a factor of 100 between them is a wrong unit.
            assert paper / 2 < score.value < 20 * paper, (score.metric, score.group)


@pytest.mark.parametrize("name", NAMES)
def test_without_data_a_benchmark_says_what_is_missing_and_where_it_is_got(name: str, tmp_path: Path) -> None:
    task = find_task(name)
    with pytest.raises(DataMissing) as caught:
        task.load(tmp_path)
    assert set(caught.value.paths) <= {file.path for file in task.files}
    assert all(file.source and file.licence for file in task.files)
