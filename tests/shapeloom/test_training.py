"""The training loop: accumulated parts are one step, bad batches are skipped, bad settings refused."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from shapeloom import distributed
from shapeloom.config import UserError
from shapeloom.joining import launcher_variables
from shapeloom.loading import by_processes
from shapeloom.runs import Run
from shapeloom.training import TrainConfig, choose_bf16, learning_rate
from shapeloom.training_loop import Loop
from shapeloom.watch import EXIT_AGAIN
from tests.shapeloom.line_training import Line, read_losses, run_line


@pytest.mark.parametrize("settings", [{}, {"optimizer": "muon"}, {"accumulation": 2}, {"zero_stage": 2}])
def test_the_loss_falls(tmp_path: Path, settings: dict) -> None:
    losses = run_line(tmp_path, learning_rate=1e-2, warmup_steps=0, steps=60, **settings)
    assert losses[-1] < 0.05 * losses[0]


def test_speed_and_memory_are_logged_beside_the_loss(tmp_path: Path) -> None:
    run_line(tmp_path, steps=4)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    peaks = [line["peak_memory_gb"] for line in lines]
    assert peaks == sorted(peaks)
    assert psutil.Process().memory_info().rss * 0.5e-9 < peaks[-1] < psutil.virtual_memory().total * 1e-9
    assert all(line["samples_per_second"] > 0 for line in lines)


class Numbered(Line):
    """Says a number whenever it is asked for pictures."""

    def pictures(self, model: nn.Module, step: int) -> dict[str, np.ndarray]:
        return {"held_out/score": np.array(0.5 * step)}


def test_numbers_of_held_out_samples_join_the_curves(tmp_path: Path) -> None:
    run_line(tmp_path, Numbered(), steps=4, picture_every=2, log_every=1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("held_out/score") for line in lines] == [None, 1, None, 2]
    assert all("train/loss" in line for line in lines)


def test_accumulated_parts_are_the_same_step(tmp_path: Path) -> None:
    whole = run_line(tmp_path / "a")
    parts = run_line(tmp_path / "b", accumulation=4)
    np.testing.assert_allclose(whole, parts, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_processes_that_make_batches_make_the_same_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = run_line(tmp_path / "one", accumulation=2)
    several = lambda make, steps, device: by_processes(make, steps, workers=2, pinned=False)  # noqa: E731
    monkeypatch.setattr("shapeloom.training_loop.made_ahead", several)
    assert run_line(tmp_path / "four", accumulation=2) == one


def test_a_step_asks_the_device_for_numbers_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    in_step = False
    step = Loop._step

    def noting(name: str) -> Callable:
        original = getattr(Tensor, name)

        def method(value: Tensor, *arguments: object) -> object:
            if in_step and sys._getframe(1).f_globals["__name__"] == "shapeloom.training_loop":
                asked.append(name)
            return original(value, *arguments)

        return method

    def within(*arguments: Any) -> float:
        nonlocal in_step
        in_step = True
        try:
            return step(*arguments)
        finally:
            in_step = False

    for name in ("__bool__", "__float__", "item", "tolist", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, noting(name))
    monkeypatch.setattr(Loop, "_step", within)
    run_line(tmp_path, accumulation=4, steps=6)
    assert asked == ["tolist"] * 6


def test_a_loss_that_stays_nan_stops_with_a_diagnosis(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not finite for 10 steps.*square nan"):
        run_line(tmp_path, Line(broken_from=40))


def test_single_bad_batches_are_skipped_and_the_sample_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    losses = run_line(tmp_path, BrokenSample(42))
    assert np.isfinite(losses).all()
    (warned,) = [line for line in caplog.messages if line.startswith("step")]
    assert warned.startswith("step 5: the loss is not finite")
    assert warned.endswith("Samples at fault: line 42")
    assert all(value.isfinite().all() for value in load_file(tmp_path / "weights.safetensors").values())


class BrokenSample(Line):
    """One sample is not a number."""

    def __init__(self, sample: int) -> None:
        super().__init__()
        self.sample = sample

    def batch(self, samples: Sequence[int]) -> dict[str, Tensor]:
        bad = torch.tensor([float("nan") if number == self.sample else 0.0 for number in samples])
        return {"x": super().batch(samples)["x"] + bad[:, None]}


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_bad_part_drops_its_whole_step(tmp_path: Path, zero_stage: int) -> None:
    # Step 5 holds samples 40 to 47, in two parts: whichever part is bad, nothing of the step remains.
    runs = [
        run_line(tmp_path / str(sample), BrokenSample(sample), accumulation=2, zero_stage=zero_stage)
        for sample in (40, 47)
    ]
    assert runs[0] == runs[1] and len(runs[0]) == 19
    assert (tmp_path / "40" / "weights.safetensors").read_bytes() == (
        tmp_path / "47" / "weights.safetensors"
    ).read_bytes()


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="multiple of 3"):
        run_line(tmp_path, accumulation=3)


def test_muon_with_split_matrices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.zero_stage=0"):
        run_line(tmp_path, optimizer="muon", zero_stage=1)


def test_the_rate_warms_up_and_falls_to_its_minimum() -> None:
    config = TrainConfig(steps=100, warmup_steps=10, learning_rate=1e-3, min_learning_rate=1e-5)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1e-5, rel=0.05)


def test_slurm_names_a_process_that_no_launcher_did() -> None:
    job = {"SLURM_NTASKS": "5", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1"}
    expected = {"RANK": "3", "WORLD_SIZE": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert launcher_variables(job | step) == expected
    assert launcher_variables(job | step | {"SLURM_NODEID": "2"})["LOCAL_WORLD_SIZE"] == "1"
    assert launcher_variables(job) == {}  # in the batch script, without srun
    assert launcher_variables(job | step | {"RANK": "0"}) == {}  # torchrun within srun
    assert launcher_variables(job | step | {"SLURM_STEP_NUM_TASKS": "1"}) == {}
    assert launcher_variables({}) == {}


def test_deepspeed_s_name_for_the_processes_of_a_machine_is_heeded() -> None:
    assert launcher_variables({"RANK": "1", "LOCAL_SIZE": "4"}) == {"LOCAL_WORLD_SIZE": "4"}
    assert launcher_variables({"RANK": "1", "LOCAL_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}) == {}


class Drawn(Line):
    """Notes what the averaged weights make of a number when pictures are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def pictures(self, model: nn.Module, step: int) -> dict[str, np.ndarray]:
        self.seen.append(float(model(torch.ones(1, 1)).detach()))
        return {}


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_pictures_are_of_the_averages_whatever_the_zero_stage(tmp_path: Path, zero_stage: int) -> None:
    tasks = {stage: Drawn() for stage in (0, zero_stage)}
    for stage, task in tasks.items():
        run_line(tmp_path / str(stage), task, zero_stage=stage, picture_every=10, ema_decay=0.9)
    assert len(tasks[0].seen) == 2 and tasks[0].seen[0] != tasks[0].seen[1]
    np.testing.assert_allclose(tasks[zero_stage].seen, tasks[0].seen, rtol=1e-4)
    # What is written is what was shown last.
    task = Drawn()
    task.model.load_state_dict(load_file(tmp_path / str(zero_stage) / "weights.safetensors"))
    assert task.pictures(task.model, 20) == {} and task.seen == pytest.approx(tasks[zero_stage].seen[-1:])


