"""From official files to samples: `owl2 data convert`.

    recipe ─► jobs (some thousand rows, or a shard) ─► processes check images and turns ─► files ─► one file

A job writes its file whole, with its result next to it, so a conversion that was stopped goes on where it
was. Files are joined in order: the output is the same for any number of processes. What cannot be used is
counted by reason and listed in `NAME.bad.jsonl`. Several machines convert a share of the jobs each, and
`join` makes of them what one machine would have made. `pretrain.yaml` and `instruct.yaml` have a stage's
converted corpora with their shares of the draws, ready for training.
"""

import hashlib
import json
import multiprocessing
import shutil
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Protocol, cast

import yaml

from owl2.data.readers.rows import IMAGE_MARKS
from owl2.data.recipes.img2dataset import ShardDamaged, ShardRecipe, check_image, convert_shard
from owl2.data.recipes.recipe import ConversationRecipe, Recipe, Rejected, Row, all_recipes
from owl2.data.recipes.wording import IMAGE
from owl2.data.sample import DataError
from owl2.files import write_file

ROWS_PER_JOB = 2000
DAMAGED = "shard is damaged"


@dataclass(frozen=True)
class JobResult:
    """What a job wrote and left out."""

    fingerprint: str
    """Of what the job read; a job whose fingerprint is still the same is not run again."""
    num_samples: int
    rejected: list[Rejected] = field(default_factory=list)
    num_not_fetched: int = 0
    """Addresses of a web corpus that img2dataset could not fetch."""


@dataclass(frozen=True)
class Report:
    """A converted corpus; `NAME.report.json`."""

    name: str
    title: str
    stage: str
    path: str
    image_root: str | None
    weight: float
    augment: str
    num_samples: int
    num_bad: int
    bad: dict[str, int]
    """By reason."""
    num_not_fetched: int


@dataclass(frozen=True)
class Share:
    """Every `count`-th job from the `number`-th on, counted from 1: what one machine of several converts."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


class Job(Protocol):
    """The conversion of a part of a corpus; picklable."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def out(self) -> Path: ...

    @property
    def result(self) -> Path: ...

    def run(self) -> JobResult: ...


@dataclass(frozen=True)
class RowsJob:
    """Check rows and write the good ones as lines."""

    number: int
    rows: list[Row | Rejected]
    image_root: Path
    folder: Path

    @property
    def fingerprint(self) -> str:
        rows = [asdict(row) if isinstance(row, Rejected) else row for row in self.rows]
        return hashlib.sha256(json.dumps([str(self.image_root), rows]).encode()).hexdigest()

    @property
    def out(self) -> Path:
        return self.folder / f"{self.number:06d}.jsonl"

    @property
    def result(self) -> Path:
        return self.folder / f"{self.number:06d}.result.json"

    def run(self) -> JobResult:
        lines, rejected = [], []
        for given in self.rows:
            row, lost = (given, []) if isinstance(given, Rejected) else without_blank_answers(given)
            rejected += lost
            problem = row if isinstance(row, Rejected) else check_row(row, self.image_root)
            if problem is None:
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
            else:
                rejected.append(problem)
        write_file(self.out, "".join(lines).encode())
        return JobResult(self.fingerprint, len(lines), rejected)


@dataclass(frozen=True)
class ShardJob:
    """Link or rewrite a shard."""

    shard: Path
    out: Path
    result: Path

    @property
    def fingerprint(self) -> str:
        paths = [path for path in (self.shard, self.shard.with_suffix(".parquet")) if path.exists()]
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        return hashlib.sha256(repr(stats).encode()).hexdigest()

    def run(self) -> JobResult:
        fingerprint = self.fingerprint
        try:
            num_samples, rejected, num_not_fetched = convert_shard(self.shard, self.out)
        except ShardDamaged as error:
            self.out.unlink(missing_ok=True)
            return JobResult(fingerprint, 0, [Rejected(self.shard.name, DAMAGED, str(error))])
        rejected = [Rejected(f"{self.shard.stem}/{r.key}", r.reason, r.detail) for r in rejected]
        return JobResult(fingerprint, num_samples, rejected, num_not_fetched)


