"""One run on several ranks: real processes, which talk by gloo, against one process."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig
from torch.testing._internal.distributed.fake_pg import FakeStore

from semisup.cli.launch import launch
from semisup.engine import ranks
from semisup.engine.split import split_networks
from semisup.errors import SemisupError
from semisup.models import Encoder
from semisup.models.cnn import SmallCNN
from tests.contract.contract_settings import CASES
from tests.nursery import Nursery

EIGHT = ["supervised-supcon", "fixmatch-ctaugment", "mean_teacher-plain", "simclr-plain", "barlow_twins-plain"]
EIGHT += ["moco-v2", "swav-crops", "meta_pseudo_labels-dropout"]
"""Losses over the batch, a queue, statistics, an average, alternating updates, draws in and beside the network."""
MOMENTS = ["begins", "reports", "steps", "between"]
"""In which the first rank alone finds something wrong."""
FAILURES = [(moment, rank) for moment in ("begins", "measures", "between") for rank in range(2)]
"""In which a rank meets what no check foresaw."""
TRAINED = ["fixmatch-aligned", "simclr-plain", "meta_pseudo_labels-dropout"]
"""Labels, a loss over the batch, two networks in turn: trained in many ways."""
MORE = ["looked", "own_norms", "others", "slow_to_go"]
PARTS = 12
"""Tests that share the methods: each ends within minutes, and one that fails is seen before the others are made."""
ROUNDING = 1e-9
"""In float64, after steps that make much of a small difference."""

pytestmark = pytest.mark.timeout(900)  # two processes on a busy machine


def ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    found = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return found


WORKER = f"import runpy; runpy.run_path({str(Path(__file__).with_name('ranks_worker.py'))!r}, run_name='__main__')"


def pair(forks: Nursery, folder: Path, jobs: list[dict[str, Any]], ranks: int = 2) -> list[dict[str, Any]]:
    """What each rank found, job by job; the processes are started once for all jobs."""
    given = [{**job, "port": port} for job, port in zip(jobs, ports(len(jobs)), strict=True)]
    (folder / "jobs.json").write_text(json.dumps(given))
    group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    processes = [
        forks.start(
            folder,
            str(folder),
            code=WORKER,
            log=folder / f"rank{rank}.log",
            environment={**group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]
    codes = [process.wait() for process in processes]
    assert codes == [0] * ranks, "\n".join(process.log.read_text() for process in processes)
    return [json.loads((folder / f"found{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, forks: Nursery) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = [
        {"do": "methods", "names": EIGHT, "steps": 4},
        {"do": "views"},
        {"do": "resumed"},
        {"do": "told"},
        {"do": "norms"},
        {"do": "tuned"},
        {"do": "patient"},
        {"do": "diverged"},
        *({"do": "mistaken", "moment": moment} for moment in MOMENTS),
        *({"do": "failed", "moment": moment, "rank": rank} for moment, rank in FAILURES),
        {"do": "layers"},
        *({"do": name} for name in MORE),
        *({"do": "settings", "case": case} for case in TRAINED),
    ]
    return pair(forks, tmp_path_factory.mktemp("pair"), jobs)


def of(found: list[dict[str, Any]], job: str, which: int = 0) -> list[Any]:
    """What each rank found in a job of this name, of several the one at `which`."""
    return [[value for key, value in rank.items() if key.split()[1] == job][which] for rank in found]


def test_eight_methods_learn_the_same_on_two_ranks(found: list[dict[str, Any]]) -> None:
    for changes in of(found, "methods"):
        assert changes.keys() == set(EIGHT)
        assert {name: change for name, change in changes.items() if change > ROUNDING} == {}


def test_views_are_those_of_one_process(found: list[dict[str, Any]]) -> None:
    assert of(found, "views") == [{"others": [], "seen": [4, 1]}, {"others": [], "seen": [5, 1]}]


@pytest.mark.slow
def test_views_of_four_ranks_are_those_of_one_process(nursery: Nursery, tmp_path: Path) -> None:
    found = [rank["0 views"] for rank in pair(nursery, tmp_path, [{"do": "views"}], ranks=4)]
    assert [rank["others"] for rank in found] == [[]] * 4
    assert [rank["seen"] for rank in found] == [[2, 1], [2, 1], [2, 1], [3, 1]]


def test_a_checkpoint_of_two_ranks_goes_on_on_two_and_on_one(found: list[dict[str, Any]]) -> None:
    for resumed in of(found, "resumed"):
        assert resumed["two"] == 0, "the same ranks: bit for bit"
        assert resumed["one"] < ROUNDING


def test_a_mistake_of_one_rank_is_told_once(found: list[dict[str, Any]]) -> None:
    told, other = of(found, "told")
    assert told == "SemisupError: rank 1: data: not here"
    assert other.startswith("SaidElsewhereError")


def test_between_steps_ranks_wait_for_each_other_as_long_as_it_takes(found: list[dict[str, Any]]) -> None:
    assert of(found, "patient") == [7, 7]


def test_a_loss_that_is_not_finite_is_told_once(found: list[dict[str, Any]]) -> None:
    told, other = of(found, "diverged")
    assert told.startswith("NonFiniteLossError: step ")
    assert other.startswith("SaidElsewhereError")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_mistake_of_the_first_rank_is_told_once_and_outlived_by_the_others(
    moment: str, found: list[dict[str, Any]]
) -> None:
    (told, said), (other, left) = of(found, "mistaken", MOMENTS.index(moment))
    assert told == f"SemisupError: {moment}: not on rank 0"
    assert other.startswith("SaidElsewhereError")
    assert left > said, "torchrun ends all ranks as soon as one has ended"


@pytest.mark.parametrize(("moment", "rank"), FAILURES)
def test_what_nobody_foresaw_on_any_rank_is_named_by_the_first_and_outlived_by_the_others(
    moment: str, rank: int, found: list[dict[str, Any]]
) -> None:
    (told, said), (other, left) = of(found, "failed", FAILURES.index((moment, rank)))
    assert told.startswith(
        f"FailedRankError: rank {rank}: RuntimeError: {moment}: not on rank {rank} (ranks_worker.py, "
    )
    assert other.startswith("SaidElsewhereError")
    assert left > said, "torchrun ends all ranks as soon as one has ended"


@pytest.mark.parametrize("said", ["", "abc", "0", "-3", "nan", "inf", "1e30"])
def test_a_wait_that_is_none_is_refused_in_words(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ranks.TIMEOUT, said)
    with pytest.raises(SemisupError, match=f"SEMISUP_RANKS_TIMEOUT: must be a number of seconds .*not '{said}'"):
        ranks.longest_wait()


@pytest.mark.parametrize(
    ("error", "told"),
    [(RuntimeError("Connection closed"), ranks.LostRankError), (torch.OutOfMemoryError(), torch.OutOfMemoryError)],
)
def test_what_a_ranks_own_gpu_lacks_is_not_blamed_on_the_others(error: Exception, told: type[Exception]) -> None:
    with pytest.raises(told), ranks._within_reach():
        raise error


@pytest.mark.parametrize(("gpus", "most"), [(0, 8), (3, 3)])
def test_more_processes_than_a_machine_can_hold_are_refused(
    gpus: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert ranks.crowd(most) == ""
    for many in (most + 1, 100_000):
        assert ranks.crowd(many).startswith(f"must be at most {most}, not {many} (")
    monkeypatch.setattr("sys.argv", ["semisup", "run", "x", "--processes", "100000"])
    with pytest.raises(SemisupError, match=f"--processes: must be at most {most}, not 100000"):
        launch(100_000)


def test_a_split_backbone_takes_named_arguments() -> None:
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        encoder = Encoder(SmallCNN(4, in_channels=1))
        split_networks(encoder)
        with ranks.step_together():
            assert encoder.backbone(images=torch.rand(4, 1, 12, 12)).shape == (4, encoder.num_features)
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not hasattr(LaunchConfig, "shutdown_timeout"), reason="torch kills after 30 s, whatever is asked")
def test_torchrun_kills_after_the_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ranks.with_grace(99.5).items():
        monkeypatch.setenv(name, value)
    assert LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1).shutdown_timeout == 110


def test_batchnorm_of_each_rank_is_another(found: list[dict[str, Any]]) -> None:
    assert min(of(found, "norms")) > 1e-4


def test_a_part_of_a_network_learns_the_same_on_two_ranks(found: list[dict[str, Any]]) -> None:
    for tuned in of(found, "tuned"):
        for change, kept in tuned.values():
            assert change < ROUNDING
            assert 0 < kept < 1


def test_layers_of_other_libraries_learn_the_same_on_two_ranks(found: list[dict[str, Any]]) -> None:
    for changes in of(found, "layers"):
        assert {name: change for name, change in changes.items() if not change < ROUNDING} == {}


def test_a_look_of_the_first_rank_between_steps_takes_as_long_as_it_takes(found: list[dict[str, Any]]) -> None:
    for change in of(found, "looked"):
        assert change < ROUNDING


def test_ranks_with_batchnorms_of_their_own_have_one_network_and_resume_bit_for_bit(
    found: list[dict[str, Any]],
) -> None:
    first, other = of(found, "own_norms")
    assert first == other
    assert first["resumed"] == 0


def test_a_rank_that_has_planned_other_stages_is_refused(found: list[dict[str, Any]]) -> None:
    told, other = of(found, "others")
    assert (
        told == "SemisupError: rank 1: it has other data than rank 0, another precision, or another version of semisup"
    )
    assert other.startswith("SaidElsewhereError")


def test_a_failed_rank_that_is_slow_to_let_go_is_named(found: list[dict[str, Any]]) -> None:
    told, other = of(found, "slow_to_go")
    assert told.startswith("FailedRankError: rank 1: RuntimeError: measures: not on rank 1 (ranks_worker.py, ")
    assert other.startswith("SaidElsewhereError")


@pytest.mark.parametrize("case", TRAINED)
def test_however_trained_two_ranks_learn_the_same(case: str, found: list[dict[str, Any]]) -> None:
    for changes in of(found, "settings", TRAINED.index(case)):
        assert {name: change for name, change in changes.items() if not change < ROUNDING} == {}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_method_learns_the_same_on_several_ranks(ranks: int, part: int, nursery: Nursery, tmp_path: Path) -> None:
    """50 steps; with 4 ranks parts are uneven, and some batches too small to be split."""
    names = sorted(CASES)[part::PARTS]
    for rank in pair(nursery, tmp_path, [{"do": "methods", "names": names, "steps": 50}], ranks):
        assert rank["0 methods"].keys() == set(names)
        assert {name: change for name, change in rank["0 methods"].items() if not change < 1e-4} == {}