class Steep(Line):
    """One sample's loss is finite and its gradient is not: the square root of zero."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x = torch.nan_to_num(batch["x"])
        broken = torch.isnan(batch["x"]).float()
        loss = (model(x) - (3 * x - 1)).pow(2).mean() + ((model(x) * 0).abs() + 1 - broken).sqrt().sum()
        return loss, {"square": loss}


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_gradient_that_is_not_finite_is_skipped_though_its_loss_is(tmp_path: Path, zero_stage: int) -> None:
    class Once(Steep):
        def batch(self, samples: Sequence[int]) -> dict[str, Tensor]:
            out = super().batch(samples)
            return {"x": out["x"] * float("nan")} if 40 in samples else out

    losses = run_line(tmp_path, Once(), zero_stage=zero_stage)
    assert len(losses) == 19 and np.isfinite(losses).all()
    assert all(value.isfinite().all() for value in load_file(tmp_path / "weights.safetensors").values())


def test_a_gradient_that_stays_nan_stops_with_a_diagnosis(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gradient was not finite for 10 steps"):
        run_line(tmp_path, Steep(broken_from=40))


class Unplugged(Line):
    """Ends after the checkpoint of step 7."""

    def batch(self, samples: Sequence[int]) -> dict[str, Tensor]:
        if samples[0] >= 80:
            raise RuntimeError("pulled the plug")
        return super().batch(samples)


def test_averages_of_several_lengths_are_written_and_go_on_after_a_stop(tmp_path: Path) -> None:
    decays = {"ema_decay": 0.9, "ema_extra": [0.5, 0.0]}
    run_line(tmp_path / "whole", **decays)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        run_line(tmp_path / "again", Unplugged(), **decays)
    run_line(tmp_path / "again", **decays)
    names = ["weights.safetensors", "weights_ema0.5.safetensors", "weights_ema0.safetensors"]
    files = [load_file(tmp_path / "whole" / name)["0.weight"] for name in names]
    assert not torch.equal(files[0], files[1]) and not torch.equal(files[1], files[2])
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_changed_setting_is_recorded_with_the_step_from_which_it_holds(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="pulled the plug"):
        run_line(tmp_path, Unplugged())
    run_line(tmp_path, learning_rate=1e-4)
    (change,) = json.loads((tmp_path / "meta.json").read_text())["changes"]
    assert change == {"what": ["learning_rate was 0.0005, now 0.0001"], "from_step": 7}


@pytest.mark.parametrize(("precision", "bf16"), [("bf16", True), ("fp32", False)])
def test_the_precision_that_is_asked_for_is_used(tmp_path: Path, precision: str, bf16: bool) -> None:
    run = Run.open(tmp_path, TrainConfig(), stage="line")
    assert choose_bf16(precision, torch.device("cpu"), run, distributed.start()) == bf16


@pytest.mark.parametrize(("gain", "bf16"), [(0.5, False), (1.5, False), (8.0, True)])
def test_a_cpu_trains_in_bf16_where_products_gain_enough_and_goes_on_in_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gain: float, bf16: bool
) -> None:
    run = Run.open(tmp_path, TrainConfig(), stage="line")
    device, world = torch.device("cpu"), distributed.start()
    monkeypatch.setattr("shapeloom.training.bf16_speedup", lambda: gain)
    assert choose_bf16("auto", device, run, world) == bf16
    monkeypatch.setattr("shapeloom.training.bf16_speedup", lambda: 1 / gain)  # of a restart on a busy machine
    assert choose_bf16("auto", device, run, world) == bf16


def test_a_long_average_forgets_the_initial_weights_soon(tmp_path: Path) -> None:
    """20 steps of a decay of 0.999 alone would leave it within 2% of where it began."""
    run_line(tmp_path, ema_decay=0.999, ema_extra=[0.0], learning_rate=1e-2, warmup_steps=0)
    files = (load_file(tmp_path / name) for name in ("weights.safetensors", "weights_ema0.safetensors"))
    average, last, first = (
        torch.cat([weights[name].flatten() for name in sorted(weights)])
        for weights in (*files, Line().model.state_dict())
    )
    assert 0 < (average - last).norm() < 0.5 * (first - last).norm()


@pytest.fixture(scope="module")
def begun_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of each ZeRO stage that two processes began, and left at step 8."""
    out = tmp_path_factory.mktemp("begun")
    launch_line(out, zero_stages=[0, 1, 2, 3], stop_at=8)
    return out


