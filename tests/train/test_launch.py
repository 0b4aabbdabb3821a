"""The documented ways to start a run on many processes do start it, stop it and go on."""

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from owl2.cli.train import read_config
from owl2.train.config import TrainConfig, config_to_dict
from owl2.train.metrics import read_metrics
from owl2.train.signals import EXIT_STOPPED
from owl2.train.state.state import saved_states
from tests.train.ranks import TIMEOUT_S
from tests.train.splits import Reference, assert_equal_runs, split
from tests.train.test_torchrun import ROOT, torchrun

LAUNCH = ROOT / "owl2/configs/launch"
DOCUMENTED = [*LAUNCH.iterdir(), *(ROOT / f"docs/{name}.md" for name in ("parallel", "training", "cluster"))]

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
echo "$@" | grep -q 'python -m owl2 train' || exit 9
pids=()
for number in $(seq 0 $((SLURM_NTASKS - 1))); do
  SLURM_PROCID=$number SLURM_LOCALID=$number "$@" & pids+=($!)
done
echo "${pids[0]}" > "$LOG/pid"
highest=0
for pid in "${pids[@]}"; do wait "$pid"; code=$?; [ $code -gt $highest ] && highest=$code; done
exit $highest
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; echo other-node; else echo "$@" >> "$LOG/requeued"; fi
"""


def job_number() -> int:
    """A number of a job whose port, which the file for Slurm makes of it, is free."""
    for number in range(os.getpid() % 10_000, 20_000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", 20_000 + number))
            return number
    pytest.fail("no port from 20,000 to 39,999 is free")


def wait_until(happened: Callable[[], bool], job: subprocess.Popen[bytes], what: str) -> None:
    """Return once something has happened while the job runs; the limit is for a job that hangs."""
    begun = time.monotonic()
    while not happened():
        assert job.poll() is None, f"the job ended with {job.returncode} before {what}"
        assert time.monotonic() < begun + TIMEOUT_S, f"{what} is not there after {TIMEOUT_S} s"
        time.sleep(0.2)


@contextmanager
def started(job: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A job that leaves no process behind, however the test ends."""
    with subprocess.Popen(job, cwd=ROOT, env=environment, start_new_session=True) as running:
        try:
            yield running
        finally:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)


def write_stage(config: TrainConfig, path: Path) -> str:
    path.write_text(yaml.safe_dump(config_to_dict(config)))
    return str(path)


def torchrun_lines() -> list[str]:
    """Every torchrun command that is written down, each as one line."""
    commands = []
    for path in DOCUMENTED:
        text = re.sub(r"\\\n\s*", "", path.read_text())
        commands += re.findall(r"torchrun (--.*-m .*)", text)
    return list(dict.fromkeys(commands))


def test_torchrun_reads_every_documented_line_as_it_is_meant_and_the_batch_adds_up() -> None:
    lines = torchrun_lines()
    assert len(lines) >= 4
    for line in lines:
        line = re.sub(r'"\$\(.*?\)[^"]*"', "HOST", line)
        words = [word.strip('"') for word in line.split()]
        options = get_args_parser().parse_args([re.sub(r"^\$SKYPILOT_N.*", "2", word) for word in words])
        assert options.module, line
        assert options.training_script == "owl2", line
        command, stage, *overrides = options.training_script_args
        assert command == "train", line
        if "$" not in stage:
            processes = int(options.nnodes.split(":")[-1]) * int(options.nproc_per_node)
            read_config([stage, *overrides]).check(processes)


def test_two_dashes_keep_torchrun_from_taking_our_flags_for_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours = ["owl2", "train", "stage.yaml", "--run", "elsewhere"]
    with pytest.raises(SystemExit):
        get_args_parser().parse_args(["-m", *ours])
    assert "--run could match --run-path" in capsys.readouterr().err
    assert get_args_parser().parse_args(["-m", "--", *ours]).training_script_args == ours[1:]


@pytest.mark.slow
def test_the_documented_line_for_one_node_trains_into_the_run_it_is_given(
    reference: Reference, tmp_path: Path
) -> None:
    whole = reference("stage 2")
    stage = write_stage(split(whole, tmp_path / "other", 2), tmp_path / "stage.yaml")
    done = torchrun("-m", "--", "owl2", "train", stage, "--run", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "other").exists()
    assert_equal_runs(dataclasses.replace(whole, run=tmp_path / "run"), whole)


