"""Tasks, recipes and sources from outside: by `--include`, as an installed package, through every command."""

import json
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from owl2 import registry
from owl2.__main__ import main
from owl2.data.readers.sources import SOURCES
from owl2.data.recipes.recipe import RECIPES, all_recipes, find_recipes
from owl2.eval.metrics.named import METRICS
from owl2.eval.task import TASKS, all_tasks
from owl2.registry import RegistryError, include

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own_benchmark"
TASK = EXAMPLE / "owl2_dots" / "task.py"
RECIPE = EXAMPLE / "owl2_dots" / "recipe.py"


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test makes known is forgotten."""
    tables = (TASKS, RECIPES, SOURCES, METRICS)
    known = [table.all() for table in tables]
    modules, path = set(sys.modules), list(sys.path)
    yield
    for table, classes in zip(tables, known, strict=True):
        monkeypatch.setattr(table, "_classes", classes)
    monkeypatch.undo()
    for table, classes in zip(tables, known, strict=True):
        table._classes = classes
    for name in set(sys.modules) - modules:
        if not name.startswith("owl2."):
            del sys.modules[name]
    sys.path[:] = path
    registry._load_entry_points.cache_clear()


@pytest.fixture
def dots(tmp_path: Path) -> Path:
    """The drawings of the example."""
    subprocess.run([sys.executable, EXAMPLE / "owl2_dots" / "draw.py", tmp_path / "data"], check=True)
    return tmp_path / "data"


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def forget() -> None:
    """As in a new process."""
    for table in (TASKS, RECIPES, SOURCES, METRICS):
        table._classes = {
            name: cls for name, cls in table._classes.items() if cls.__module__.startswith("owl2.")
        }
    for name in [name for name in sys.modules if name.startswith(("task", "recipe", "mine"))]:
        del sys.modules[name]
    registry._load_entry_points.cache_clear()


def test_an_included_benchmark_is_run_and_its_folder_reports_by_itself(
    checkpoint: Path, dots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = Path(shutil.copy(TASK, tmp_path / "mine.py"))
    for template, out in (("short", tmp_path / "short"), ("bare", tmp_path / "bare")):
        asked = ["--tasks", "dots", "--data", str(dots), "--template", template, "--include", str(mine)]
        main(["eval", "run", str(checkpoint), *asked, "--out", str(out)])
        forget()
    assert "accuracy" in capsys.readouterr().out
    for command in ("score", "report", "export"):
        main(["eval", command, str(tmp_path / "short")])
        forget()
    main(["eval", "compare", str(tmp_path / "short"), str(tmp_path / "bare")])
    assert "| Dots | accuracy |" in capsys.readouterr().out
    forget()
    mine.write_text(mine.read_text() + "\n# another reading\n")
    with pytest.warns(registry.Owl2Warning, match=r"task dots: .*mine.py differs from the file that .*short"):
        main(["eval", "score", str(tmp_path / "short")])
    forget()
    mine.rename(tmp_path / "moved.py")
    with pytest.raises(SystemExit):
        main(["eval", "report", str(tmp_path / "short")])
    assert re.search(r"made with the task 'dots' of .*mine.py, which does not exist", capsys.readouterr().err)
    with pytest.warns(registry.Owl2Warning, match="moved.py differs"):
        main(["eval", "report", str(tmp_path / "short"), "--include", str(tmp_path / "moved.py")])


def test_an_included_benchmark_is_listed_with_its_files(
    dots: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["eval", "data", "--data", str(dots), "--tasks", "dots", "--include", str(TASK)])
    assert "dots/test.json" in capsys.readouterr().out


def test_an_included_recipe_is_converted_inspected_and_does_not_join_the_papers_mixture(
    dots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    papers = [recipe.name for recipe in find_recipes("pretrain,instruct")]
    out = tmp_path / "out"
    words = ["--source", str(dots), "--out", str(out), "--workers", "2", f"--include={RECIPE}"]
    main(["data", "convert", "dots", *words])
    assert len((out / "dots.jsonl").read_text().splitlines()) == 12
    assert "dots" in (out / "instruct.yaml").read_text()
    assert "dots" in all_recipes()
    assert [recipe.name for recipe in find_recipes("pretrain,instruct")] == papers
    capsys.readouterr()
    main(["data", "list"])
    shown = capsys.readouterr().out
    assert "12 questions on 12 images; not in the paper's mixture" in shown
    assert "5.9% of the samples" in shown, "GQA's share of Table 14"
    page = tmp_path / "inspect.html"
    main(["data", "inspect", str(out / "dots.jsonl"), "--image_root", str(dots), "--out", str(page)])
    assert "dots" in page.read_text()


PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_the_task_the_recipe_and_the_metric_of_the_documentation_work_as_they_are(
    checkpoint: Path, dots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = PYTHON.findall((ROOT / "docs" / "extending.md").read_text())
    files = [written(tmp_path / f"mine_{number}.py", block) for number, block in enumerate(blocks)]
    included = [word for file in files for word in ("--include", str(file))]
    asked = ["eval", "run", str(checkpoint)]
    main([*asked, "--tasks", "dots", "--data", str(dots), "--out", str(tmp_path / "run"), *included])
    main(["data", "convert", "dots", "--source", str(dots), "--out", str(tmp_path / "out"), *included])
    assert len((tmp_path / "out" / "dots.jsonl").read_text().splitlines()) == 12
    own = written(tmp_path / "own.jsonl", json.dumps({"question": "What?", "answer": "an owl"}))
    main([*asked, "--questions", str(own), "--metric", "half", "--out", str(tmp_path / "own"), *included])
    forget()
    main(["eval", "report", str(tmp_path / "own")])
    assert "first or second word" in capsys.readouterr().out
    forget()
    files[-1].unlink()
    with pytest.raises(SystemExit):
        main(["eval", "report", str(tmp_path / "own")])
    assert "made with the metric 'half' of" in capsys.readouterr().err


def test_a_task_from_outside_that_fails_costs_itself(
    checkpoint: Path, dots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = TASK.read_text().replace("found = self.find(data)", 'found = {}["nothing"]')
    bad = written(tmp_path / "mine_bad.py", text.replace('name = "dots"', 'name = "bad"'))
    line = 1 + text[: text.index('{}["nothing"]')].count("\n")
    asked = [
        "--data",
        str(dots),
        "--include",
        str(TASK),
        "--include",
        str(bad),
        "--out",
        str(tmp_path / "out"),
    ]
    with pytest.raises(SystemExit) as stopped:
        main(["eval", "run", str(checkpoint), "--tasks", "dots,bad", *asked])
    assert stopped.value.code == 1
    said = capsys.readouterr()
    assert "Dots" in said.out
    assert f"bad was not run: {bad}, line {line}: KeyError: 'nothing'" in said.err
    forget()
    worse = written(tmp_path / "worse.py", TASK.read_text().replace("is_right(answer)", "answer.nothing"))
    with pytest.warns(registry.Owl2Warning, match="differs"), pytest.raises(SystemExit):
        main(["eval", "score", str(tmp_path / "out"), "--include", str(worse)])
    assert re.search(r"worse.py, line \d+: AttributeError: ", capsys.readouterr().err)


def test_training_and_planning_include_files_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = written(tmp_path / "mine.py", "print('included')\n")
    main(["train", "tiny", "--print_config", "--include", str(mine)])
    assert capsys.readouterr().out.startswith("included\nrun: runs/tiny")


def test_a_file_may_import_those_next_to_it(tmp_path: Path) -> None:
    for file in (TASK, RECIPE):
        shutil.copy(file, tmp_path / f"dots_{file.name}")
    include(written(tmp_path / "mine.py", "import dots_task, dots_recipe\n"))
    assert TASKS.origin("dots")["file"] == str(tmp_path / "dots_task.py")
    assert "dots" in all_recipes()
    assert TASKS.origin("mme") == {}


def test_a_file_may_have_any_name_that_no_installed_module_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "here" / "my_task.py", "raise RuntimeError('another file of this name')\n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend("")
    for name in ("my_task.py", "my.other-task.py"):
        mine = written(tmp_path / "there" / name, TASK.read_text().replace('"dots"', f'"{name}"'))
        include(mine)
        include(mine)
        assert TASKS.origin(name)["file"] == str(mine)


def test_a_source_of_another_format_is_opened_by_its_suffix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = written(
        tmp_path / "mine.py",
        """
        from pathlib import Path
        from owl2.data.readers.base import Source
        from owl2.data.readers.sources import source
        from owl2.data.sample import Sample

        @source
        class Lines(Source):
            suffix = ".qa"

            def __init__(self, name, path, image_root, *, in_slices=False):
                self.name, self.in_slices = name, in_slices
                self.lines = Path(path).read_text().splitlines()

            def __len__(self):
                return len(self.lines)

            def __getitem__(self, index):
                self._check(index)
                question, answer = self.lines[index].split("|")
                turns = [("user", question), ("assistant", answer)]
                return Sample(self.name, str(index), [{"role": r, "content": text} for r, text in turns])

            def fingerprint(self):
                return "0" * 64
        """,
    )
    rows = written(tmp_path / "some.qa", "What?|An owl.\nWhere?|In a tree.\n")
    main(["data", "inspect", str(rows), "--include", str(mine), "--out", str(tmp_path / "page.html")])
    assert re.search(r"2 +of them opened", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("nothing.py", None, "nothing.py: does not exist"),
        ("mine.txt", "", "mine.txt: not a .py file"),
        ("json.py", "", "json.py: the name 'json' is taken by .*json.*; give the file another name"),
        ("this.py", "", "this.py: the name 'this' is taken by Python's this"),
        ("shtab.py", "", "shtab.py: the name 'shtab' is taken by .*site-packages"),
        ("mine.py", "x = 1\nimport owl2.eval.averages\n", "mine.py, line 2: ModuleNotFoundError: .*averages"),
        ("mine.py", "\ndef f(:\n", "mine.py, line 2: SyntaxError"),
        ("mine.py", "import sys\nsys.exit(3)\n", "mine.py, line 2: SystemExit: 3"),
        (
            "mine.py",
            "from owl2.eval.task import Task, task\n@task\nclass Mine(Task):\n    name = 'mine'\n",
            "mine.py, line 2: task Mine of .*mine.py lacks parse, read, score, title, files, templates",
        ),
        (
            "mine.py",
            TASK.read_text().replace('name = "dots"', 'name = "mme"'),
            "two tasks are called 'mme': Mme of .*owl2/eval/tasks/mme.py and Dots of .*mine.py",
        ),
    ],
)
def test_a_file_that_cannot_be_included_is_an_error_of_one_line(
    name: str, text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as stopped:
        main(["eval", "data", "--include", str(tmp_path / name)])
    error = capsys.readouterr().err
    assert stopped.value.code == 1
    assert re.search(message, error), error
    assert error.count("\n") == 1


def test_a_class_may_be_defined_again_by_the_same_file_only(tmp_path: Path) -> None:
    first = Path(shutil.copy(TASK, tmp_path / "mine.py"))
    include(first)
    old = all_tasks()["dots"]
    del sys.modules["mine"]
    include(first)
    assert all_tasks()["dots"] is not old
    with pytest.raises(RegistryError, match=r"two tasks are called 'dots': .*mine.py and .*other.py"):
        include(Path(shutil.copy(TASK, tmp_path / "other.py")))


def distribution(folder: Path, package: str, text: str, entry_points: str) -> None:
    """A package as pip installs it."""
    written(folder / f"{package}.py", text)
    info = folder / f"{package}-1.2.dist-info"
    written(info / "METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    written(info / "entry_points.txt", entry_points)


def test_a_broken_package_costs_itself_and_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    distribution(tmp_path, "broken", "import nothing_like_it\n", "[owl2.tasks]\nx = broken\n")
    taken = TASK.read_text().replace('"dots"', '"mme"')
    distribution(tmp_path, "second_mme", taken, "[owl2.tasks]\nmme = second_mme\n")
    distribution(tmp_path, "fine", TASK.read_text(), "[owl2.tasks]\ndots = fine\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry._load_entry_points.cache_clear()
    assert {"dots", "mme"} <= set(all_tasks())
    assert set(all_tasks()) == set(all_tasks())
    said = sorted(str(warning.message) for warning in recwarn)
    assert len(said) == 2
    assert said[0].startswith(
        "the installed package broken 1.2 is left out: its entry point 'x' of owl2.tasks"
    )
    assert "two tasks are called 'mme'" in said[1]
    assert TASKS.origin("dots")["package"] == "fine 1.2"


@pytest.mark.slow
def test_the_example_package_is_installed_run_reported_and_missed(
    checkpoint: Path, dots: Path, tmp_path: Path
) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(EXAMPLE, source)
    quiet = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check", "--no-build-isolation")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *quiet, "--target", str(site), str(source)], check=True
    )

    def owl2(*words: str, path: str = f"{ROOT}:{site}") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "owl2", *words]
        return subprocess.run(
            command, cwd=tmp_path, env={"PYTHONPATH": path, "PATH": ""}, capture_output=True, text=True
        )

    done = owl2("eval", "run", str(checkpoint), "--tasks", "dots", "--data", "data", "--out", "run")
    assert "Dots" in done.stdout, done.stderr
    assert "Dots" in owl2("eval", "report", "run").stdout
    converted = owl2("data", "convert", "dots", "--source", "data", "--out", "converted")
    assert converted.returncode == 0, converted.stderr
    head = json.loads(next((tmp_path / "run/predictions").glob("*.jsonl")).read_text().splitlines()[0])
    assert head["config"]["origin"]["package"] == "owl2-dots 1.0"
    missed = owl2("eval", "report", "run", path=str(ROOT))
    assert missed.returncode == 1
    assert "made with the task 'dots' of the package owl2-dots 1.0, which is not installed" in missed.stderr