@pytest.mark.parametrize(("zero_stage", "back"), [(0, False), (1, False), (2, False), (3, True)])
def test_a_run_goes_on_with_another_number_of_processes(
    begun_by_two: Path, tmp_path: Path, zero_stage: int, back: bool
) -> None:
    """From two to one, and back to two."""
    whole = run_line(tmp_path / "whole", zero_stage=zero_stage)
    parts = begun_by_two / str(zero_stage)
    assert len(read_losses(parts)) == 8
    if back:
        with pytest.raises(SystemExit):
            run_line(parts, Line(stop_at=14), zero_stage=zero_stage)
        launch_line(parts, zero_stage=zero_stage, stop_at=99)
    else:
        run_line(parts, zero_stage=zero_stage)
    np.testing.assert_allclose(read_losses(parts), whole, rtol=1e-5)
    kept = load_file(parts / "weights.safetensors")
    for name, value in load_file(tmp_path / "whole" / "weights.safetensors").items():
        torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-6)


def launch_line(out: Path, **settings: Any) -> None:
    """In two processes, stopped by SIGTERM at step `stop_at`."""
    done = start_line("launch/torchrun.sh", out, {"NPROC": "2"}, **settings)
    assert done.returncode == 0 or "stopped by SIGTERM" in done.stderr, done.stderr[-3000:]


def start_line(script: str, out: Path, environment: dict[str, str], **settings: Any) -> CompletedProcess[str]:
    """By one of the launch files."""
    command = ["bash", script, "tests.shapeloom.line_training", str(out), json.dumps(settings)]
    ours = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}  # this process is a group too
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    own = {"VENV": sys.prefix, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env={**kept, **own, **environment}, capture_output=True, text=True, check=False
    )