@pytest.mark.slow
def test_the_slurm_file_stops_with_75_queues_again_and_goes_on(reference: Reference, tmp_path: Path) -> None:
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    config = dataclasses.replace(split(reference("stage 2"), tmp_path / "run", 2), steps=500)
    number = job_number()
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "LOG": str(tmp_path),
        "SLURM_JOB_ID": str(number),
        "SLURM_JOB_NODELIST": "node[0-1]",
        "SLURM_NTASKS": "2",
    }
    stage = write_stage(config, tmp_path / "stage.yaml")
    job = ["bash", str(LAUNCH / "slurm.sbatch"), stage]
    with started(job, environment) as running:
        wait_until(lambda: len(read_metrics(config.run)) >= 2, running, "a second step")
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGUSR1)
        assert running.wait(TIMEOUT_S) == EXIT_STOPPED
    assert (tmp_path / "requeued").read_text() == f"requeue {number}\n"
    (newest,) = saved_states(config.run)
    done = int(newest.name.removeprefix("step-"))
    with started([*job, "--steps", str(done + 1)], environment) as again:
        assert again.wait(TIMEOUT_S) == 0
    assert [row["step"] for row in read_metrics(config.run)] == list(range(1, done + 2))
    assert (config.run / "checkpoint").exists()
    assert (tmp_path / "requeued").read_text().count("requeue") == 1


def test_the_launch_files_start_shipped_stages_whose_batch_adds_up() -> None:
    sky = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    gpus = sky["num_nodes"] * int(sky["resources"]["accelerators"].split(":")[1])
    options = ["--accumulation", str(sky["envs"]["ACCUMULATION"])]
    read_config([sky["envs"]["STAGE"], *options]).check(gpus)
    slurm = (LAUNCH / "slurm.sbatch").read_text()
    nodes, tasks = (
        int(re.findall(rf"#SBATCH --{name} (\d+)", slurm)[0]) for name in ("nodes", "ntasks-per-node")
    )
    (line,) = re.findall(r"sbatch slurm.sbatch (.*)", slurm)
    stage, *options = line.split()
    read_config([stage, *options]).check(nodes * tasks)
    job = kubernetes_job()
    container = job["template"]["spec"]["containers"][0]
    values = {variable["name"]: variable["value"] for variable in container["env"]}
    assert job["completions"] == job["parallelism"] == int(values["NODES"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(values["GPUS"])
    options = ["--accumulation", values["ACCUMULATION"]]
    read_config([values["STAGE"], *options]).check(int(values["NODES"]) * int(values["GPUS"]))


def kubernetes_job() -> dict[str, Any]:
    """What the Job of the file for Kubernetes is to be; the Service gives its pods the names that it uses."""
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    return job["spec"]


def test_kubernetes_starts_a_stopped_run_again_and_not_one_with_a_wrong_option() -> None:
    rules = kubernetes_job()["podFailurePolicy"]["rules"]
    ignored = [
        rule["onExitCodes"]["values"]
        for rule in rules
        if rule["action"] == "Ignore" and "onExitCodes" in rule
    ]
    assert ignored == [[EXIT_STOPPED, 128 + signal.SIGTERM]]
    assert [rule["onExitCodes"]["values"] for rule in rules if rule["action"] == "FailJob"] == [[2]]


@pytest.mark.slow
def test_the_command_of_a_pod_passes_a_signal_on_ends_with_75_and_goes_on(
    reference: Reference, tmp_path: Path
) -> None:
    container = kubernetes_job()["template"]["spec"]["containers"][0]
    config = dataclasses.replace(split(reference("stage 2"), tmp_path / "run", 2), steps=500)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "STAGE": write_stage(config, tmp_path / "stage.yaml"),
        "ACCUMULATION": str(config.accumulation),
        **{"NODES": "1", "GPUS": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        "JOB_COMPLETION_INDEX": "0",
    }
    command = [*container["command"], *container["args"]]
    with started(command, environment) as pod:
        wait_until(lambda: len(read_metrics(config.run)) >= 2, pod, "a second step")
        pod.send_signal(signal.SIGTERM)
        assert pod.wait(TIMEOUT_S) == EXIT_STOPPED
    (newest,) = saved_states(config.run)
    done = int(newest.name.removeprefix("step-"))
    write_stage(dataclasses.replace(config, steps=done + 1), tmp_path / "stage.yaml")
    with started(command, environment) as again:
        assert again.wait(TIMEOUT_S) == 0
    assert [row["step"] for row in read_metrics(config.run)] == list(range(1, done + 2))


def test_the_container_has_the_extras_and_files_of_the_package_and_names_no_index() -> None:
    text = (ROOT / "Dockerfile").read_text()
    extras = re.findall(r"^ARG EXTRAS=(.*)$", text, re.MULTILINE)[0].split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras) <= project["optional-dependencies"].keys()
    assert "http" not in text.replace(",http,", "")
    assert f"torch=={re.findall('ARG TORCH=(.*)', text)[0]}" in (ROOT / "Makefile").read_text()
    used = set(re.findall(r"\$\{?(\w+)", text)) | {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"}
    assert set(re.findall(r"^ARG (\w+)", text, re.MULTILINE)) == used
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored
