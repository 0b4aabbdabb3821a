"""The forms in which others publish their data, in small: each is read, and trained on for two steps."""

import base64
import gzip
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from owl2.data.inspect.inspection import inspect_source
from owl2.data.readers.sources import open_source
from owl2.data.sample import DataError, Sample
from owl2.processor import SentencePieceTokenizer
from owl2.train.config import DataConfig, OptimConfig, SourceConfig
from owl2.train.metrics import read_metrics
from tests.data.hub import IMAGE, write_parquet, write_stream
from tests.data.small import jpeg, turns, write_jsonl, write_tar
from tests.data.test_rows import chat, shape
from tests.processor.test_video import write_clip
from tests.train.tiny import run_whole, stage, write_checkpoint

ASKED = [["[a.jpg]", "What is this?"], ["An owl."]]
"""What most forms say here."""
EMBEDDED = {"bytes": jpeg(1), "path": None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for path in (tmp_path / "a.jpg", tmp_path / "images" / "a.jpg"):
        path.write_bytes(jpeg(1))
    return tmp_path


def array(path: Path, rows: list[Any], **options: Any) -> Path:
    path.write_text(json.dumps(rows, **options), encoding="utf-8")
    return path


def llava(folder: Path) -> Path:
    row = {"id": "997bb945", "image": "images/a.jpg", "conversations": turns("<image>\nWhat?", "An owl.")}
    return array(folder / "llava.json", [row, {**row, "id": "2"}], indent=2)


def llama_factory(folder: Path) -> Path:
    talk = chat("<image>Who are they?", "Owls.", "What are they doing?<image>", "They sit.")
    return array(folder / "mllm.json", [{"messages": talk, "images": ["images/a.jpg"] * 2}], indent=2)


def llama_factory_video(folder: Path) -> Path:
    pytest.importorskip("av")
    write_clip(folder / "1.mp4", 12)
    talk = chat("<video>Why is this funny?", "An owl reads.")
    return array(folder / "video.json", [{"messages": talk, "videos": ["1.mp4"]}], indent=2)


def llama_factory_v1(folder: Path) -> Path:
    def turn(role: str, *parts: tuple[str, str]) -> dict[str, Any]:
        content = [{"type": kind, "value": value} for kind, value in parts]
        return {"role": role, "content": content, "loss_weight": float(role == "assistant")}

    question = turn("user", ("image_url", "a.jpg"), ("text", "Who is he?"))
    rows = [{"messages": [question, turn("assistant", ("text", "An owl."))]}] * 2
    path = write_jsonl(folder / "v1.jsonl", rows)
    path.write_text(path.read_text() + "\n", encoding="utf-8")
    return path


def alpaca(folder: Path) -> Path:
    first = {
        "instruction": "Name the bird.",
        "input": "It hoots.",
        "output": "An owl.",
        "system": "Be brief.",
    }
    second = {"instruction": "And now?", "input": "", "output": "A cup.", "history": [["Who?", "An owl."]]}
    return array(folder / "alpaca.json", [first, second])


def finevision(folder: Path) -> Path:
    texts = [{"user": "What is this?", "assistant": "An owl."}, {"user": "Sure?", "assistant": "Yes."}]
    ratings = {
        f"{name}_ratings": [5, 4] for name in ("image_correspondence", "visual_dependency", "relevance")
    }
    row = {"images": [EMBEDDED], "texts": texts, "source": "vistext", **ratings, "formatting_min": 4}
    return write_parquet(folder / "train-00000-of-00002.parquet", pa.Table.from_pylist([row, row]))


def the_cauldron(folder: Path) -> Path:
    text = {"user": "What is this?", "assistant": "An owl.", "source": "AI2D"}
    table = pa.Table.from_pylist([{"images": [EMBEDDED], "texts": [text]}] * 2)
    (folder / "clone" / "ai2d").mkdir(parents=True)
    (folder / "clone" / "README.md").write_text("# The cauldron")
    write_parquet(folder / "clone" / "ai2d" / "train-00000-of-00001-2ce340.parquet", table)
    return folder / "clone"


def trl_messages(folder: Path) -> Path:
    def part(kind: str, text: str | None = None, index: int | None = None) -> dict[str, Any]:
        return {"index": index, "text": text, "type": kind}

    messages = [
        {"role": "user", "content": [part("text", "What is this?"), part("image", index=0)]},
        {"role": "assistant", "content": [part("text", "An owl.")]},
    ]
    rows = [{"messages": messages, "images": [EMBEDDED]}] * 2
    (folder / "clone" / "data").mkdir(parents=True)
    for split in ("train", "test"):
        path = folder / "clone" / "data" / f"{split}-00000-of-00001.parquet"
        write_parquet(path, pa.Table.from_pylist(rows))
    return folder / "clone" / "data" / "train-*.parquet"


def trl_prompt_completion(folder: Path) -> Path:
    question, answer = chat("What is this?", "An owl.")
    rows = [
        {"prompt": [question], "completion": [answer], "images": ["a.jpg"]},
        {"prompt": "What is this?", "completion": "An owl.", "image": "a.jpg"},
    ]
    return write_jsonl(folder / "prompts.jsonl", rows)


def openai(folder: Path) -> Path:
    uri = f"data:image/jpeg;base64,{base64.b64encode(jpeg(1)).decode()}"
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": uri}}]
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": content},
        chat("", "Owl.")[1],
    ]
    return write_jsonl(folder / "openai.jsonl", [{"messages": talk}] * 2)