def test_deepspeed_s_launcher_and_a_hostfile(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    places = {"HOSTFILE": str(tmp_path / "hosts"), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    port = {"MASTER_PORT": str(distributed.free_port())}
    done = start_line("launch/deepspeed.sh", tmp_path / "run", places | port, zero_stage=1)
    assert done.returncode == 0, done.stderr[-3000:]
    np.testing.assert_allclose(read_losses(tmp_path / "run"), run_line(tmp_path / "one"), rtol=1e-5)


def start_over_ssh(folder: Path, deepspeed: str) -> CompletedProcess[str]:
    """With stand-ins for ssh, which runs what it is given on this machine, and for DeepSpeed's launcher."""
    for name, script in (("ssh", 'shift 3; exec "$@"'), ("bin/deepspeed", deepspeed)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (folder / name).chmod(0o755)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "hosts").write_text("# two machines\none slots=1\ntwo slots=1\n")
    own = {"VENV": str(folder), "HOSTFILE": str(folder / "hosts"), "FORWARD": "WORDS", "LAUNCHER": "ssh"}
    path = {"PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["bash", "launch/deepspeed.sh", "a.stage", "--out", "a folder's"]
    # Trainings in this process have left their group's variables behind.
    group = ("RANK", "WORLD_SIZE", "LOCAL_", "NODE_RANK", "MASTER_")
    outer = {name: value for name, value in os.environ.items() if not name.startswith(group)}
    environment = {**outer, **own, **path, "WORDS": "it's $HOME", "OUT": str(folder)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_hosts_are_reached_by_plain_ssh_where_there_is_no_pdsh(tmp_path: Path) -> None:
    done = start_over_ssh(tmp_path, 'echo "$WORDS|$PWD|$*"')
    assert done.returncode == 0, done.stderr
    expected = (
        f"it's $HOME|{os.getcwd()}|--hostfile {tmp_path / 'hosts'} --master_port 29500 --no_ssh --node_rank "
        "{} --master_addr one --no_local_rank --module a.stage --out a folder's"
    )
    assert sorted(done.stdout.splitlines()) == [expected.replace("{}", rank) for rank in "01"]


def test_a_host_that_fails_ends_the_others_gently(tmp_path: Path) -> None:
    """They get SIGTERM, at which trainers save."""
    script = """if [[ $* == *"node_rank 1"* ]]; then sleep 0.5; exit 75; fi
trap 'touch $OUT/saved; exit 143' TERM; while :; do sleep 0.1; done"""
    done = start_over_ssh(tmp_path, script)
    assert done.returncode == 75, done.stderr
    end = time.monotonic() + 20
    while not (tmp_path / "saved").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert (tmp_path / "saved").exists()


def test_deepspeed_s_hosts_need_ssh(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n")
    for name in ("bash", "grep", "dirname"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    places = {"HOSTFILE": str(tmp_path / "hosts"), "PATH": str(tmp_path)}
    done = start_line("launch/deepspeed.sh", tmp_path / "run", places)
    assert done.returncode == 2 and "by ssh, which isn't installed" in done.stderr
    assert "NODE_RANK=0, 1" in done.stderr


def test_a_killed_process_is_started_again_by_torchrun(tmp_path: Path) -> None:
    done = start_line("launch/torchrun.sh", tmp_path / "run", {"NPROC": "2", "MAX_RESTARTS": "1"}, kill_at=12)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming line at step 7" in done.stderr
    np.testing.assert_allclose(read_losses(tmp_path / "run"), run_line(tmp_path / "one"), rtol=1e-5)


def test_torchrun_s_last_words_are_a_sentence(tmp_path: Path) -> None:
    done = start_line("launch/torchrun.sh", tmp_path / "run", {"NPROC": "2"}, kill_at=3)
    assert done.returncode == EXIT_AGAIN, done.stderr[-3000:]
    assert "was killed by SIGKILL" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


FAKE_SLURM = {
    "scontrol": "case $1 in show) echo 127.0.0.1; echo other-host;; *) echo $1 $2;; esac",
    "srun": """while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=2 SLURM_NODEID=0
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & SLURM_PROCID=1 SLURM_LOCALID=1 "$@" && wait $!""",
}


def job_with_a_free_port() -> int:
    """The script takes port 20000 + job % 10000."""
    for port in range(20000 + os.getpid() % 10000, 30000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port
    raise RuntimeError("no free port below 30000")


def test_slurm_s_script(tmp_path: Path) -> None:
    """With stand-ins for Slurm's two commands that set what Slurm sets."""
    for name, script in FAKE_SLURM.items():
        (tmp_path / name).write_text("#!/usr/bin/env bash\n" + script)
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "two", "SLURM_JOB_ID": str(job_with_a_free_port())}
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    stopped = start_line("launch/slurm.sbatch", tmp_path / "run", job | path, stop_at=8)
    assert stopped.returncode == 143 and "requeue" in stopped.stdout, stopped.stderr[-3000:]
    done = start_line("launch/slurm.sbatch", tmp_path / "run", job | path)
    assert done.returncode == 0 and "requeue" not in done.stdout, done.stderr[-3000:]
    np.testing.assert_allclose(read_losses(tmp_path / "run"), run_line(tmp_path / "one"), rtol=1e-5)
