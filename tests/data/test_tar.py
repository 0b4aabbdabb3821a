"""WebDataset shards by index: every complete key once, and nothing lost in silence."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from owl2.data.inspect.inspection import inspect_source
from owl2.data.inspect.page import render_page
from owl2.data.readers.shards import TarSource
from owl2.data.readers.sources import open_source
from owl2.data.sample import DataError, Sample
from owl2.processor import Processor
from tests.data.small import jpeg, turns, write_tar


def pair(key: str, number: int = 0, caption: str = "an owl") -> dict[str, bytes]:
    return {f"{key}.jpg": jpeg(number), f"{key}.txt": caption.encode()}


def parts(sample: Sample) -> tuple[tuple[int, int], str]:
    """The image's size and the caption."""
    question, answer = sample.messages
    return question["content"][0]["image"].open().size, answer["content"]


def test_every_key_of_every_shard_is_a_sample_of_its_own(tmp_path: Path) -> None:
    write_tar(tmp_path / "000001.tar", pair("c", 3, "  a cat \n"))
    write_tar(tmp_path / "000000.tar", {**pair("a", 1, "猫头鹰 🦉"), **pair("b", 2, "two owls")})
    source = open_source("captions", tmp_path)
    assert len(source) == 3
    assert [source[i].key for i in range(3)] == ["000000/a", "000000/b", "000001/c"]
    assert [parts(source[i]) for i in range(3)] == [
        ((21, 39), "猫头鹰 🦉"),
        ((22, 38), "two owls"),
        ((23, 37), "a cat"),
    ]


