"""Processes that share one piece of work: who am I, and do we all mean the same. The only import of torch.distributed.

Rank and size come from the environment that torchrun or srun gives, so that work without communication (sampling) needs no process
group. Everything here also works in a plain, single process.
"""

import os
from collections.abc import Sequence
from typing import TypeVar

from medsynth.errors import MedsynthError, SettingsError

Item = TypeVar("Item")


def launcher() -> str | None:
    """What started this process as one of several: ``torchrun``, ``srun`` or None. An sbatch script's own process is none of several."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return "torchrun"
    if "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return "srun"
    return None


def rank() -> int:
    """0 for the process that writes what is written once."""
    return int(os.environ[{"torchrun": "RANK", "srun": "SLURM_PROCID"}[name]]) if (name := launcher()) else 0


def world_size() -> int:
    return int(os.environ[{"torchrun": "WORLD_SIZE", "srun": "SLURM_STEP_NUM_TASKS"}[name]]) if (name := launcher()) else 1


def local_rank() -> int:
    """The rank among the processes of this machine: which of its devices is ours."""
    return int(os.environ.get({"torchrun": "LOCAL_RANK", "srun": "SLURM_LOCALID"}[name], "0")) if (name := launcher()) else 0


def shard(items: Sequence[Item], part: int, parts: int) -> Sequence[Item]:
    """Every ``parts``-th item from ``part`` on: shards are disjoint, and together they are all items."""
    return items[part::parts]


def barrier() -> None:
    """Wait until every rank is here; nothing without a process group."""
    import torch.distributed as group

    if group.is_available() and group.is_initialized():
        group.barrier()


def gather(value: object) -> list:
    """Each rank's ``value``, by rank. Without a process group, ours alone."""
    import torch.distributed as group

    if not (group.is_available() and group.is_initialized()):
        return [value]
    values: list = [None] * group.get_world_size()
    group.all_gather_object(values, value)
    return values


def require_same(digest: str, what: str) -> None:
    """Stop every rank if they do not all hold the same ``digest`` of ``what``."""
    found = gather(digest)
    if len(set(found)) > 1:
        odd = [str(i) for i, other in enumerate(found) if other != found[0]]
        raise MedsynthError(
            f"Ranks {', '.join(odd)} have other {what} than rank 0. All processes must read one file of resolved settings and one run "
            "folder; start them with 'torchrun -m medsynth.worker' or 'srun python -m medsynth.worker'."
        )


def require_launched(devices: int, nodes: int) -> None:
    """Stop unless exactly ``devices * nodes`` processes were started from outside: Lightning never relaunches the command itself.

    A relaunched command composes its settings anew; in a sweep, ranks of one process group then train with different ones and say nothing.
    """
    if world_size() != devices * nodes:
        raise SettingsError(
            f"trainer.devices={devices} and trainer.num_nodes={nodes} need {devices * nodes} processes, but {world_size()} were started. "
            f"Start them with 'torchrun --nnodes={nodes} --nproc-per-node={devices} -m medsynth.worker train <resolved settings>' or with "
            "srun, or change trainer.devices."
        )