OnPart = Callable[[JobResult, int | None], None]
"""Called after each job with its result and the number of all jobs, if that is known."""


def convert(
    recipe: Recipe,
    source: Path,
    out: Path,
    *,
    workers: int = 1,
    on_part: OnPart = lambda result, num_jobs: None,
) -> Report:
    """Convert a corpus to `out/NAME.jsonl` or a folder `out/NAME` of shards.

    Raises:
        FilesMissing: official files are missing.
        DataError: a file cannot be read as its official format, or no sample could be used.
    """
    recipe = recipe.at(source)
    results = list(_run(recipe, source, out, Share(1, 1), None, workers, on_part))
    return _finish(recipe, source, out, results)


def convert_share(
    recipe: Recipe,
    source: Path,
    out: Path,
    share: Share,
    *,
    workers: int = 1,
    on_part: OnPart = lambda result, num_jobs: None,
) -> None:
    """Convert a share of a corpus into parts, which `join` puts together; run again, it goes on.

    Raises:
        FilesMissing, DataError: as `convert`.
    """
    recipe, plan = recipe.at(source), dict[str, str]()
    for _ in _run(recipe, source, out, share, plan, workers, on_part):
        pass
    record = {"share": str(share), "parts": plan}
    write_file(
        _folder(recipe, out) / f"share-{share.number}-of-{share.count}.json", json.dumps(record).encode()
    )


def join(recipe: Recipe, source: Path, out: Path) -> Report:
    """Put the parts of all shares together: the files are those of `convert`, byte for byte.

    Raises:
        DataError: a part is missing, or was made from other files than the rest; names its share.
    """
    recipe = recipe.at(source)
    folder = _folder(recipe, out)
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("share-*.json"))]
    if not records:
        raise DataError(
            f"{recipe.name}: no share has been converted into {out}; run it with --shard 1/N to N/N"
        )
    first = records[0]
    for record in records[1:]:
        if record["parts"] != first["parts"]:
            raise DataError(
                f"{recipe.name}: the shares {first['share']} and {record['share']} were made from different "
                f"files in {source}; run all shares again on the same ones"
            )
    count = int(first["share"].partition("/")[2])
    results, missing = [], []
    for number, (name, fingerprint) in enumerate(first["parts"].items()):
        part = name.partition(".")[0]
        made = (
            out / recipe.name / f"{part}.tar" if isinstance(recipe, ShardRecipe) else folder / f"{part}.jsonl"
        )
        result = _read_result(folder / name, made)
        if result is None or not result.fingerprint.startswith(fingerprint):
            missing.append((part, f"{number % count + 1}/{count}"))
        else:
            results.append(result)
    if missing:
        shares = sorted({share for _, share in missing}, key=lambda share: int(share.partition("/")[0]))
        raise DataError(
            f"{recipe.name}: {len(missing):,} of {len(first['parts']):,} parts are missing, the first "
            f"{missing[0][0]}; run --shard {', '.join(shares)} again"
        )
    return _finish(recipe, source, out, results)


def _folder(recipe: Recipe, out: Path) -> Path:
    """Where the parts of a corpus are until they are joined."""
    return out / f".{recipe.name}.parts"


def _run(
    recipe: Recipe,
    source: Path,
    out: Path,
    share: Share,
    plan: dict[str, str] | None,
    workers: int,
    on_part: OnPart,
) -> Iterator[JobResult]:
    """Run a share of the jobs; `plan` gets the name of every job's result and the job's fingerprint."""
    folder = _folder(recipe, out)
    folder.mkdir(parents=True, exist_ok=True)

    def jobs() -> Iterator[Job]:
        for number, job in enumerate(make_jobs(recipe, source, out, folder)):
            if plan is not None:
                plan[job.result.name] = job.fingerprint[:16]
            if number % share.count == share.number - 1:
                yield job

    num_jobs = None
    if isinstance(recipe, ShardRecipe):
        num_jobs = len(recipe.shards(source)[share.number - 1 :: share.count])
    for result in run_jobs(jobs(), workers):
        on_part(result, num_jobs)
        yield result


