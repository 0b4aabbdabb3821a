"""Rows of JSONL and tables: one form for both, told from names and types; what would not be read is an
error."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from owl2.data.readers.jsonl import JsonlSource
from owl2.data.readers.tables import TableSource, _form_of_schema
from owl2.data.sample import DataError, Sample
from tests.data.hub import IMAGE, TURNS, write_parquet
from tests.data.small import turns, write_jsonl

CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def columns_of(**columns: pa.DataType) -> dict[str, str]:
    return dict(_form_of_schema("web", "a.parquet", pa.schema(columns.items())).columns)


def test_known_names_of_fitting_types_are_what_they_are_called() -> None:
    assert columns_of(id=pa.string(), image=IMAGE, conversations=TURNS, data_source=pa.string()) == {
        "key": "id",
        "image": "image",
        "conversation": "conversations",
    }
    assert columns_of(images=pa.list_(IMAGE), messages=CHAT, text=pa.string(), caption=pa.string()) == {
        "image": "images",
        "conversation": "messages",
    }
    assert columns_of(jpg=pa.large_binary(), txt=pa.large_string(), __key__=pa.string()) == {
        "image": "jpg",
        "caption": "txt",
        "key": "__key__",
    }
    assert columns_of(conversations=pa.large_list(TURNS.value_type), image=pa.null(), id=pa.int64()) == {
        "conversation": "conversations",
        "image": "image",
        "key": "id",
    }


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"pixels": pa.binary()},
            r"has no image, no caption\. Its columns are pixels \(binary\)\. Expected is",
        ),
        ({"image": IMAGE, "captoin": pa.string()}, "has no caption.*; captoin may be meant as caption"),
        (
            {"image": IMAGE, "text": pa.string(), "caption": pa.string()},
            "has both caption and text for its cap",
        ),
        ({"image": IMAGE, "png": IMAGE, "conversations": TURNS}, "has both image and png for its image"),
        ({"image": pa.int64(), "text": pa.string()}, "has image of type int64, which is no image"),
        ({"image": IMAGE, "text": pa.list_(pa.int64())}, "has text of type list<.*>, which is no caption"),
        ({"conversations": pa.string()}, "has conversations of type string, which is no conversation"),
        ({"id": pa.float64(), "messages": CHAT}, "has id of type double, which is no key"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_is_missing_twofold_or_of_another_type_is_named_with_what_is_expected(
    columns: dict[str, pa.DataType], message: str
) -> None:
    with pytest.raises(DataError, match=f"web: a.parquet {message}") as found:
        columns_of(**columns)
    assert "conversations or conversation or messages" in str(found.value)
    assert "rename or drop columns" in str(found.value)


SOURCES = ["jsonl", "parquet"]
TALK = turns("What?", "An owl.", "Sure?", "Yes.")


def read_row(folder: Path, kind: str, **row: Any) -> Sample:
    """Write one row as JSONL or as a table and read it back."""
    if kind == "jsonl":
        return JsonlSource("rows", write_jsonl(folder / "rows.jsonl", [row]))[0]
    return TableSource("rows", write_parquet(folder / "rows.parquet", pa.Table.from_pylist([row])))[0]


def shape(sample: Sample) -> list[list[str]]:
    """The parts of each turn; an image in brackets, a clip in angle brackets."""

    def shown(part: dict[str, Any]) -> str:
        if part["type"] == "text":
            return str(part["text"])
        return f"[{part['image'].name}]" if part["type"] == "image" else f"<{part['video'].name}>"

    contents = [message["content"] for message in sample.messages]
    return [[content] if isinstance(content, str) else [*map(shown, content)] for content in contents]


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(
    "row",
    [
        {"image": "a.jpg", "conversations": turns("<image>What?", "An owl.")},
        {"images": ["a.jpg"], "conversations": turns("<image>What?", "An owl.")},
        {"images": ["a.jpg"], "messages": chat("<image>What?", "An owl.")},
        {"images": ["a.jpg"], "messages": chat("What?", "An owl.")},
        {"image": {"path": "a.jpg"}, "conversation": chat("<|image|>What?", "An owl.")},
    ],
    ids=str,
)
def test_the_same_conversation_under_any_known_names_is_the_same_sample(
    tmp_path: Path, kind: str, row: dict[str, Any]
) -> None:
    assert shape(read_row(tmp_path, kind, **row)) == [["[a.jpg]", "What?"], ["An owl."]]


@pytest.mark.parametrize("kind", SOURCES)
def test_media_without_any_mark_come_before_the_text_of_the_first_question(tmp_path: Path, kind: str) -> None:
    sample = read_row(tmp_path, kind, images=["a.jpg", "b.jpg"], conversations=TALK)
    assert shape(sample) == [["[a.jpg]", "[b.jpg]", "What?"], ["An owl."], ["Sure?"], ["Yes."]]
    sample = read_row(tmp_path, kind, videos=["a.mp4"], image="a.jpg", messages=chat("What?", "An owl."))
    assert shape(sample) == [["[a.jpg]", "<a.mp4>", "What?"], ["An owl."]]
    sample = read_row(tmp_path, kind, image="a.jpg", system="Be brief.", messages=chat("What?", "An owl."))
    assert shape(sample) == [["Be brief."], ["[a.jpg]", "What?"], ["An owl."]]


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"images": ["a", "b"], "conversations": turns("<image>?", "x")}, "1 image mark.s. and 2 image"),
        (
            {"images": ["a"], "conversations": turns("<image>?", "x", "<image>?", "y")},
            "2 image mark.s. and 1",
        ),
        (
            {"image": "a", "video": "b", "conversations": turns("<image>?", "x")},
            "0 video mark.s. and 1 video",
        ),
        (
            {"image": "a", "video": "b", "conversations": turns("<video>?", "x")},
            "0 image mark.s. and 1 image",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_fewer_or_more_marks_than_media_are_an_error(
    tmp_path: Path, kind: str, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as found:
        read_row(tmp_path, kind, **row)
    assert found.value.kind == "image marks and images differ"


@pytest.mark.parametrize("kind", SOURCES)
def test_a_system_prompt_is_a_first_message_of_its_own(tmp_path: Path, kind: str) -> None:
    expected = [["Be brief."], ["[a.jpg]", "\nWhat?"], ["An owl."], ["Sure?"], ["Yes."]]
    talk = turns("<image>\nWhat?", "An owl.", "Sure?", "Yes.")
    system = {"from": "system", "value": "Be brief."}
    assert shape(read_row(tmp_path, kind, system="Be brief.", image="a.jpg", conversations=talk)) == expected
    assert shape(read_row(tmp_path, kind, image="a.jpg", conversations=[system, *talk])) == expected
    both = read_row(tmp_path, kind, system_prompt="Be brief.", image="a.jpg", conversations=[system, *talk])
    assert shape(both) == expected, "said twice is read once"
    with pytest.raises(DataError, match="two system prompts that differ"):
        read_row(tmp_path, kind, system="Be kind.", image="a.jpg", conversations=[system, *talk])
    with pytest.raises(DataError, match=r"turn 3 of .* is from 'system', expected 'human'"):
        read_row(tmp_path, kind, conversations=[*turns("?", "x"), system, *turns("?", "x")])
    for empty in (None, ""):
        sample = read_row(tmp_path, kind, system=empty, conversations=turns("?", "x"), id="a")
        assert shape(sample) == [["?"], ["x"]]


@pytest.mark.parametrize("kind", SOURCES)
def test_parts_may_bring_their_own_media(tmp_path: Path, kind: str) -> None:
    def question(*parts: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "An owl."}]},
        ]

    own = [{"type": "image", "image": "a.jpg"}, {"type": "video", "path": "b.mp4"}]
    assert shape(read_row(tmp_path, kind, messages=question(*own))) == [
        ["[a.jpg]", "<b.mp4>", "What?"],
        ["An owl."],
    ]
    url = {"type": "image_url", "image_url": {"url": "https://example.org/a.jpg"}}
    sample = read_row(tmp_path, kind, messages=question(url, {"type": "image"}), images=["b.jpg"])
    assert shape(sample)[0] == ["[https://example.org/a.jpg]", "[b.jpg]", "What?"]
    with pytest.raises(DataError, match=r"1 video mark.s. and 0 video"):
        read_row(tmp_path, kind, messages=question({"type": "video"}))
    with pytest.raises(DataError, match=r"has a part .*; expected text, image or video as its type"):
        read_row(tmp_path, kind, messages=question({"type": "input_audio"}))


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(
    ("column", "value", "look"),
    [
        ("img", "a.jpg", "an image"),
        ("image_path", "a.jpg", "an image"),
        ("imagePath", "a", "an image"),
        ("image_file", ["a", "b"], "an image"),
        ("picture", {"path": "a.jpg"}, "an image"),
        ("PHOTO", "a", "an image"),
        ("frames", ["1", "2"], "an image"),
        ("video_path", "a.mp4", "a video"),
        ("clip", "a", "a video"),
        ("audio", "a.wav", "audio"),
        ("audios", ["a", "b"], "audio"),
        ("system_message", "Be brief.", "a system prompt"),
    ],
)
def test_a_column_that_looks_like_media_and_is_not_read_is_an_error_that_names_it(
    tmp_path: Path, kind: str, column: str, value: Any, look: str
) -> None:
    advice = "remove it" if look == "audio" else "rename it to (image|video|system), or remove it"
    with pytest.raises(
        DataError, match=f"has {column}, which looks like {look} and is not read: {advice}"
    ) as found:
        read_row(tmp_path, kind, conversations=TALK, **{column: value})
    assert found.value.kind == "media is not read"
    if look in ("audio", "a system prompt"):
        with pytest.raises(DataError, match=f"has {column}, which"):
            read_row(tmp_path, kind, conversations=TALK, image="a.jpg", **{column: value})


def test_a_file_of_media_under_any_name_is_noticed_by_its_suffix_or_its_bytes(tmp_path: Path) -> None:
    for value in ("train/a.JPG", ["a.png"], "https://example.org/a.mp4"):
        with pytest.raises(DataError, match="has file, which looks like"):
            read_row(tmp_path, "jsonl", conversations=TALK, file=value)
    for value in (b"\xff\xd8", [{"bytes": b"\xff\xd8", "path": None}]):
        with pytest.raises(DataError, match="has file, which looks like an image"):
            read_row(tmp_path, "parquet", conversations=TALK, file=value)


@pytest.mark.parametrize("kind", SOURCES)
def test_columns_about_media_are_no_media(tmp_path: Path, kind: str) -> None:
    about = {
        "image_id": "COCO_9",
        "image_width": "640",
        "image_source": "coco",
        "video_duration": "3.2",
        "clip_score": 0.3,
        "num_images": 1,
        "has_audio": False,
        "operating": "system",
        "data_source": "a/b",
    }
    assert shape(read_row(tmp_path, kind, conversations=TALK, **about)) == shape(
        read_row(tmp_path, kind, conversations=TALK)
    )


@pytest.mark.parametrize("kind", SOURCES)
def test_another_name_of_an_image_that_is_read_is_no_fault_but_a_second_image_is(
    tmp_path: Path, kind: str
) -> None:
    assert shape(read_row(tmp_path, kind, image="a.jpg", image_path="x/a.jpg", conversations=TALK))[0] == [
        "[a.jpg]",
        "What?",
    ]
    with pytest.raises(DataError, match=r"image_path(, which looks like an image| alone, which is not read)"):
        read_row(tmp_path, kind, image=None, image_path="x/a.jpg", conversations=TALK, id="a")
    with pytest.raises(DataError, match="has image_2, which looks like an image and is not read"):
        read_row(tmp_path, kind, image="a.jpg", image_2="b.jpg", conversations=TALK)


def test_a_row_of_a_table_without_its_image_must_not_have_it_under_another_name(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "image": "a.jpg", "image_path": "x/a.jpg", "conversations": TALK},
        {"id": "b", "image": None, "image_path": "x/b.jpg", "conversations": TALK},
        {"id": "c", "image": None, "image_path": None, "conversations": TALK},
    ]
    source = TableSource("rows", write_parquet(tmp_path / "rows.parquet", pa.Table.from_pylist(rows)))
    assert [shape(source[n])[0] for n in (0, 2)] == [["[a.jpg]", "What?"], ["What?"]]
    with pytest.raises(
        DataError, match=r"row rows.parquet:1 has an image in image_path alone, which is not read"
    ):
        source[1]


@pytest.mark.parametrize("kind", SOURCES)
def test_an_image_with_its_caption_is_a_row_too(tmp_path: Path, kind: str) -> None:
    sample = read_row(tmp_path, kind, image="a.jpg", caption=" \ufeffAn owl. \n")
    assert shape(sample) == [["[a.jpg]"], ["An owl."]]
    with pytest.raises(DataError, match="has a caption and 2 images"):
        read_row(tmp_path, kind, images=["a.jpg", "b.jpg"], text="Owls.")


def test_a_row_without_an_id_is_named_by_its_place(tmp_path: Path) -> None:
    assert read_row(tmp_path, "jsonl", conversations=TALK).key == "rows.jsonl:1"
    assert read_row(tmp_path, "parquet", conversations=TALK).key == "rows.parquet:0"
