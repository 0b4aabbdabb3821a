"""Each harness runs one of its own tasks on local data with a tiny checkpoint.

`pip install lm-eval`, and `pip install --no-deps lmms-eval` with what it then misses, in an environment of
their own: without them these tests are skipped. Nothing is downloaded.
"""

import importlib.util
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from owl2.api import Owl2
from owl2.eval.adapters.answering import score_continuations
from owl2.eval.engines.local import OwlEngine

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]


def needs(harness: str) -> pytest.MarkDecorator:
    is_there = importlib.util.find_spec(harness) is not None
    return pytest.mark.skipif(not is_there, reason=f"the harness {harness} is not installed")


def write_task(folder: Path, harness: str, packaged: str, **changes: Any) -> None:
    """Write a task that is the harness's own, but for its data and name."""
    spec = importlib.util.find_spec(harness)
    assert spec is not None
    (original,) = Path(str(spec.origin)).parent.glob(f"tasks/*/{packaged}.yaml")
    folder.mkdir(exist_ok=True)
    (folder / f"{packaged}.yaml").write_text(yaml.safe_dump({"include": str(original), **changes}))


@pytest.fixture
def is_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


@needs("lm_eval")
@pytest.mark.usefixtures("is_offline")
def test_lm_eval_runs_arc_easy_and_scores_it_as_we_do(owl: Owl2, tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    from owl2.eval.adapters.lm_eval import OwlLM

    docs = [
        {
            "id": f"{i}",
            "question": f"what bird is on tree {i}",
            "choices": {"text": ["owl", "red owl", "a green bird"], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[i % 3],
        }
        for i in range(6)
    ]
    data = tmp_path / "arc.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    files = {split: str(data) for split in ("train", "validation", "test")}
    local = {"task": "arc_local", "dataset_path": "json", "dataset_name": None}
    write_task(tmp_path / "tasks", "lm_eval", "arc_easy", **local, dataset_kwargs={"data_files": files})
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    lm = OwlLM(owl, batch_size=4)
    results = lm_eval.simple_evaluate(lm, tasks=["arc_local"], task_manager=manager, bootstrap_iters=0)

    num_right = 0
    for doc in docs:
        prompt = f"Question: {doc['question']}\nAnswer:"
        context = lm.tok_encode(prompt)
        choices = [lm.tok_encode(f"{prompt} {text}")[len(context) :] for text in doc["choices"]["text"]]
        pairs = [(context, choice) for choice in choices]
        totals = [total for total, _ in score_continuations(OwlEngine(owl), pairs, 1)]
        num_right += totals.index(max(totals)) == "ABC".index(doc["answerKey"])
    assert results["results"]["arc_local"]["acc,none"] == pytest.approx(num_right / len(docs))


@needs("lm_eval")
def test_lm_eval_prompts_are_the_templates_and_long_texts_are_read_in_windows(owl: Owl2) -> None:
    from lm_eval.api.instance import Instance

    from owl2.eval.adapters.lm_eval import OwlLM

    lm = OwlLM(owl, batch_size=2)
    turns = [
        {"role": "user", "content": "is the owl red"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "what bird"},
    ]
    prompt = lm.apply_chat_template(turns)
    assert lm.tok_encode(prompt.removesuffix(" ")) == owl.processor.encode(turns, generation_prompt=True).ids

    def request(kind: str, *arguments: Any) -> Any:
        return Instance(kind, {}, arguments, 0, ("local", 0, 1))

    settings = {"until": ["\n"], "max_gen_toks": 8}
    (answer,) = lm.generate_until([request("generate_until", prompt, settings)])
    assert (
        answer
        == owl.processor.decode(owl.generate(**owl.processor.chat([turns]), max_new_tokens=8)[0]).partition(
            "\n"
        )[0]
    )

    text = "the owl is on the tree"
    (rolling,) = lm.loglikelihood_rolling([request("loglikelihood_rolling", text)])
    ((whole, _),) = lm.loglikelihood([request("loglikelihood", "", text)])
    assert rolling == pytest.approx(whole)
    long = " ".join([text] * 80)
    assert len(lm.tok_encode(long)) > 2 * lm.max_length
    (windows,) = lm.loglikelihood_rolling([request("loglikelihood_rolling", long)])
    assert windows < rolling
    (cut_off,) = lm.loglikelihood([request("loglikelihood", long, " owl")])
    assert torch.isfinite(torch.tensor(cut_off[0]))


@needs("lmms_eval")
@pytest.mark.usefixtures("is_offline")
def test_lmms_eval_finds_owl2_by_its_entry_point_and_runs_pope(
    checkpoint: Path, owl: Owl2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    entry_points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    installed = tmp_path / "site" / "owl2-0.dist-info"  # what an installation leaves behind
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: owl2\nVersion: 0\n")
    (installed / "entry_points.txt").write_text(
        "[lmms_eval.models]\n" + "".join(f"{k} = {v}\n" for k, v in entry_points["lmms_eval.models"].items())
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    questions = ["is there an owl", "is there a red bird", "is there a tree"]
    rows = {
        "question_id": ["1", "2", "3"],
        "question": questions,
        "answer": ["yes", "no", "yes"],
        "category": ["random"] * 3,
        "image": [Image.new("RGB", (30, 20 + i), "red") for i in range(3)],
    }
    kinds = {name: Value("string") for name in rows if name != "image"}
    data = tmp_path / "pope.parquet"
    Dataset.from_dict(rows, features=Features({**kinds, "image": ImageFeature()})).to_parquet(str(data))
    local = {"task": "pope_local", "dataset_path": "parquet"}
    write_task(
        tmp_path / "tasks",
        "lmms_eval",
        "pope",
        **local,
        dataset_kwargs={"data_files": {"test": str(data)}},
        generation_kwargs={"max_new_tokens": 8, "temperature": 0, "do_sample": False},
    )
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False, model_name="owl2")
    results = simple_evaluate(
        "owl2",
        model_args=f"pretrained={checkpoint}",
        tasks=["pope_local"],
        task_manager=manager,
        batch_size=2,
        device="cpu",
        log_samples=True,
        bootstrap_iters=0,
    )

    logged = {row["doc_id"]: row["resps"][0][0] for row in results["samples"]["pope_local"]}
    asked = [f"{question}\nAnswer the question using a single word or phrase." for question in questions]
    for i, (question, image) in enumerate(zip(asked, rows["image"], strict=True)):
        parts = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        batch = owl.processor.chat([[{"role": "user", "content": parts}]])
        (expected,) = owl.generate(**batch, max_new_tokens=8)
        assert logged[i] == owl.processor.decode(expected).partition("\n\n")[0]
    assert 0 <= results["results"]["pope_local"]["pope_accuracy,none"] <= 1