def _finish(recipe: Recipe, source: Path, out: Path, results: Sequence[JobResult]) -> Report:
    """Write the files of a corpus from the results of all its jobs."""
    folder, is_shards = _folder(recipe, out), isinstance(recipe, ShardRecipe)
    num_samples = sum(result.num_samples for result in results)
    rejected = [problem for result in results for problem in result.rejected]
    bad = [json.dumps({"source": recipe.name, **asdict(problem)}) + "\n" for problem in rejected]
    write_file(out / f"{recipe.name}.bad.jsonl", "".join(bad).encode())
    if not num_samples:
        raise DataError(
            f"{recipe.name}: none of {len(rejected):,} records could be used; the first: "
            f"{rejected[0] if rejected else 'there are none'}. All are in {out / recipe.name}.bad.jsonl"
        )
    if not is_shards:
        join_files([folder / f"{n:06d}.jsonl" for n in range(len(results))], out / f"{recipe.name}.jsonl")
    report = Report(
        name=recipe.name,
        title=recipe.title,
        stage=recipe.stage,
        path=recipe.name if is_shards else f"{recipe.name}.jsonl",
        image_root=None if is_shards else str(source),
        weight=recipe.weight,
        augment=recipe.augment,
        num_samples=num_samples,
        num_bad=len(rejected),
        bad=dict(Counter(problem.reason for problem in rejected).most_common()),
        num_not_fetched=sum(result.num_not_fetched for result in results),
    )
    write_file(out / f"{recipe.name}.report.json", (json.dumps(asdict(report), indent=1) + "\n").encode())
    write_mixture(out, recipe.stage)
    if not is_shards:
        shutil.rmtree(folder)
    return report


def make_jobs(recipe: Recipe, source: Path, out: Path, folder: Path) -> Iterator[Job]:
    """Cut a corpus into jobs, reading its official files."""
    if isinstance(recipe, ShardRecipe):
        shards = recipe.shards(source)
        (out / recipe.name).mkdir(exist_ok=True)
        others = {path.name for path in (out / recipe.name).glob("*.tar")} - {path.name for path in shards}
        if others:
            raise DataError(
                f"{recipe.name}: {out / recipe.name} has {len(others)} shard(s) that {source} has not "
                f"({min(others)}); remove them or convert into another folder"
            )
        for shard in shards:
            yield ShardJob(shard, out / recipe.name / shard.name, folder / f"{shard.stem}.result.json")
        return
    rows = cast(ConversationRecipe, recipe).rows(recipe.find(source))
    number = 0
    while some := list(islice(rows, ROWS_PER_JOB)):
        yield RowsJob(number, some, source, folder)
        number += 1


def run_jobs(jobs: Iterable[Job], workers: int) -> Iterator[JobResult]:
    """Run jobs in `workers` processes and yield their results in order; few are in memory at once."""
    jobs = iter(jobs)
    first = list(islice(jobs, 2))
    if workers == 1 or len(first) < 2:
        yield from map(run_job, chain(first, jobs))
        return
    # Forked from a server that has imported everything once, not from this process: the progress display has
    # a thread, and a fork would copy its locks in whatever state they are.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        running: deque[Future[JobResult]] = deque()
        try:
            for job in chain(first, jobs):
                running.append(pool.submit(run_job, job))
                if len(running) > 2 * workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def run_job(job: Job) -> JobResult:
    """Run a job, or return the result of an earlier run; a damaged shard is tried again."""
    done = _read_result(job.result, job.out)
    if done is not None and done.fingerprint == job.fingerprint and not _is_damaged(done):
        return done
    result = job.run()
    write_file(job.result, json.dumps(asdict(result)).encode())
    return result


