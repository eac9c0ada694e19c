"""Processes and DeepSpeed: the only module that imports `deepspeed`, and with `joining` `torch.distributed`.

A single CPU process is an ordinary run: a group of one over gloo, made from no environment at all.
"""

import atexit
import logging
import os
import pickle
import socket
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# Before CUDA starts (see `same_bits_each_time`).
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Before deepspeed's import: it otherwise probes for accelerators and warns on machines that have none.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch.distributed
from deepspeed.ops import __compatible_ops__
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils import logger as deepspeed_logger
from deepspeed.utils.tensor_fragment import fragment_address

from shapeloom import cores, watch
from shapeloom.joining import join, launcher_variables

_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_CHECKPOINT_CLASSES: list[Any] = [LossScaler, ZeroStageEnum, fragment_address]
"""What DeepSpeed's checkpoints hold beside tensors and Python's own containers: numbers, no code."""


@dataclass(frozen=True)
class World:
    """This process's place among all of a run."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process logs and writes."""
        return self.rank == 0


def same_bits_each_time() -> None:
    """Has this process's GPU add in one order, not as it comes, so that a resumed run's curve is the same.

    Sampling grids (of the view model) can't be differentiated that way: there sums differ by their rounding.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A check for faults, at the cost of a write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    warnings.filterwarnings("ignore", message=".* does not have a deterministic implementation")


def start(*, hang_seconds: float = watch.HANG_SECONDS) -> World:
    """Joins the process group, shares the cores among this machine's processes, and returns the world.

    hang_seconds: no step of the work that follows takes longer (see shapeloom.watch).
    """
    os.environ.update(launcher_variables(os.environ))
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    if alone:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(free_port()))
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    deepspeed_logger.setLevel(logging.ERROR)
    # Without this the first run on a CPU compiles a kernel for a minute or more, in silence.
    __compatible_ops__["deepspeed_shm_comm"] = False
    if on_gpu:
        torch.cuda.set_device(local_rank)
    if not torch.distributed.is_initialized():
        _join("nccl" if on_gpu else "gloo", hang_seconds, device, tries=5 if alone else 1)
        # At the very end: DeepSpeed keeps groups of its own that outlive any one training.
        atexit.register(torch.distributed.destroy_process_group)
        if watch.current is not None:
            atexit.register(watch.current.stop)
    # Two pools of spinning OpenMP threads on the same cores run ten times slower than one thread each.
    if "OMP_NUM_THREADS" not in os.environ or not alone:
        torch.set_num_threads(cores.usable())
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)


def _join(backend: str, hang_seconds: float, device: torch.device, *, tries: int) -> None:
    """Joins the process group; by another free port where this one is taken, if there are tries left."""
    for left in reversed(range(tries)):
        try:
            join(backend, hang_seconds=hang_seconds, device=device)
            break
        except torch.distributed.DistNetworkError:
            if not left:
                raise
            os.environ["MASTER_PORT"] = str(free_port())
    deepspeed.init_distributed(dist_backend=backend, verbose=False)


def free_port() -> int:
    """Returns a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def barrier(world: World) -> None:
    """Waits for all processes."""
    if world.size > 1:
        torch.distributed.barrier()


def mean(values: Tensor, world: World) -> Tensor:
    """Returns the mean of a small tensor over all processes."""
    if world.size > 1:
        values = values.clone()
        torch.distributed.all_reduce(values)
        values = values / world.size
    return values


def any_process(flag: bool, world: World) -> bool:
    """Returns whether `flag` holds in any process, the same answer everywhere."""
    if world.size == 1:
        return flag
    total = torch.tensor(float(flag), device=world.device)
    torch.distributed.all_reduce(total)
    return bool(total > 0)


def highest(values: Tensor, world: World) -> Tensor:
    """Returns the element-wise maximum of a small tensor over all processes, on the device."""
    if world.size > 1:
        values = values.clone()
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
    return values


def from_main(value: Any, world: World) -> Any:
    """Returns the main process's `value` everywhere."""
    if world.size == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def from_all(value: Any, world: World) -> list[Any]:
    """Returns every process's `value`, by rank."""
    if world.size == 1:
        return [value]
    values = [None] * world.size
    torch.distributed.all_gather_object(values, value)
    return values


