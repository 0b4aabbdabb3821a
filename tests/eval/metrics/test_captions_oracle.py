"""The words of captions are those of the Stanford jar, and CIDEr-D is that of pycocoevalcap."""

import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from owl2.eval.metrics.cider import cider_d
from owl2.eval.metrics.ptb import tokenize
from tests.eval.metrics.generated import caption, captions_of_images
from tests.eval.metrics.oracle import COCO_CAPTION, load, unpack

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def coco_caption(request: pytest.FixtureRequest) -> Path:
    cache = request.config.cache
    assert cache is not None, "oracle tests need pytest's cache for what they download"
    return unpack(COCO_CAPTION, cache.mkdir("oracles")) / "pycocoevalcap"


def cut_by_the_jar(captions: list[str], coco_caption: Path, tmp_path: Path) -> list[list[str]]:
    """Words by the Stanford jar, called and stripped of punctuation as in `ptbtokenizer.py`."""
    if shutil.which("java") is None:
        pytest.skip("no java, which the Stanford tokenizer needs")
    reference = load(coco_caption / "tokenizer/ptbtokenizer.py", "ptbtokenizer")
    file = tmp_path / "captions.txt"
    file.write_text("\n".join(text.replace("\n", " ") for text in captions), encoding="utf-8")
    jar = coco_caption / "tokenizer" / reference.STANFORD_CORENLP_3_4_1_JAR
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    done = subprocess.run(
        [*command, "-preserveLines", "-lowerCase", str(file)], capture_output=True, check=True
    )
    lines = done.stdout.decode().split("\n")[: len(captions)]
    # Words of CIDEr are what stands between any blanks, also those within the jar's tokens ("1 1/2").
    return [
        " ".join(word for word in line.split(" ") if word not in reference.PUNCTUATIONS).split()
        for line in lines
    ]


def test_words_are_those_of_the_jar(coco_caption: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    captions = [caption(draw) for _ in range(20_000)]
    theirs = cut_by_the_jar(captions, coco_caption, tmp_path)
    differing = [
        (text, words) for text, words in zip(captions, theirs, strict=True) if tokenize(text) != words
    ]
    agreement = 1 - len(differing) / len(captions)
    print(f"{agreement:.4%} of {len(captions)} captions")
    assert agreement >= 0.999, differing[:10]


def scores_by_pycocoevalcap(
    words: list[list[str]], references: list[list[list[str]]], coco_caption: Path
) -> Any:
    scorer = load(coco_caption / "cider/cider_scorer.py", "cider_scorer").CiderScorer(n=4, sigma=6.0)
    for said, captions in zip(words, references, strict=True):
        scorer += (" ".join(said), [" ".join(caption) for caption in captions])
    return scorer.compute_score()


def test_cider_is_that_of_pycocoevalcap_on_the_same_words(coco_caption: Path) -> None:
    candidates, references = captions_of_images(seed=1, images=700)
    cut = [[tokenize(text) for text in captions] for captions in references]
    mean, theirs = scores_by_pycocoevalcap([tokenize(text) for text in candidates], cut, coco_caption)
    ours = cider_d(candidates, references)
    print(f"largest difference {max(abs(a - b) for a, b in zip(ours, theirs, strict=True)):.1e}; mean {mean}")
    assert ours == pytest.approx(list(theirs), abs=1e-9)
    assert sum(ours) / len(ours) == pytest.approx(mean, abs=1e-9)


def test_cider_from_captions_is_that_of_coco_caption_with_java(coco_caption: Path, tmp_path: Path) -> None:
    candidates, references = captions_of_images(seed=2, images=700)
    cut = cut_by_the_jar(
        [*candidates, *(text for captions in references for text in captions)], coco_caption, tmp_path
    )
    grouped = [cut[700 + 5 * n : 705 + 5 * n] for n in range(700)]
    mean, _ = scores_by_pycocoevalcap(cut[:700], grouped, coco_caption)
    ours = cider_d(candidates, references)
    print(f"ours {sum(ours) / 700:.6f}, coco-caption {mean:.6f}")
    assert sum(ours) / 700 == pytest.approx(mean, abs=1e-6)