def ms_swift(folder: Path) -> Path:
    pair = {"human": "<image>What is this?", "assistant": "An owl."}
    row = {"query": "Sure?", "response": "Yes.", "history": [["<image>Who?", "An owl."]], "images": ["a.jpg"]}
    return write_jsonl(
        folder / "swift.jsonl", [{"system": "Be brief.", "conversation": [pair], "images": ["a.jpg"]}, row]
    )


def oumi(folder: Path) -> Path:
    content = [{"type": "image_path", "content": "a.jpg"}, {"type": "text", "content": "What is this?"}]
    talk = [{"role": "user", "content": content}, {"role": "assistant", "content": "An owl."}]
    return write_jsonl(folder / "oumi.jsonl", [{"messages": talk, "metadata": {}}] * 2)


def flickr(folder: Path) -> Path:
    return write_jsonl(folder / "flickr.jsonl", [{"image": "a.jpg", "captions": ["An owl.", "A bird."]}] * 2)


def questions(folder: Path) -> Path:
    row = {"question_id": 7, "image": "a.jpg", "question": "What is this?", "answer": "An owl."}
    return write_jsonl(folder / "questions.jsonl", [row] * 2)


def webdataset(folder: Path) -> Path:
    talk = {"id": 3, "image": "coco/9.jpg", "conversations": turns("<image>What is this?", "An owl.")}
    alone = {"conversations": turns("Who?", "You.")}
    members = {"0.jpg": jpeg(1), "0.json": json.dumps(talk).encode(), "1.json": json.dumps(alone).encode()}
    return write_tar(folder / "0.tar", {**members, "2.png": jpeg(2), "2.json": b'{"caption": "An owl."}'})


def saved_to_disk(folder: Path) -> Path:
    """As `datasets.Dataset.save_to_disk` leaves it."""
    schema = pa.schema([("image", IMAGE), ("text", pa.string())])
    table = pa.Table.from_pylist([{"image": EMBEDDED, "text": "An owl."}] * 2, schema)
    (folder / "saved").mkdir()
    write_stream(folder / "saved" / "data-00000-of-00001.arrow", table)
    for name in ("dataset_info.json", "state.json"):
        (folder / "saved" / name).write_text("{}")
    return folder / "saved"


def packed(folder: Path) -> Path:
    path = llava(folder)
    path.with_name("llava.json.gz").write_bytes(gzip.compress(path.read_bytes()))
    return path.with_name("llava.json.gz")


