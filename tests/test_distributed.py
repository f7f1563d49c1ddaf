import pytest

from medsynth import distributed
from medsynth.errors import SettingsError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NTASKS")


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def who() -> tuple:
    return distributed.launcher(), distributed.rank(), distributed.world_size(), distributed.local_rank()


def test_a_plain_process_is_alone():
    assert who() == (None, 0, 1, 0)
    distributed.barrier()
    assert distributed.gather("me") == ["me"]
    distributed.require_same("digest", "settings")
    distributed.require_launched(1, 1)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, ("torchrun", 3, 4, 1)),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "2"}, ("srun", 2, 8, 2)),
        # the script of a job with eight tasks is not one of them
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (None, 0, 1, 0)),
        # torchrun within a Slurm job
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, ("torchrun", 1, 2, 1)),
    ],
)
def test_rank_and_size_are_those_of_the_launcher(monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert who() == expected


def test_a_wrong_number_of_processes_is_refused_with_the_command_to_start_them(monkeypatch):
    with pytest.raises(SettingsError, match="--nproc-per-node=4"):
        distributed.require_launched(4, 1)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="need 1 processes, but 2 were started"):
        distributed.require_launched(1, 1)


def test_shards_are_disjoint_and_complete():
    shards = [distributed.shard(range(11), part, 3) for part in range(3)]
    assert sorted(item for shard in shards for item in shard) == list(range(11))