def make_engine(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    micro_batch: int,
    accumulation: int,
    grad_clip: float,
    zero_stage: int,
    offload: bool = False,
    universal: bool = False,
) -> Any:
    """Returns a DeepSpeed engine around `model`, with weights and optimizer states in float32.

    bfloat16 is by autocast within the model, so that every ZeRO stage computes the same thing.
    offload: with ZeRO 1-3, optimizer states lie in the CPU's memory, and steps are taken there.
    universal: the checkpoint that it will load is one of `convert_checkpoint`'s.
    """
    zero: dict[str, Any] = {"stage": zero_stage}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    settings = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": grad_clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # its Adam is compiled for minutes; torch's serves
        "steps_per_print": 10**9,
        "checkpoint": {"load_universal": universal},
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=settings, dist_init_required=False
    )
    return engine


def drop_gradients(engine: Any) -> None:
    """Forgets the parts of a step accumulated so far, so that the next part is a step's first again."""
    engine.zero_grad()
    engine.optimizer.zero_grad()
    for name in ("averaged_gradients", "all_grad_tensors"):  # ZeRO's own, which neither call forgets
        if hasattr(engine.optimizer, name):
            setattr(engine.optimizer, name, {})
    engine.micro_steps -= engine.micro_steps % engine.gradient_accumulation_steps()


def save_engine(engine: Any, folder: Path, tag: str, facts: dict[str, Any]) -> None:
    """Writes a DeepSpeed checkpoint `folder/tag`; the caller declares it valid."""
    engine.save_checkpoint(str(folder), tag=tag, client_state=facts, save_latest=False)


_CONVERT = """
from deepspeed.checkpoint.ds_to_universal import main, parse_arguments
from shapeloom.distributed import allow_checkpoints
allow_checkpoints()
main(parse_arguments())
"""


def allow_checkpoints() -> None:
    """Lets torch.load read what DeepSpeed's checkpoints hold, and nothing that could run code.

    They are pickles, and DeepSpeed loads them without reserve: the variable overrides that.
    """
    os.environ[_WEIGHTS_ONLY] = "1"
    torch.serialization.add_safe_globals(_CHECKPOINT_CLASSES)


def convert_checkpoint(folder: Path, tag: str, to: str) -> None:
    """Turns a checkpoint of ZeRO 1-3, split for as many processes as wrote it, into one for any number."""
    arguments = ["--input_folder", str(folder / tag), "--output_folder", str(folder / to)]
    command = [sys.executable, "-c", _CONVERT, *arguments, "--inject_missing_state"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "UnpicklingError" in done.stderr:
        raise pickle.UnpicklingError(f"{folder / tag} holds more than numbers")
    if done.returncode:
        raise RuntimeError(f"DeepSpeed could not convert {folder / tag}:\n{done.stderr[-2000:]}")


def load_engine(engine: Any, folder: Path, tag: str) -> dict[str, Any]:
    """Loads a DeepSpeed checkpoint and returns the facts saved with it.

    Raises UnpicklingError, before anything of it is done, if a file holds more than numbers.
    """
    settings = [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups]
    before = os.environ.get(_WEIGHTS_ONLY)
    allow_checkpoints()
    try:
        path, facts = engine.load_checkpoint(str(folder), tag=tag)
    finally:
        del os.environ[_WEIGHTS_ONLY]
        if before is not None:
            os.environ[_WEIGHTS_ONLY] = before
    # From a converted checkpoint ZeRO-3 gives all parameters one step count, to be counted up by each of
    # them, and all groups the settings of the first.
    for group, its_own in zip(engine.optimizer.param_groups, settings, strict=True):
        group.update(its_own)
    # ZeRO-1 and 2 take the checkpoint's clipping over the config's.
    if hasattr(engine.optimizer, "clip_grad"):
        engine.optimizer.clip_grad = engine.gradient_clipping()
    for state in engine.optimizer.state.values():
        if "step" in state:
            state["step"] = state["step"].clone()
    if path is None:
        raise RuntimeError(f"DeepSpeed found no checkpoint {tag} in {folder}")
    return dict(facts)


def full_parameters(engine: Any, zero_stage: int) -> dict[str, Tensor]:
    """Returns copies of all parameters and buffers: gathered to the CPU where ZeRO-3 split them."""
    module = engine.module
    if zero_stage < 3:
        return {name: value.detach().clone() for name, value in module.state_dict().items()}
    with deepspeed.zero.GatheredParameters(list(module.parameters())):
        return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
