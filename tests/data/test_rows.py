"""Which column is what: told from names and types; where that is not plain, an error with what there is."""

import pyarrow as pa
import pytest

from owl2.data.readers.tables import _form_of_schema
from owl2.data.sample import DataError
from tests.data.hub import IMAGE, TURNS

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
        ({"image": IMAGE, "captions": pa.string()}, "has no caption.*; captions may be meant as caption"),
        (
            {"image": IMAGE, "text": pa.string(), "caption": pa.string()},
            "has both caption and text for its cap",
        ),
        ({"image": IMAGE, "png": IMAGE, "conversations": TURNS}, "has both image and png for its image"),
        ({"image": pa.int64(), "text": pa.string()}, "has image of type int64, which is no image"),
        ({"image": IMAGE, "text": pa.list_(pa.string())}, "has text of type list<.*>, which is no caption"),
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