def without_blank_answers(row: Row) -> tuple[Row, list[Rejected]]:
    """Return the row without the questions whose answers are blank, and these; as it is if all are.

    The mark of an image that is lost with one of them goes to the first question that is left.
    """
    turns = row["conversations"]
    pairs = [turns[n : n + 2] for n in range(0, len(turns), 2)]
    kept = [pair for pair in pairs if len(pair) < 2 or str(pair[1]["value"]).strip()]
    if not kept or len(kept) == len(pairs):
        return row, []
    (question, *answer), *others = kept
    is_marked = any(mark in str(pair[0]["value"]) for pair in kept for mark in IMAGE_MARKS)
    if "image" in row and not is_marked:
        question = {**question, "value": f"{IMAGE}\n{question['value']}"}
    details = [f"question {n} of {len(pairs)}" for n, pair in enumerate(pairs, start=1) if pair not in kept]
    lost = [Rejected(row["id"], "an answer is blank", detail) for detail in details]
    turns = [question, *answer, *(turn for pair in others for turn in pair)]
    return {**row, "conversations": turns}, lost


def check_row(row: Row, image_root: Path) -> Rejected | None:
    """Return why a row cannot be trained on: turns, marks, text or image; None if it can."""
    key, turns = row["id"], row["conversations"]
    marks = 0
    for number, turn in enumerate(turns):
        if turn["from"] != ("human", "gpt")[number % 2]:
            return Rejected(key, "turns do not alternate", f"turn {number + 1} is from {turn['from']!r}")
        if not isinstance(turn["value"], str):
            return Rejected(key, "text is no text", f"turn {number + 1} is {turn['value']!r:.40}")
        if not turn["value"].strip():
            return Rejected(key, "a turn is blank", f"turn {number + 1} of {len(turns)}")
        if any("\ud800" <= character <= "\udfff" for character in turn["value"]):
            return Rejected(key, "text is not UTF-8", f"turn {number + 1}")
        marks += sum(turn["value"].count(mark) for mark in IMAGE_MARKS)
    if not turns or len(turns) % 2:
        return Rejected(key, "no question with an answer", f"{len(turns)} turns")
    if marks != ("image" in row):
        return Rejected(key, "the text holds an image mark", f"{marks} marks, {int('image' in row)} images")
    problem = check_image(image_root / row["image"]) if "image" in row else None
    return problem and Rejected(key, *problem)


def write_mixture(out: Path, stage: str) -> None:
    """Write `STAGE.yaml`: the corpora of a stage that were converted into `out`, with their weights.

    As a second configuration it replaces `data.sources` of the stage's own.
    """
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in out.glob("*.report.json")]
    order = {name: number for number, name in enumerate(all_recipes())}
    sources = []
    for report in sorted(reports, key=lambda report: (order.get(report["name"], len(order)), report["name"])):
        if report["stage"] != stage:
            continue
        source = {"name": report["name"], "path": str(out / report["path"]), "weight": report["weight"]}
        source |= {"image_root": report["image_root"]} if report["image_root"] else {}
        source |= {"augment": report["augment"]} if report["augment"] != "none" else {}
        sources.append(source)
    text = f"# `owl2 train {stage} --config THIS_FILE` trains on these.\n"
    text += yaml.safe_dump({"data": {"sources": sources}}, sort_keys=False)
    write_file(out / f"{stage}.yaml", text.encode())


def join_files(paths: Iterable[Path], out: Path) -> None:
    """Write the bytes of several files to one, whole or not at all."""
    temporary = out.with_name(out.name + ".tmp")
    with temporary.open("wb") as file:
        for path in paths:
            with path.open("rb") as data:
                shutil.copyfileobj(data, file)
    temporary.replace(out)


def _read_result(path: Path, made: Path) -> JobResult | None:
    """Return the result of a job that ran, and whose file is there."""
    if not path.exists():
        return None
    raw = json.loads(path.read_text(encoding="utf-8"))
    result = JobResult(**{**raw, "rejected": [Rejected(**problem) for problem in raw["rejected"]]})
    return result if made.exists() or not result.num_samples else None


def _is_damaged(result: JobResult) -> bool:
    return any(problem.reason == DAMAGED for problem in result.rejected)
