"""Files in the size and with the defects of the published ones are read whole: N, and what is skipped."""

from pathlib import Path

import pytest

from owl2.eval.task import find_task
from tests.eval.tasks import full_size
from tests.eval.tasks.miniature import answers, by_id

CASES = [
    ("bbh", full_size.bbh, 6511, []),
    ("agieval", full_size.agieval, 8268, ["jec-qa-kd.jsonl: line 212: neither label nor answer"]),
    ("agieval_ppl", full_size.agieval, 8268, ["jec-qa-kd.jsonl: line 212: neither label nor answer"]),
    ("pope", full_size.pope, 9000, []),
    ("pope", full_size.pope_of_2910, 8910, []),
    ("mmvet", full_size.mmvet, 218, []),
    ("mmlu", full_size.mmlu, 14_042, []),
    ("arc_c", full_size.arc, 1471, []),
    ("arc_e", full_size.arc, 2946, []),
    ("boolq", full_size.boolq, 3270, []),
    ("tgif_qa", full_size.tgif_qa, 13_691, []),
    ("seed_bench", full_size.seed_bench, 19_241, ["item 49914: an earlier record has this id"]),
    ("xsum", full_size.xsum, 998, ["line 220: dialogue is nan", "line 501: dialogue is nan"]),
    ("triviaqa", full_size.triviaqa, 8837, []),
    ("hellaswag", full_size.hellaswag, 10_042, []),
    ("okvqa", full_size.okvqa, 5046, []),
    ("vizwiz_test", full_size.vizwiz_test, 8000, []),
    ("mmbench_dev", full_size.mmbench_dev, 4377, []),
]


@pytest.mark.parametrize(
    ("name", "write", "number", "skipped"), CASES, ids=[f"{name}-{number}" for name, _, number, _ in CASES]
)
def test_files_of_the_published_size_are_read_whole(
    tmp_path: Path, name: str, write: full_size.Write, number: int, skipped: list[str]
) -> None:
    write(tmp_path)
    task = find_task(name)
    loaded = task.load(tmp_path)
    assert len(loaded.items) == number
    assert loaded.num_records in task.expected
    assert len(loaded.skipped) == len(skipped)
    for record, said in zip(loaded.skipped, skipped, strict=True):
        assert said in str(record)
    assert bool(skipped) <= bool(task.defects), "a known defect is named in the task"


def test_bbhs_targets_that_are_no_letter_are_compared_as_opencompass_does(tmp_path: Path) -> None:
    full_size.bbh(tmp_path)
    task = find_task("bbh")
    items = by_id(task.items(tmp_path))
    assert items["ruin_names/99"].references == ("earth, wind, & tire",)
    assert items["movie_recommendation/163"].references == ("M",)
    chosen = [items["ruin_names/99"], items["ruin_names/144"], items["movie_recommendation/163"]]
    said = {
        "ruin_names/99": "So the answer is earth, wind, & tire",
        "ruin_names/144": "So the answer is (B).",
        "movie_recommendation/163": "So the answer is Monsters, Inc.",
    }
    read = answers(task, chosen, said)
    assert [answer.parsed for answer in read] == ["earth, wind, & tire", "B", "M"]
    assert [answer.parsed in answer.item.references for answer in read] == [True, False, True]
    assert task.parse(chosen[1], "so the answer is no letter at all") is None