def test_folders_long_names_capitals_and_other_files_are_no_obstacle(tmp_path: Path) -> None:
    long = "folder/" + "x" * 180
    members = {**pair(long, 4), "a.JPG": jpeg(5), "a.TXT": b"capitals", "a.json": b"{}", "b/c.png": jpeg(6)}
    members |= {"b/c.txt": b"in a folder", "größe.jpg": jpeg(7), "größe.txt": b"unicode"}
    path = write_tar(tmp_path / "0.tar", members)
    with tarfile.open(path, "a") as tar:
        folder = tarfile.TarInfo("looks-like.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    source = TarSource("captions", tmp_path)
    assert {source[i].key for i in range(len(source))} == {f"0/{long}", "0/a", "0/b/c", "0/größe"}
    assert source.num_incomplete == 0


def test_incomplete_keys_are_counted_and_never_drawn(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {**pair("a"), "no-caption.jpg": jpeg(0), "no-image.txt": b"an owl"})
    write_tar(tmp_path / "1.tar", {"other.png": jpeg(0)})
    source = TarSource("captions", tmp_path)
    assert len(source) == 1
    assert source.num_incomplete == 3


def test_a_shard_cut_off_anywhere_is_an_error_that_names_it(tmp_path: Path) -> None:
    members = {name: data for key in "ab" for name, data in pair(key).items()}
    path = write_tar(tmp_path / "0.tar", members)
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    end_mark = last.offset_data + -(-last.size // 512) * 512
    for cut in range(0, end_mark + 512, 128):
        path.write_bytes(whole[:cut])
        with pytest.raises(
            DataError, match=r"shard .*0\.tar is (not a readable tar|truncated or damaged at)"
        ):
            TarSource("captions", tmp_path)
    path.write_bytes(whole[: end_mark + 512])
    assert len(TarSource("captions", tmp_path)) == 2


def test_a_damaged_header_in_the_middle_is_an_error_and_not_the_end_of_the_shard(tmp_path: Path) -> None:
    members = {name: data for key in "abc" for name, data in pair(key).items()}
    path = write_tar(tmp_path / "0.tar", members)
    with tarfile.open(path) as tar:
        offset = tar.getmember("b.jpg").offset
    data = bytearray(path.read_bytes())
    data[offset + 10] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(
        DataError, match=rf"0\.tar is truncated or damaged at byte {offset:,} of {len(data):,}"
    ):
        TarSource("captions", tmp_path)


def test_a_file_that_is_no_tar_is_an_error_that_names_it(tmp_path: Path) -> None:
    for content in (b"not a tar" * 100, b"", b"\x1f\x8b" + b"gzip" * 300):
        (tmp_path / "0.tar").write_bytes(content)
        with pytest.raises(DataError, match=r"captions: shard .*0\.tar is not a readable tar"):
            TarSource("captions", tmp_path)
    (tmp_path / "0.tar").unlink()
    (tmp_path / "0.tar").mkdir()
    with pytest.raises(DataError, match=r"0\.tar is not a readable tar: .*directory"):
        TarSource("captions", tmp_path)


def test_a_key_that_occurs_twice_is_an_error(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("a.jpg", "a.txt", "a.png"):
            tar.addfile(tarfile.TarInfo(name))
    (tmp_path / "0.tar").write_bytes(file.getvalue())
    with pytest.raises(DataError, match=r"0\.tar has a twice \(a\.png\)"):
        TarSource("captions", tmp_path)


def test_a_key_that_occurs_twice_costs_itself_and_is_counted(tmp_path: Path) -> None:
    members = {**pair("a", 1), **pair("b", 2), **pair("c", 3)}
    write_tar(tmp_path / "0.tar", {**members, "b.png": jpeg(4), "folder/c.jpg": jpeg(5)})
    source = TarSource("captions", tmp_path)
    assert [source[n].key for n in range(len(source))] == ["0/a", "0/c"]
    assert source.lost == [("0.tar", f"captions: shard {tmp_path}/0.tar has b twice (b.png)")]
    assert (source.num_lost, source.num_incomplete) == (1, 1)
    assert source.lost_share == pytest.approx(1 / 3)


def test_the_estimated_share_of_lost_shards_is_that_of_whole_ones(tmp_path: Path) -> None:
    for number in range(4):
        write_tar(tmp_path / f"{number}.tar", {**pair(f"a{number}"), **pair(f"b{number}")})
    assert (TarSource("captions", tmp_path).lost_share, TarSource("captions", tmp_path).lost) == (0, [])
    (tmp_path / "2.tar").write_bytes((tmp_path / "2.tar").read_bytes()[:700])
    source = TarSource("captions", tmp_path)
    assert (len(source), source.num_lost, source.lost_share) == (6, 2, 0.25)
    ((file, reason),) = source.lost
    assert (file, "2.tar is not a readable tar" in reason) == ("2.tar", True)


@pytest.mark.parametrize("padding", [0, 512, 10_240])
def test_tars_laid_end_to_end_are_read_to_the_end(tmp_path: Path, padding: int) -> None:
    """`cat a.tar b.tar > 0.tar`; both may count their keys from 0."""
    parts_ = [
        write_tar(tmp_path / name, members).read_bytes()
        for name, members in (
            ("a.tar", {**pair("0", 1, "an owl"), **pair("1", 2, "a cat")}),
            ("empty.tar", {}),
            ("b.tar", {**pair("0", 3, "a cup"), **pair("2", 4, "a tree")}),
        )
    ]
    (tmp_path / "joined").mkdir()
    (tmp_path / "joined" / "0.tar").write_bytes(bytes(padding).join(parts_) + bytes(padding))
    source = TarSource("captions", tmp_path / "joined")
    assert [parts(source[n]) for n in range(len(source))] == [
        ((21, 39), "an owl"),
        ((22, 38), "a cat"),
        ((23, 37), "a cup"),
        ((24, 36), "a tree"),
    ]
    assert (source.lost, source.num_incomplete) == ([], 0)


@pytest.mark.parametrize("rest", [b"<html>404</html>", bytes(300) + b"x" * 300, b"x" * 5000])
def test_bytes_behind_the_end_of_a_tar_that_are_no_tar_are_an_error(tmp_path: Path, rest: bytes) -> None:
    path = write_tar(tmp_path / "0.tar", pair("a"))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + rest)
    with pytest.raises(DataError, match=rf"0\.tar is truncated or damaged at byte {size:,} of"):
        TarSource("captions", tmp_path)


def test_a_second_tar_that_is_cut_is_an_error(tmp_path: Path) -> None:
    first, second = (write_tar(tmp_path / f"{name}.part", pair(name)).read_bytes() for name in "ab")
    for cut in (100, 700, 2000, len(second) - 10_000):
        (tmp_path / "0.tar").write_bytes(first + second[:cut])
        with pytest.raises(DataError, match=r"0\.tar is (not a readable tar|truncated or damaged at)"):
            TarSource("captions", tmp_path)


def test_links_and_compressed_shards_are_not_passed_over_in_silence(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", pair("a"))
    with tarfile.open(path, "a") as tar:
        for suffix, kind in ((".jpg", tarfile.LNKTYPE), (".txt", tarfile.SYMTYPE)):
            link = tarfile.TarInfo(f"b{suffix}")
            link.type, link.linkname = kind, f"a{suffix}"
            tar.addfile(link)
    source = TarSource("captions", tmp_path)
    assert (len(source), source.num_incomplete) == (1, 1)
    for name in ("1.tar.gz", "1.tgz", "1.tar.zst"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(DataError, match=rf"has 1 compressed file.* such as {name}, which are not read"):
            open_source("captions", tmp_path)
        (tmp_path / name).unlink()
    assert len(open_source("captions", tmp_path)) == 1


def test_a_folder_without_shards_or_without_a_single_pair_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"captions: no \*.tar in "):
        TarSource("captions", tmp_path)
    write_tar(tmp_path / "0.tar", {"a.jpg": jpeg(0)})
    with pytest.raises(DataError, match=r"no key with an image and a .txt caption in 1 shards"):
        TarSource("captions", tmp_path)


def test_a_blank_caption_and_one_that_is_not_utf_8_are_bad_samples(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.jpg": jpeg(0), "a.txt": b" \n", "b.jpg": jpeg(1), "b.txt": b"caf\xe9"})
    source = TarSource("captions", tmp_path)
    with pytest.raises(DataError, match="captions: the caption of 0/a is blank"):
        source[0]
    with pytest.raises(DataError, match="captions: the caption of 0/b is not UTF-8"):
        source[1]


def test_a_caption_loses_a_byte_order_mark_and_its_line_ends(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", pair("a", caption="\ufeffan owl\r\n"))
    assert TarSource("captions", tmp_path)[0].text.strip() == "an owl"


def test_a_name_that_is_not_utf_8_can_be_shown(tmp_path: Path, processor: Processor) -> None:
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in (("caf\udce9.jpg", jpeg(1)), ("caf\udce9.txt", b"a cup"), ("caf\udce8.jpg", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = TarSource("captions", tmp_path)
    assert source[0].key == "0/caf\\udce9"
    assert "caf\\udce9" in render_page(inspect_source(source, processor))


def test_a_shard_that_shrank_while_it_was_open_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", {**pair("a"), **pair("b")})
    source = TarSource("captions", tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"0\.tar: .* bytes at .*; the shard is truncated"):
        parts(source[1])


def test_json_next_to_a_caption_is_not_read_and_alone_it_is_the_row(tmp_path: Path) -> None:
    row = {"id": "x", "image": "elsewhere/9.jpg", "conversations": turns("<image>What?", "An owl.")}
    members = {
        **pair("a", caption="a cup"),
        "a.json": b'{"caption": "another", "url": "https://example.org/a.jpg"}',
        "b.jpg": jpeg(1),
        "b.json": json.dumps(row).encode(),
        "c.json": b'{"caption": "of an image that was not fetched", "status": "failed"}',
        "d.json": json.dumps({"conversations": turns("Who?", "You.")}).encode(),
        "e.jpg": jpeg(2),
    }
    write_tar(tmp_path / "0.tar", members)
    source = TarSource("web", tmp_path / "0.tar")
    assert [source[n].key for n in range(len(source))] == ["0/a", "0/b", "0/d"]
    assert source[0].text.strip() == "a cup"
    image = source[1].messages[0]["content"][0]["image"]
    assert image.read() == jpeg(1)
    assert source[2].text == "Who?\nYou."
    assert source.num_incomplete == 1, "the image e has no caption"


def test_json_that_is_damaged_costs_itself(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "0.tar", {"a.jpg": jpeg(1), "a.json": b'{"caption": "cut', "b.json": b"[]", **pair("c")}
    )
    source = open_source("web", tmp_path)
    assert len(source) == 2
    with pytest.raises(DataError, match=r"web: 0/a\.json: not JSON"):
        source[0]
    assert source[1].key == "0/c"


def test_the_rows_that_are_read_are_part_of_the_fingerprint_and_metadata_is_not(tmp_path: Path) -> None:
    def fingerprint(**changes: bytes) -> str:
        members = {**pair("a"), "a.json": b"{}", "b.jpg": jpeg(1), "b.json": b'{"caption": "an owl"}'}
        changed = {name.replace("_", "."): data for name, data in changes.items()}
        write_tar(tmp_path / "0.tar", {**members, **changed})
        return TarSource("web", tmp_path).fingerprint()

    assert fingerprint() == fingerprint(a_json=b'{"url": "x"}')
    assert fingerprint() != fingerprint(b_json=b'{"caption": "an elk"}')


def test_keys_with_dots_pair_by_their_stem_or_else_by_their_first_part(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {**pair("photo.v1"), **pair("photo.v2")})
    assert len(TarSource("web", tmp_path / "0.tar")) == 2
    members = {"x/1.img.jpg": jpeg(1), "x/1.cap.txt": b"an owl", "2.img.jpg": jpeg(2), "2.row.json": b"{}"}
    write_tar(tmp_path / "1.tar", {**members, "3.a.jpg": jpeg(3), "3.b.jpg": jpeg(3), "3.txt": b"two"})
    source = TarSource("web", tmp_path / "1.tar")
    assert [shard.num_rows for shard in source.files] == [2]
    assert source[0].text.strip() == "an owl"
    with pytest.raises(DataError, match="has no caption"):
        source[1]


def test_a_shard_of_conversations_is_read_in_slices_at_a_url(tmp_path: Path) -> None:
    talk = json.dumps({"conversations": turns("Who?", "You.")}).encode()
    members = {f"{n}.json": talk for n in range(3)} | {"9.jpg": jpeg(1), "9.json": b'{"caption": "an owl"}'}
    write_tar(tmp_path / "0.tar", members)
    local, remote = TarSource("web", tmp_path), TarSource("web", f"file://{tmp_path}", in_slices=True)
    assert [remote[n].text for n in range(4)] == [local[n].text for n in range(4)]
    assert remote.fingerprint() == local.fingerprint()
