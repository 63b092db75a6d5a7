"""What a worker does with one job, in this process."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from bench_small import small

from semisup.bench.cells import Job, base_plans, cell_jobs, expand
from semisup.bench.timing import step_seconds
from semisup.bench.work import Failed, Pack, measure, open_pack, run_job, write_pack
from semisup.config import DataConfig
from semisup.data import load_data
from semisup.errors import SemisupError
from semisup.stages.artifact import RECORD


def jobs_of(entry: str, *overrides: str) -> list[Job]:
    suite = small("labels=[20]", "draws=1", *overrides)
    (cell,) = [cell for cell in expand(suite) if cell.entry == entry]
    return cell_jobs(suite, cell, load_data(DataConfig("digits")), {})


def done(answer: Pack | Failed) -> Pack:
    assert isinstance(answer, Pack), answer
    return answer


def test_a_chain_in_a_shared_folder(tmp_path: Path) -> None:
    pretrain, finetune = jobs_of("finetuned", "entries.finetuned.overrides=[stages.pretrain.steps=2]")
    first = done(run_job(pretrain, {}, str(tmp_path)))
    second = done(run_job(finetune, {"pretrain": first}, str(tmp_path)))
    assert first.files is None and second.files is None, "nothing travels"
    assert second.record["fingerprint"] == finetune.fingerprint
    assert 0 <= second.record["metrics"]["test/accuracy"] <= 1
    again = done(run_job(finetune, {"pretrain": first}, str(tmp_path)))
    assert again.record == second.record


def test_files_travel_between_folders_and_arrive_whole(tmp_path: Path) -> None:
    (job,) = jobs_of("supervised")
    here = done(run_job(job, {}, str(tmp_path / "here")))
    home = tmp_path / "here" / job.fingerprint
    travelling = Pack(here.record, {name: (home / name).read_bytes() for name in here.record["files"]})
    there = tmp_path / "there" / job.fingerprint
    artifact = open_pack(travelling, there)
    assert artifact.record == here.record
    assert (there / "model.safetensors").read_bytes() == (home / "model.safetensors").read_bytes()
    assert open_pack(Pack(here.record), there).folder == there, "it is there already"
    assert travelling.files is not None
    damaged = Pack(here.record, travelling.files | {"model.json": b"{}"})
    with pytest.raises(SemisupError, match=r"model\.json: missing or damaged"):
        write_pack(damaged, tmp_path / "elsewhere" / job.fingerprint)
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
    moved = dataclasses.replace(job, fingerprint="0" * 20)
    answer = run_job(moved, {}, str(tmp_path))
    assert isinstance(answer, Failed) and "another version of semisup, or other data" in answer.error


def test_every_train_stage_can_be_timed_without_what_it_starts_from() -> None:
    suite = small("draws=1", "labels=[20]")
    plans = base_plans(suite, load_data(DataConfig("digits")))
    timed = {stage.name: step_seconds(plan, stage) for plan in plans.values() for stage in plan.stages if stage.steps}
    assert timed.keys() == {"train", "pretrain", "finetune"}
    assert all(0 < seconds < 5 for seconds in timed.values())
    plan = plans["finetuned"]
    assert measure(plan.recipe, "pretrain") > 0
    assert torch.get_num_threads() == suite.threads
