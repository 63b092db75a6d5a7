"""Which runs a suite has, what they share, and how long they are."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from bench_small import small

from semisup.bench.cells import Cell, Job, base_plans, cell_jobs, expand, step_kind, trial_options, unique_jobs
from semisup.bench.suite import Suite
from semisup.config import DataConfig
from semisup.data import ImageData, draw_budget, load_data
from semisup.errors import SemisupError


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig("digits"))


def plan(suite: Suite, data: ImageData, timing: dict[str, float] | None = None) -> list[tuple[Cell, list[Job]]]:
    return [(cell, cell_jobs(suite, cell, data, timing or {})) for cell in expand(suite)]


def test_every_entry_sees_every_budget_and_draw_and_draws_come_first() -> None:
    cells = expand(small("inits=2"))
    paired = [(c.entry, str(c.labels), c.draw, c.init) for c in cells if c.entry in ("supervised", "fixmatch")]
    assert len(paired) == len(set(paired)) == 2 * 2 * 2 * 2
    assert [c.draw for c in cells] == sorted(c.draw for c in cells)
    full = [(c.labels, c.draw, c.init) for c in cells if c.entry == "full"]
    assert full == [("all", 0, 0), ("all", 0, 1)], "nothing to draw among all labels"
    assert {c.init for c in cells if c.entry == "logistic"} == {0}, "a baseline has no initial weights"


def test_all_entries_of_a_draw_have_the_same_labels(data: ImageData) -> None:
    jobs = [(cell, jobs[-1].recipe.data) for cell, jobs in plan(small(), data) if cell.labels != "all"]
    for cell, config in jobs:
        budget = draw_budget(data.y_train, config.labels, config.split_seed or 0, 10)
        assert budget.hash == draw_budget(data.y_train, cell.labels, cell.draw, 10).hash
    small_, large = (set(draw_budget(data.y_train, n, 1, 10).index) for n in (20, "10%"))
    assert small_ < large


def test_one_pretraining_serves_every_budget_and_draw(data: ImageData) -> None:
    runs = [jobs for cell, jobs in plan(small(), data) if cell.entry in ("finetuned", "on_features")]
    assert len(runs) == 8 and all(jobs[0].stage == "pretrain" for jobs in runs)
    assert len({jobs[0].fingerprint for jobs in runs}) == 1
    assert len({jobs[-1].fingerprint for jobs in runs}) == 8
    assert len(list(unique_jobs(runs))) == 1 + 8
    other = [jobs for cell, jobs in plan(small("inits=[3]"), data) if cell.entry == "finetuned"]
    assert other[0][0].fingerprint != runs[0][0].fingerprint, "other initial weights are another pretraining"


def test_only_what_the_judged_stage_needs_is_run(data: ImageData) -> None:
    (jobs,) = [j for c, j in plan(small("labels=[20]", "draws=1"), data) if c.entry == "finetuned"]
    assert [job.stage for job in jobs] == ["pretrain", "finetune"]
    assert jobs[1].inputs == (("pretrain", jobs[0].fingerprint),)


def test_the_suites_network_and_defaults_reach_every_entry(data: ImageData) -> None:
    for cell, jobs in plan(small("model.width=5", "draws=1"), data):
        assert jobs[-1].recipe.model == {"name": "cnn", "width": 5} or cell.entry == "logistic"
    by_entry = {cell.entry: jobs[-1].recipe for cell, jobs in plan(small("draws=1"), data)}
    assert by_entry["supervised"].stages["train"].batch.labeled == 16
    assert (by_entry["supervised"].stages["train"].steps, by_entry["fixmatch"].stages["train"].steps) == (6, 4)


def test_stages_of_an_entry_are_a_recipe_of_its_own(data: ImageData) -> None:
    stages = {
        "teacher": {"method": {"name": "supervised"}},
        "labels": {"kind": "relabel", "teacher": "teacher"},
        "student": {"method": {"name": "noisy_student"}, "pseudo_labels": "labels", "steps": 3},
        "more": {"method": {"name": "supervised"}},
    }
    suite = small(labels=[20], draws=1, baseline=None, entries={"noisy": {"stages": stages, "stage": "student"}})
    ((_, jobs),) = plan(suite, data)
    assert [(job.stage, job.steps) for job in jobs] == [("teacher", 6), ("labels", 0), ("student", 3)]
    assert {job.recipe.stages["teacher"].batch.labeled for job in jobs} == {16}


def test_equal_steps_and_equal_seconds(data: ImageData) -> None:
    suite = small("compute=[recipe, 100 steps, 3 s]", "draws=1", "labels=[20]", only=("supervised", "finetuned"))
    plans = base_plans(suite, data)
    kinds = {stage.name: step_kind(p, stage) for p in plans.values() for stage in p.stages}
    timing = {kinds["train"]: 0.01, kinds["pretrain"]: 0.05, kinds["finetune"]: 0.02}
    runs = {(cell.entry, cell.compute.text): jobs for cell, jobs in plan(suite, data, timing)}
    assert [job.steps for job in runs["finetuned", ""]] == [4, 200]
    assert sum(job.steps for job in runs["supervised", "100 steps"]) == 100
    assert [job.steps for job in runs["finetuned", "100 steps"]] == [2, 98]
    assert [job.steps for job in runs["supervised", "3 s"]] == [300]
    pretrain, finetune = runs["finetuned", "3 s"]
    assert finetune.steps / pretrain.steps == pytest.approx(50, rel=0.1)
    assert pretrain.seconds + finetune.seconds == pytest.approx(3, rel=0.03)
    with pytest.raises(KeyError):  # no length in seconds without step times
        plan(suite, data)


def test_a_step_kind_is_about_time_and_nothing_else(data: ImageData) -> None:
    def kind(*overrides: str) -> str:
        suite = small("draws=1", *overrides, only=("supervised",))
        (planned,) = base_plans(suite, data).values()
        return step_kind(planned, planned.stages[0])

    assert kind() == kind("labels=[30]", "inits=[5]", "entries.supervised.train.steps=9")
    assert kind() != kind("entries.supervised.train.batch={labeled: 8}")
    assert kind() != kind("model.width=6")
    assert kind() != kind("threads=2")


SEARCHED: dict[str, Any] = {
    "search": {"trials": 3, "validation": 0.5},
    "labels": [40],
    "entries": {
        "supervised": {
            "train": {"method": {"name": "supervised"}},
            "search": {"optimizer.lr": [0.001, 0.01, 0.1], "method.strong": [True, False]},
        },
        "logistic": {"baseline": {"name": "logistic_regression"}, "search": {"C": [0.01, 0.1, 1.0, 10.0]}},
    },
}


def test_every_entry_gets_the_same_number_of_trials(data: ImageData) -> None:
    suite = small(**SEARCHED)
    for name in suite.entries:
        options = trial_options(suite, name)
        assert len(set(options)) == 3 and options == trial_options(suite, name)
    trial = Cell("supervised", 40, 0, 0, suite.computes[0], ("optimizer.lr=0.1",), 0.5)
    final = dataclasses.replace(trial, validation=0.0)
    recipes = [cell_jobs(suite, cell, data, {})[-1].recipe for cell in (trial, final)]
    assert [recipe.stages["train"].optimizer.lr for recipe in recipes] == [0.1, 0.1]
    assert [recipe.data.validation for recipe in recipes] == [0.5, 0.0]
    baseline = Cell("logistic", 40, 0, 0, suite.computes[0], ("C=0.01",), 0.5)
    assert cell_jobs(suite, baseline, data, {})[-1].baseline == {"name": "logistic_regression", "C": 0.01}


def test_everything_wrong_with_the_entries_shows_before_anything_runs(data: ImageData) -> None:
    suite = small(draws=1)
    suite.entries["fixmatch"].train["method"] = {"name": "fixmatch", "treshold": 0.5}
    suite.entries["finetuned"].stage = "finetun"
    suite.entries["on_features"].features = {"recipe": "digits/quickstat"}
    with pytest.raises(SemisupError) as caught:
        base_plans(suite, data)
    message = str(caught.value)
    assert "method 'fixmatch' has no such option; did you mean 'threshold'?" in message
    assert "there is no stage 'finetun'; did you mean 'finetune'?" in message
    assert "digits/quickstat: no such recipe" in message
    with pytest.raises(SemisupError, match="labels: 5 is 5 labeled images, fewer than one for each of 10 classes"):
        base_plans(small("labels=[5, 20]"), data)


def test_a_search_needs_two_labels_per_class(data: ImageData) -> None:
    with pytest.raises(SemisupError, match=r"data\.validation: takes at least one label of every class"):
        base_plans(small(**{**SEARCHED, "labels": [10]}), data)


def test_jobs_do_not_depend_on_where_they_run(data: ImageData) -> None:
    """The recipe that travels says its precision, so that a worker with a GPU plans the same fingerprints."""
    for _, jobs in plan(small("draws=1"), data):
        assert {job.recipe.precision for job in jobs} == {"fp32"}
        assert np.all([len(job.fingerprint) == 20 for job in jobs])
