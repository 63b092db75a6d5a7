"""What a worker does with one job, in this process."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from semisup.bench.execution.benchmark import bench
from semisup.bench.execution.cluster import default_workers
from semisup.bench.execution.jobs import Job, make_jobs, plan_run
from semisup.bench.execution.together import gpu_problems
from semisup.bench.execution.worker import Failed, Pack, measure, open_pack, run_job, write_pack
from semisup.bench.suites.runs import expand
from semisup.data import load_data
from semisup.errors import SemisupError
from semisup.pipeline.timing import step_seconds
from semisup.records import digest
from semisup.settings import DataConfig
from semisup.stages.artifact import RECORD
from tests.bench.bench_small import small


def jobs_of(entry: str, *overrides: str) -> list[Job]:
    suite = small("labels=[20]", "draws=1", *overrides)
    (spec,) = [spec for spec in expand(suite) if spec.entry == entry]
    return make_jobs(suite, plan_run(suite, spec, load_data(DataConfig(source="digits"))), {})


def done(answer: Pack | Failed) -> Pack:
    assert isinstance(answer, Pack), answer
    return answer


def test_a_chain_in_a_shared_folder(tmp_path: Path) -> None:
    short = "entries.finetuned.overrides=[stages.pretrain.steps=2,stages.finetune.steps=6]"
    pretrain, finetune = jobs_of("finetuned", short)
    first = done(run_job(pretrain, {}, str(tmp_path)))
    second = done(run_job(finetune, {"pretrain": first}, str(tmp_path)))
    assert first.files is None and second.files is None, "nothing travels"
    assert second.record["fingerprint"] == finetune.fingerprint
    assert 0 <= second.record["metrics"]["test/accuracy"] <= 1
    again = done(run_job(finetune, {"pretrain": first}, str(tmp_path)))
    assert again.record == second.record


def hostile_answers(pack: Pack) -> Iterator[Pack]:
    """Answers, with checksums that are right, whose files would land elsewhere."""
    content = b"planted"
    for name in ("../../victim.txt", "/tmp/victim.txt", "..", "a/b", "c:victim"):
        files = {name: hashlib.sha256(content).hexdigest()}
        record = pack.record | {"files": files}
        yield Pack(record | {"digest": digest(record)}, {name: content})
    yield Pack(pack.record | {"files": {}}, {})


def test_files_travel_between_folders_and_arrive_whole(tmp_path: Path) -> None:
    (job,) = jobs_of("supervised")
    here = done(run_job(job, {}, str(tmp_path / "here")))
    home = tmp_path / "here" / job.fingerprint
    traveling = Pack(here.record, {name: (home / name).read_bytes() for name in here.record["files"]})
    there = tmp_path / "there" / job.fingerprint
    artifact = open_pack(traveling, there)
    assert artifact.record == here.record
    assert (there / "model.safetensors").read_bytes() == (home / "model.safetensors").read_bytes()
    assert open_pack(Pack(here.record), there).folder == there, "it is there already"
    assert traveling.files is not None
    damaged = Pack(here.record, traveling.files | {"model.json": b"{}"})
    for answer in (damaged, *hostile_answers(traveling)):
        with pytest.raises(SemisupError, match="a worker's answer"):
            write_pack(answer, tmp_path / "elsewhere" / job.fingerprint)
    assert not (tmp_path / "elsewhere").exists(), "nothing is written before all is compared"
    with pytest.raises(SemisupError, match="a worker's answer"):
        write_pack(traveling, tmp_path / "elsewhere" / "another_job")
    with pytest.raises(SemisupError, match="a finished stage should be here and is not"):
        open_pack(Pack(here.record), tmp_path / "nowhere" / job.fingerprint)


def test_a_baseline_on_features_differs_from_pixels_and_is_kept(tmp_path: Path) -> None:
    pretrain, spreading = jobs_of("on_features")
    features = done(run_job(spreading, {"pretrain": done(run_job(pretrain, {}, str(tmp_path)))}, str(tmp_path)))
    (logistic,) = jobs_of("logistic")
    pixels = done(run_job(logistic, {}, str(tmp_path)))
    assert pixels.record["method"] == "logistic_regression" and features.record["method"] == "label_spreading"
    assert pixels.record["metrics"]["test/accuracy"] > 0.5, "20 labels of digits"
    assert len(pixels.record["metrics"]["test/reliability"]) == 15
    assert json.loads((tmp_path / logistic.fingerprint / RECORD).read_text())["metrics"] == pixels.record["metrics"]


def test_the_recipes_own_failure_is_an_answer_not_an_exception(tmp_path: Path) -> None:
    (job,) = jobs_of("supervised", "entries.supervised.train.optimizer={name: sgd, lr: 1.0e18}")
    answer = run_job(job, {}, str(tmp_path))
    assert isinstance(answer, Failed) and "stages.train: step" in answer.error and "not finite" in answer.error


@pytest.mark.parametrize("entry", ["supervised", "logistic"])
def test_a_worker_with_another_version_or_other_data_says_so(entry: str, tmp_path: Path) -> None:
    (job,) = jobs_of(entry)
    answer = run_job(dataclasses.replace(job, fingerprint="0" * 20), {}, str(tmp_path))
    assert isinstance(answer, Failed) and "another version of semisup, or other data" in answer.error


def test_a_folder_that_cannot_be_written_is_worth_another_attempt(tmp_path: Path) -> None:
    (job,) = jobs_of("supervised")
    (tmp_path / job.fingerprint).mkdir()
    (tmp_path / job.fingerprint / "model.safetensors").mkdir()  # a file cannot take its place
    with pytest.raises(SemisupError, match="cannot be written"):
        run_job(job, {}, str(tmp_path))


def test_baselines_with_all_labels_have_nothing_unlabeled(tmp_path: Path) -> None:
    suite = small(labels=["all"], draws=1, baseline=None, entries={"a": {"baseline": {"name": "logistic_regression"}}})
    (spec,) = expand(suite)
    (job,) = make_jobs(suite, plan_run(suite, spec, load_data(DataConfig(source="digits"))), {})
    assert done(run_job(job, {}, str(tmp_path))).record["metrics"]["test/accuracy"] > 0.9


def test_jobs_of_one_process_take_turns(tmp_path: Path) -> None:
    """Two threads, as of a Dask worker with two: the answers are those of one after the other."""
    jobs = [jobs_of("supervised", f"draws=[{draw}]")[0] for draw in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        together = [done(answer) for answer in pool.map(lambda job: run_job(job, {}, str(tmp_path / "a")), jobs)]
    alone = [done(run_job(job, {}, str(tmp_path / "b"))) for job in jobs]
    assert [a.record["files"] for a in together] == [b.record["files"] for b in alone], "checksums of the weights"


def test_every_train_stage_can_be_timed_without_what_it_starts_from() -> None:
    suite = small("draws=1", "labels=[20]")
    data = load_data(DataConfig(source="digits"))
    plans = {spec.entry: plan_run(suite, spec, data).plan for spec in expand(suite)}
    timed = {stage.name: step_seconds(plan, stage) for plan in plans.values() for stage in plan.stages if stage.steps}
    assert timed.keys() == {"train", "pretrain", "finetune"}
    assert all(0 < seconds < math.inf for seconds in timed.values())
    plan = plans["finetuned"]
    seconds, load = measure(plan.recipe, "pretrain")
    assert seconds > 0 and load >= 0, "of a step; cores that other programs kept busy meanwhile"
    assert torch.get_num_threads() == suite.threads


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_stage_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    words = ("gpus_per_run=2", "entries.fixmatch.train.method.threshold=0.5")
    (job,) = jobs_of("fixmatch", *words)
    assert job.processes == 2
    two = done(run_job(job, {}, str(tmp_path / "two")))
    one = done(run_job(dataclasses.replace(job, processes=1), {}, str(tmp_path / "one")))
    assert two.record["fingerprint"] == one.record["fingerprint"]
    networks = [load_file(tmp_path / name / job.fingerprint / "model.safetensors") for name in ("one", "two")]
    for name, weights in networks[0].items():
        assert torch.allclose(weights, networks[1][name], atol=1e-5), name
    assert two.record["metrics"].keys() == one.record["metrics"].keys()

    (wild,) = jobs_of("supervised", "gpus_per_run=2", "entries.supervised.train.optimizer={name: sgd, lr: 1e30}")
    answer = run_job(wild, {}, str(tmp_path / "two"))
    assert isinstance(answer, Failed) and "not finite" in answer.error, answer
    assert not [p for p in psutil.process_iter() if "semisup.bench.execution.together" in " ".join(_words(p))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def test_workers_leave_room_for_the_processes_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(job.processes == 1 for job in jobs_of("logistic", "gpus_per_run=2")), "only train stages are shared"
    monkeypatch.setattr("dask.system.CPU_COUNT", 8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert (default_workers(2), default_workers(2, 2), default_workers(4, 4)) == (4, 2, 1)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert (default_workers(2), default_workers(2, 4)) == (8, 2)


def test_processes_of_a_run_divide_the_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert list(gpu_problems(3)) == [], "a machine without GPUs shares its cores"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert [list(gpu_problems(count)) for count in (1, 2, 4)] == [[], [], []]
    for count in (3, 8):
        problem = f"gpus_per_run: must divide the 4 GPUs of this machine, not {count}; valid: 1, 2, 4"
        suite = small(f"gpus_per_run={count}", "entries.supervised.train.method.nam=x", only=("supervised",))
        with pytest.raises(SemisupError, match="2 problems") as caught:
            bench(suite, out=tmp_path, dry_run=True, quiet=True)
        assert f"  - {problem}\n" in str(caught.value)
        (job,) = jobs_of("supervised", f"gpus_per_run={count}")
        answer = run_job(job, {}, str(tmp_path / "stages"))
        assert answer == Failed(problem), "a worker of another machine than the command's"