Form = Callable[[Path], Path]
FORMS: list[Form] = [
    llava, llama_factory, llama_factory_video, llama_factory_v1, alpaca, finevision, the_cauldron,
    trl_messages, trl_prompt_completion, openai, ms_swift, oumi, flickr, questions, webdataset,
    saved_to_disk, packed,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_what_others_publish_is_read_and_trained_on(
    folder: Path, form: Form, sentencepiece_tokenizer: SentencePieceTokenizer
) -> None:
    path = form(folder)
    found = inspect_source(open_source("own", path))
    assert not found.bad
    assert found.num_targets > 0
    config = stage(
        folder / "run",
        write_checkpoint(folder / "base", sentencepiece_tokenizer),
        folder,
        data=DataConfig(sources=[SourceConfig(name="own", path=path)], max_tokens=512),
        steps=2,
        optim=OptimConfig(warmup_steps=1),
    )
    run_whole(config)
    assert [row["step"] for row in read_metrics(config.run)] == [1, 2]
    assert not (config.run / "bad_samples.jsonl").exists()


def only(path: Path, **options: Any) -> Sample:
    return open_source("own", path, **options)[0]


def test_each_form_says_the_same(folder: Path) -> None:
    assert shape(only(questions(folder))) == ASKED
    assert shape(only(trl_prompt_completion(folder))) == ASKED
    assert shape(open_source("own", trl_prompt_completion(folder))[1]) == ASKED
    assert shape(only(llama_factory_v1(folder))) == [["[a.jpg]", "Who is he?"], ["An owl."]]
    assert shape(only(oumi(folder))) == ASKED
    assert shape(only(ms_swift(folder))) == [["Be brief."], *ASKED]
    assert shape(only(llava(folder))) == [["[images/a.jpg]", "\nWhat?"], ["An owl."]]
    assert shape(only(finevision(folder)))[1:] == [["An owl."], ["Sure?"], ["Yes."]]
    assert shape(only(trl_messages(folder)))[0][0] == "What is this?"
    assert shape(only(webdataset(folder))) == [["[0.tar:0]", "What is this?"], ["An owl."]]
    assert shape(only(alpaca(folder))) == [["Be brief."], ["Name the bird.\nIt hoots."], ["An owl."]]
    assert shape(open_source("own", alpaca(folder))[1]) == [["Who?"], ["An owl."], ["And now?"], ["A cup."]]
    assert [message["role"] for message in only(openai(folder)).messages] == ["system", "user", "assistant"]


def test_one_of_several_captions_is_chosen_by_the_key_alone(folder: Path) -> None:
    rows = [{"id": n, "image": "a.jpg", "captions": ["one", "two", "three"]} for n in range(40)]
    source = open_source("own", write_jsonl(folder / "rows.jsonl", rows))
    chosen = [source[n].text.strip() for n in range(40)]
    assert {*chosen} == {"one", "two", "three"}
    again = open_source("own", write_jsonl(folder / "rows.jsonl", rows[::-1]))
    assert [again[n].text.strip() for n in range(40)] == chosen[::-1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "?", "chosen": "a", "rejected": "b"},
            "has chosen and rejected: answers to compare, for DPO",
        ),
        (
            {"conversations": turns("?"), "chosen": {"from": "gpt", "value": "a"}},
            "has chosen: answers to comp",
        ),
        (
            {"messages": chat("?", "a"), "rejected_response": "b"},
            "has rejected_response: answers to compare, for DPO; .* with the good answers alone$",
        ),
        ({"messages": chat("?", "a"), "label": True}, r"has label \(true or false\): .* KTO"),
        (
            {"conversations": turns("?", "a"), "tools": '[{"name": "f"}]'},
            "has tools: calls of tools are not read",
        ),
        (
            {"conversations": [*turns("?"), {"from": "function_call", "value": "{}"}]},
            "turn 2 of .* is from 'function_call': calls of tools are not read",
        ),
        (
            {"messages": [*chat("?"), {**chat("?", "a")[1], "loss_weight": 0.0}]},
            "loss_weight 0.0, and only 1",
        ),
        ({"text": "An owl hoots."}, "has no image.*Its columns are text"),
        ({"instruction": "Hoot."}, "has no answer.*one of question or query"),
        ({"image": "a.jpg", "question": "?"}, "has no answer"),
        (
            {"image": "a.jpg", "question": "?", "answer": "a", "caption": "An owl."},
            "both a question with its answer and a caption: `columns` says which",
        ),
        ({"question": "?", "answer": "a", "output": "b"}, "both answer and output for its answer"),
        ({"question": "?", "answer": 3}, "has answer of type number, which is no answer"),
        (
            {"dialog": chat("?", "a")},
            r"Its columns are dialog \(list of turns\).*looks like a conversation: say columns: "
            r"{conversation: dialog}",
        ),
        (
            {"file_name": "0001.png", "text": "An owl."},
            "has no image.*file_name looks like an image: say columns: {image: file_name}",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_form_that_is_not_read_is_an_error_at_the_start_that_says_why(
    folder: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=f"own: none of 3 rows that were tried can be read; .*{message}"):
        open_source("own", write_jsonl(folder / "rows.jsonl", [row] * 3))
    good = {"conversations": turns("?", "a")}
    source = open_source("own", write_jsonl(folder / "rows.jsonl", [good, row]))
    with pytest.raises(DataError, match=message):
        source[1]


def test_a_file_that_begins_with_rows_that_are_not_read_is_opened_for_the_others(folder: Path) -> None:
    bad, good = {"text": "An owl hoots."}, {"conversations": turns("?", "a")}
    source = open_source("own", write_jsonl(folder / "rows.jsonl", [bad] * 10 + [good] * 20))
    assert shape(source[29]) == [["?"], ["a"]]


def test_an_image_in_json_may_be_base64(folder: Path) -> None:
    text = base64.b64encode(jpeg(1)).decode()
    for image in (
        {"bytes": text, "path": "a.jpg"},
        f"data:image/jpeg;base64,{text}",
        {"bytes": None, "path": "a.jpg"},
    ):
        row = {"image": image, "conversations": turns("<image>?", "a")}
        sample = only(array(folder / "rows.json", [row]))
        assert sample.messages[0]["content"][0]["image"].read() == jpeg(1)


def test_dpo_is_trained_on_where_columns_says_which_answer_is_meant(folder: Path) -> None:
    path = write_jsonl(folder / "rows.jsonl", [{"prompt": "?", "chosen": "a", "rejected": "b"}])
    assert shape(only(path, columns={"answer": "chosen"})) == [["?"], ["a"]]


@pytest.mark.parametrize("kind", ["json", "parquet", "tar"])
def test_columns_gives_names_that_are_not_known(folder: Path, kind: str) -> None:
    row = {"dialog": turns("<image>\nWhat?", "An owl."), "img_path": "a.jpg", "text": "a caption"}
    if kind == "json":
        path = array(folder / "rows.json", [row])
    elif kind == "parquet":
        path = write_parquet(folder / "rows.parquet", pa.Table.from_pylist([row]))
    else:
        path = write_tar(folder / "0.tar", {"a.jpg": jpeg(1), "a.json": json.dumps(row).encode()})
    with pytest.raises(DataError, match=r"dialog|img_path"):
        open_source("own", path)
    sample = only(path, columns={"conversations": "dialog", "image": "img_path"})
    assert shape(sample)[0][1:] == ["\nWhat?"]
    with pytest.raises(DataError, match=r"columns has 'picture'; the nearest is .* of conversation, system"):
        open_source("own", path, columns={"picture": "img_path"})
    with pytest.raises(DataError, match="columns names two columns for image"):
        open_source("own", path, columns={"image": "img_path", "images": "text"})
    with pytest.raises(DataError, match="has no column talk"):
        open_source("own", path, columns={"messages": "talk"})


def test_a_column_that_a_table_does_not_have_is_an_error_that_shows_those_it_has(folder: Path) -> None:
    table = pa.Table.from_pylist([{"conversations": turns("?", "a"), "picture_of": "a.jpg"}])
    path = write_parquet(folder / "rows.parquet", table)
    with pytest.raises(DataError, match="has no column picture; it has conversations, picture_of"):
        open_source("own", path, columns={"image": "picture"})
    assert shape(only(path, columns={"image": "picture_of"})) == [["[a.jpg]", "?"], ["a"]]


def test_columns_decides_between_two_forms(folder: Path) -> None:
    row = {"image": "a.jpg", "question": "?", "answer": "a", "caption": "An owl."}
    path = write_jsonl(folder / "rows.jsonl", [row])
    assert shape(only(path, columns={"caption": "caption"})) == [["[a.jpg]"], ["An owl."]]
    assert shape(only(path, columns={"answer": "answer"})) == [["[a.jpg]", "?"], ["a"]]
    talk = write_jsonl(folder / "talk.jsonl", [{**row, "conversations": turns("<image>Who?", "You.")}])
    assert shape(only(talk)) == [["[a.jpg]", "Who?"], ["You."]]
    assert shape(only(talk, columns={"question": "question"})) == [["[a.jpg]", "?"], ["a"]]


def test_images_are_found_by_the_names_that_people_give_them(folder: Path) -> None:
    photos = folder / "My Photos"
    photos.mkdir()
    names = ["IMG 0001.JPG", unicodedata.normalize("NFD", "Café Müller.jpg"), "猫 50%#1.jpg"]
    for name in names:
        (photos / name).write_bytes(jpeg(1))
    paths = [
        "My Photos/IMG 0001.JPG",
        "My Photos\\IMG 0001.JPG",
        ".\\My Photos\\IMG 0001.JPG",
        "./My Photos/Café Müller.jpg",
        "My Photos/猫 50%#1.jpg",
        str(photos / names[0]),
        f"file://{photos / names[0]}",
    ]
    rows = [{"image": path, "conversations": turns("<image>?", "x")} for path in paths]
    (folder / "own.json").write_bytes(json.dumps(rows, indent=1).replace("\n", "\r\n").encode("utf-8-sig"))
    source = open_source("own", folder / "own.json")
    for number in range(len(paths)):
        assert source[number].messages[0]["content"][0]["image"].read() == jpeg(1)
    missing = [{**rows[0], "image": "My Photos/IMG 0002.JPG"}]
    source = open_source("own", array(folder / "own.json", [*missing, rows[0]]))
    with pytest.raises(
        FileNotFoundError, match=r"paths in rows begin at image_root: .*My Photos/IMG 0002.JPG"
    ):
        source[0].messages[0]["content"][0]["image"].open()
