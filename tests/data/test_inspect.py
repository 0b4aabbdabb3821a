"""`owl2 data inspect`: figures that can be checked by hand, and a page that shows what training sees."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from owl2.__main__ import main
from owl2.data.dataset import SampleDataset
from owl2.data.inspect import page
from owl2.data.inspect.inspection import inspect_source, pieces_of
from owl2.data.inspect.page import render_page
from owl2.data.order import Mixture
from owl2.data.readers.sources import open_source
from owl2.processor import Encoding, Processor
from tests.data.small import NUM_IMAGES, jpeg, turns, write_jsonl, write_tar
from tests.markup import check_that_text_stays_text


def rows_of(*shapes: tuple[int, str]) -> list[dict[str, object]]:
    """Conversations with this many images and this answer."""
    return [
        {
            "id": f"row-{n}",
            "image": ["a.jpg"] * images,
            "conversations": turns("<image>" * images + "what?", answer),
        }
        for n, (images, answer) in enumerate(shapes)
    ]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    (tmp_path / "a.jpg").write_bytes(jpeg(4))
    return write_jsonl(
        tmp_path / "rows.jsonl", rows_of((0, "an owl"), (1, "two owls"), (2, "<b>猫</b> & 🦙"))
    )


def test_every_sample_is_opened_once_and_counted(corpora: Path, processor: Processor) -> None:
    found = inspect_source(
        open_source("captions", corpora / "captions"), processor, num_opened=0, num_shown=99
    )
    assert found.num_samples == found.num_opened == NUM_IMAGES
    assert len({shown.key for shown in found.shown}) == NUM_IMAGES
    assert found.shapes == {"with 1 image": NUM_IMAGES}
    assert found.num_visual == 5 * NUM_IMAGES


def test_figures_are_those_of_the_encodings(rows: Path, processor: Processor) -> None:
    source = open_source("rows", rows)
    dataset = SampleDataset([source], ["none"], Mixture([3], [1.0], 0), processor, 512)
    encodings = {key: item for key, item in (dataset[n] for n in range(30)) if isinstance(item, Encoding)}
    assert len(encodings) == 3
    found = inspect_source(source, processor)
    assert sorted(found.lengths) == sorted(len(encoding.ids) for encoding in encodings.values())
    assert found.num_targets == sum(sum(encoding.is_target) for encoding in encodings.values())
    assert found.shapes == Counter(["text alone", "with 1 image", "with 2 images"])
    assert sum(count for _, _, count in found.histogram()) == 3
    assert found.quantile(1.0) == max(found.lengths)


def test_samples_at_the_limit_are_counted_as_cut(rows: Path, processor: Processor) -> None:
    found = inspect_source(open_source("rows", rows), processor, max_tokens=18)
    assert found.num_cut + len(found.bad) >= 1
    assert max(found.lengths) <= 18


def test_the_page_marks_exactly_the_answers_and_escapes_them(rows: Path, processor: Processor) -> None:
    page = render_page(inspect_source(open_source("rows", rows), processor))
    learned = re.findall(r'<span class="l">(.*?)</span>|<span class="(l end)">', page)
    answers = "".join("|" if end else text for text, end in learned).strip("|").split("|")
    assert {answer.strip() for answer in answers} == {"an owl", "two owls", "&lt;b&gt;猫&lt;/b&gt; &amp; 🦙"}
    assert page.count('<span class="chip">image') == 3
    assert page.count("<img ") == 3
    assert 'src="http' not in page


def test_characters_of_several_tokens_stay_whole(processor: Processor) -> None:
    encoding = processor.encode(
        [{"role": "user", "content": "猫 🦙 naïve?"}, {"role": "assistant", "content": "ü 你好"}]
    )
    pieces = pieces_of(encoding, processor)
    text = "".join(piece.text for piece in pieces)
    assert "猫 🦙 naïve?" in text
    assert "�" not in text
    assert "".join(piece.text for piece in pieces if piece.is_target).strip() == "ü 你好"


def test_the_images_are_those_of_training_after_augmentation(corpora: Path, processor: Processor) -> None:
    source = open_source("captions", corpora / "captions")
    plain = inspect_source(source, processor, num_opened=0, num_shown=99)
    varied = inspect_source(source, processor, augmentation="crop_flip", num_opened=0, num_shown=99)
    changed = 0
    for a, b in zip(plain.shown, varied.shown, strict=True):
        assert a.key == b.key
        assert a.images[0].size == b.images[0].size == (28, 28)
        changed += bool(np.abs(np.asarray(a.images[0], int) - np.asarray(b.images[0], int)).max() > 8)
    assert changed > NUM_IMAGES // 2
    index = next(
        n for n in range(len(source)) if source[n].key == plain.shown[0].key.removeprefix("captions:")
    )
    original = source[index].messages[0]["content"][0]["image"].open()
    resized = original.resize((max(original.size),) * 2, Image.Resampling.BICUBIC).resize(
        (28, 28), Image.Resampling.BICUBIC
    )
    assert np.abs(np.asarray(resized, int) - np.asarray(plain.shown[0].images[0], int)).max() <= 1


def test_the_command_prints_figures_and_faults_and_writes_the_page(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(
        rows,
        [*rows_of((0, "an owl")), {"id": "gone", "image": "b.jpg", "conversations": turns("<image>", "x")}],
    )
    out = tmp_path / "page.html"
    main(["data", "inspect", str(rows), "--out", str(out)])
    shown = capsys.readouterr().out
    assert re.search(r"^ +2  samples$", shown, re.MULTILINE)
    assert re.search(r"^ +1  broken, as rows:gone: FileNotFoundError", shown, re.MULTILINE)
    assert "length in bytes" in shown
    assert "image is missing" in out.read_text(encoding="utf-8")


def test_a_source_of_which_nothing_can_be_used_is_an_error_behind_its_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"image": "gone.jpg", "conversations": turns("<image>What?", "x")}] * 3
    path, out = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "page.html"
    with pytest.raises(SystemExit, match="1"):
        main(["data", "inspect", str(path), "--out", str(out)])
    shown = capsys.readouterr()
    assert re.search(r"^ +3  broken$", shown.out, re.MULTILINE)
    assert "rows: none of 3 samples can be used; the first, rows:rows.jsonl:" in shown.err
    assert "image is missing" in out.read_text(encoding="utf-8")


def test_a_form_that_is_not_read_is_an_error_before_anything_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"img": "a.jpg", "conversations": turns("What?", "x")}] * 3
    path, out = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "page.html"
    with pytest.raises(SystemExit, match="1"):
        main(["data", "inspect", str(path), "--out", str(out)])
    shown = capsys.readouterr()
    assert "rows: none of 3 rows that were tried can be read; line 1 of" in shown.err
    assert "say columns: {image: img}" in shown.err
    assert not shown.out
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    main(["data", "inspect", str(path), "--out", str(out), "--columns", "{image: img}"])
    assert re.search(r"^ +3  with 1 image|3 with 1 image", out.read_text(encoding="utf-8"))


def test_lost_files_are_shown_with_their_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        write_tar(tmp_path / f"{number}.tar", {f"{number}.jpg": jpeg(number), f"{number}.txt": b"an owl"})
    (tmp_path / "1.tar").write_bytes(b"<html>404</html>" * 100)
    out = tmp_path / "page.html"
    main(["data", "inspect", str(tmp_path), "--out", str(out)])
    shown = capsys.readouterr().out
    assert re.search(r"^ +25.0%  lost, in 1 damaged file\(s\)$", shown, re.MULTILINE)
    assert "1.tar is not a readable tar" in shown
    page = out.read_text(encoding="utf-8")
    assert "25.0%" in page
    assert "1.tar is not a readable tar" in page


def test_what_is_no_source_is_one_line_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="1"):
        main(["data", "inspect", str(tmp_path / "nowhere.jsonl")])
    assert "nowhere.jsonl does not exist" in capsys.readouterr().err


def test_no_text_of_the_page_becomes_markup(
    rows: Path, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(
        rows,
        [
            *rows_of((0, "an owl"), (1, "two owls")),
            {"id": "gone", "image": "b.jpg", "conversations": turns("<image>", "x")},
        ],
    )
    found = inspect_source(open_source("rows", rows), processor)
    check_that_text_stays_text(page, lambda: render_page(found), monkeypatch)
