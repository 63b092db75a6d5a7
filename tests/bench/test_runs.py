"""Which runs a suite has, what they share, and how long they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semisup.bench.execution.jobs import Job, longest_steps, make_jobs, plan_run, step_kind, unique_jobs
from semisup.bench.suites.folds import Folds, load_folds
from semisup.bench.suites.runs import RunSpec, check_entries, expand, trial_options
from semisup.bench.suites.suite import FeaturesConfig, Suite
from semisup.data import ImageData, draw_budget, load_data
from semisup.errors import SemisupError
from semisup.settings import DataConfig
from tests.bench.bench_small import PRETRAIN, small

WHOLE = f"entries.finetuned.overrides={PRETRAIN}"
"""Fine-tuned for as long as its recipe says."""


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(source="digits"))


def plan(suite: Suite, data: ImageData, timing: dict[str, float] | None = None) -> list[tuple[RunSpec, list[Job]]]:
    return [(spec, make_jobs(suite, plan_run(suite, spec, data), timing or {})) for spec in expand(suite)]


def test_every_entry_sees_every_budget_and_draw_and_draws_come_first() -> None:
    specs = expand(small("inits=2"))
    paired = [(c.entry, str(c.labels), c.draw, c.init) for c in specs if c.entry in ("supervised", "fixmatch")]
    assert len(paired) == len(set(paired)) == 2 * 2 * 2 * 2
    assert [c.draw for c in specs] == sorted(c.draw for c in specs)
    full = [(c.labels, c.draw, c.init) for c in specs if c.entry == "full"]
    assert full == [("all", 0, 0), ("all", 0, 1)], "nothing to draw among all labels"
    assert len(expand(small("labels=[100%]", only=("supervised",)))) == 1
    assert {c.init for c in specs if c.entry == "logistic"} == {0}, "a baseline has no initial weights"


def test_all_entries_of_a_draw_have_the_same_labels(data: ImageData) -> None:
    jobs = [(spec, jobs[-1].recipe.data) for spec, jobs in plan(small(), data) if spec.labels != "all"]
    for spec, config in jobs:
        budget = draw_budget(data.y_train, config.labels, config.split_seed or 0, 10)
        assert budget.hash == draw_budget(data.y_train, spec.labels, spec.draw, 10).hash
    small_, large = (set(draw_budget(data.y_train, n, 1, 10).index) for n in (20, "10%"))
    assert small_ < large


def test_one_pretraining_serves_every_budget_and_draw(data: ImageData) -> None:
    runs = [jobs for spec, jobs in plan(small(), data) if spec.entry in ("finetuned", "on_features")]
    assert len(runs) == 8 and all(jobs[0].stage == "pretrain" for jobs in runs)
    assert len({jobs[0].fingerprint for jobs in runs}) == 1
    assert len({jobs[-1].fingerprint for jobs in runs}) == 8
    assert len(list(unique_jobs(runs))) == 1 + 8
    other = [jobs for spec, jobs in plan(small("inits=[3]"), data) if spec.entry == "finetuned"]
    assert other[0][0].fingerprint != runs[0][0].fingerprint, "other initial weights are another pretraining"


def test_only_what_the_evaluated_stage_needs_is_run(data: ImageData) -> None:
    (jobs,) = [j for c, j in plan(small("labels=[20]", "draws=1"), data) if c.entry == "finetuned"]
    assert [job.stage for job in jobs] == ["pretrain", "finetune"]
    assert jobs[1].inputs == (("pretrain", jobs[0].fingerprint),)


def test_the_suites_network_and_defaults_reach_every_entry(data: ImageData) -> None:
    for spec, jobs in plan(small("model.width=5", "draws=1"), data):
        assert jobs[-1].recipe.model == {"name": "cnn", "width": 5} or spec.entry == "logistic"
    by_entry = {spec.entry: jobs[-1].recipe for spec, jobs in plan(small("draws=1"), data)}
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
    suite = small("compute=[recipe, 100 steps, 3 s]", "draws=1", "labels=[20]", WHOLE, only=("supervised", "finetuned"))
    plans = [plan_run(suite, spec, data).plan for spec in expand(suite)]
    kinds = {stage.name: step_kind(plan, stage) for plan in plans for stage in plan.stages}
    timing = {kinds["train"]: 0.01, kinds["pretrain"]: 0.05, kinds["finetune"]: 0.02}
    runs = {(spec.entry, spec.compute.text): jobs for spec, jobs in plan(suite, data, timing)}
    assert [job.steps for job in runs["finetuned", ""]] == [4, 200]
    assert sum(job.steps for job in runs["supervised", "100 steps"]) == 100
    assert [job.steps for job in runs["finetuned", "100 steps"]] == [2, 98]
    assert [job.steps for job in runs["supervised", "3 s"]] == [300]
    pretrain, finetune = runs["finetuned", "3 s"]
    assert finetune.steps / pretrain.steps == pytest.approx(50, rel=0.1)
    assert pretrain.seconds + finetune.seconds == pytest.approx(3, rel=0.03)
    with pytest.raises(SemisupError, match=r"entries\.supervised: compute 3 s: stage 'train' could not be timed"):
        plan(suite, data)


def test_seconds_have_the_choice_of_views_in_them(data: ImageData) -> None:
    entries = {
        "alone": {"train": {"method": {"name": "supervised"}, "augment": "auto", "steps": 200}},
        "both": {"train": {"method": {"name": "fixmatch"}, "augment": "auto", "steps": 200}},
        "chain": {"stages": {
            "first": {"method": {"name": "supervised"}, "augment": "auto", "steps": 900},
            "then": {"init": "first", "method": {"name": "supervised"}, "steps": 300},
        }},
    }  # fmt: skip
    suite = small(labels=[20], draws=1, baseline=None, compute=["recipe", "12 s", "6 s", "100 steps"], entries=entries)
    plans = [plan_run(suite, spec, data).plan for spec in expand(suite)]
    timing = {step_kind(plan, stage): 0.01 for plan in plans for stage in plan.stages}
    runs = {(spec.entry, spec.compute.text): jobs for spec, jobs in plan(suite, data, timing)}
    assert [job.steps for job in runs["alone", "12 s"]] == [300], "and 900 on labels alone"
    assert [job.steps for job in runs["both", "12 s"]] == [750], "and 900 of half as many images"
    assert [job.steps for job in runs["alone", "6 s"]] == [60], "and 9 x 60"
    assert [job.steps for job in runs["chain", "12 s"]] == [225, 75]
    assert [job.steps for job in runs["chain", "6 s"]] == [58, 20], "and 9 x 58"
    assert runs["alone", ""][0].seconds == pytest.approx(0.01 * (200 + 900))
    assert all(jobs[-1].steps == 100 for (entry, text), jobs in runs.items() if text == "100 steps" and len(jobs) == 1)
    for (entry, text), jobs in runs.items():
        if text.endswith(" s"):
            assert sum(job.seconds for job in jobs) == pytest.approx(float(text.split()[0]), rel=0.02), entry


def test_a_choice_among_stages_takes_the_time_of_what_it_trains_again(data: ImageData) -> None:
    stages = {
        "alone": {"method": {"name": "supervised"}},
        "more": {"init": "alone", "method": {"name": "fixmatch"}, "steps": 3},
        "best": {"kind": "best", "among": ["alone", "more"], "folds": 2, "repeats": 3},
    }
    suite = small(labels=[20], draws=1, baseline=None, entries={"chosen": {"stages": stages, "stage": "best"}})
    planned = [plan_run(suite, spec, data).plan for spec in expand(suite)]
    timing = {step_kind(plan, stage): 0.01 for plan in planned for stage in plan.stages}
    ((_, jobs),) = plan(suite, data, timing)
    assert [job.steps for job in jobs] == [6, 3, 0]
    assert [job.seconds for job in jobs] == pytest.approx([0.06, 0.03, 6 * 0.09])
    assert [job.seconds for job in plan(suite, data)[0][1]] == [0, 0, 0], "nothing was timed"


def test_draws_leave_out_the_parts_of_the_labels_in_turn_where_nothing_else_is_tested(tmp_path: Path) -> None:
    digits = load_data(DataConfig(source="digits"))
    npz = {"x_train": digits.x_train[:200], "y_train": digits.y_train[:200]}
    np.savez(tmp_path / "alone.npz", **npz)
    np.savez(tmp_path / "tested.npz", **npz, x_test=digits.x_test, y_test=digits.y_test)

    def loaded(name: str) -> tuple[Suite, Folds]:
        data = {"source": "npz", "path": str(tmp_path / f"{name}.npz"), "holdout": 0.33}
        return load_folds(small("draws=[0, 2, 4, 5]", "labels=[20, all]", only=("supervised",), data=data))

    suite, folds = loaded("alone")
    runs = [spec for spec in expand(suite) if spec.labels == "all"]
    assert [spec.draw for spec in runs] == [0, 2, 4], "5 is the third part again"
    assert folds.count == len(folds.parts) == 3 and 0.95 * 200 < folds.num_test < 210
    assert folds.of(5) is folds.of(2) is not folds.of(4)
    for spec in expand(suite):
        recipe = make_jobs(suite, plan_run(suite, spec, folds.of(spec.draw)), {})[-1].recipe
        assert load_data(recipe.data).hash == folds.of(spec.draw).hash, "as a worker reads it"
    suite, folds = loaded("tested")
    assert [spec.draw for spec in expand(suite) if spec.labels == "all"] == [0]
    assert folds.num_test == len(digits.x_test) and folds.of(5) is folds.of(0) and suite.data.holdout is None
    with pytest.raises(SemisupError, match=r"data\.fold: a suite varies it; give 'draws'"):
        small("data.fold=1")


def test_rounding_and_warm_up_do_not_change_a_length(data: ImageData) -> None:
    entry = {"recipe": "digits/quickstart", "overrides": ["stages.selftrain.schedule.warmup=300"]}
    suite = small(labels=[20], draws=1, baseline=None, compute=["100 steps", "7 steps"], entries={"chain": entry})
    long, short = (jobs for _, jobs in plan(suite, data))
    assert sum(job.steps for job in long) == 100
    assert sum(job.steps for job in short) == 7 and min(job.steps for job in short) == 1
    schedules = [jobs[-1].recipe.stages["selftrain"].schedule for jobs in (long, short)]
    assert schedules[0].warmup == pytest.approx(300 * long[2].steps / 600)
    assert schedules[1].warmup >= 1, "below 1 it would be a fraction of the stage"


def test_equal_steps_are_those_of_the_longest_entry(data: ImageData) -> None:
    """Baselines and all: in one key."""
    suite = small(
        "compute=[equal]", "draws=1", "labels=[20]", WHOLE, only=("supervised", "fixmatch", "finetuned", "logistic")
    )
    longest = longest_steps(suite, data)
    assert longest == {"20": 4 + 200}, "the chain's, of both its stages"
    planned = [plan_run(suite, spec, data) for spec in expand(suite)]
    jobs = {run.spec.entry: make_jobs(suite, run, {}, longest) for run in planned}
    steps = {entry: sum(job.steps for job in of_run) for entry, of_run in jobs.items()}
    assert steps == {"supervised": 204, "fixmatch": 204, "finetuned": 204, "logistic": 0}
    assert {run.spec.compute.text for run in planned} == {"equal steps"}


def test_a_step_kind_is_about_time_and_nothing_else(data: ImageData) -> None:
    def kind(*overrides: str) -> str:
        suite = small("draws=1", *overrides, only=("supervised",))
        planned = plan_run(suite, expand(suite)[0], data).plan
        return step_kind(planned, planned.stages[0])

    assert kind() == kind("labels=[30]", "inits=[5]", "entries.supervised.train.steps=9")
    assert kind() == kind("entries.supervised.train.optimizer={lr: 0.3, weight_decay: 0}"), "a search finds its times"
    assert kind() != kind("entries.supervised.train.optimizer={name: adamw}")
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
    trial = RunSpec("supervised", 40, 0, 0, suite.computes[0], ("optimizer.lr=0.1",), 0.5)
    final = dataclasses.replace(trial, validation=0.0)
    recipes = [make_jobs(suite, plan_run(suite, spec, data), {})[-1].recipe for spec in (trial, final)]
    assert [recipe.stages["train"].optimizer.lr for recipe in recipes] == [0.1, 0.1]
    assert [recipe.data.validation for recipe in recipes] == [0.5, 0.0]
    baseline = RunSpec("logistic", 40, 0, 0, suite.computes[0], ("C=0.01",), 0.5)
    assert make_jobs(suite, plan_run(suite, baseline, data), {})[-1].baseline == {
        "name": "logistic_regression",
        "C": 0.01,
    }


def test_everything_wrong_with_the_entries_shows_before_anything_runs(data: ImageData) -> None:
    suite = small(draws=1)
    suite.entries["fixmatch"].train["method"] = {"name": "fixmatch", "treshold": 0.5}
    suite.entries["finetuned"].stage = "finetun"
    suite.entries["on_features"].features = FeaturesConfig(recipe="digits/quickstat")
    with pytest.raises(SemisupError) as caught:
        check_entries(suite, data)
    message = str(caught.value)
    assert "method.treshold: unknown key; did you mean 'threshold'?" in message
    assert "there is no stage 'finetun'; did you mean 'finetune'?" in message
    assert "digits/quickstat: no such recipe" in message
    with pytest.raises(SemisupError, match="labels: 5 is 5 labeled images, fewer than one for each of 10 classes"):
        check_entries(small("labels=[5, 20]"), data)
    with pytest.raises(SemisupError) as caught:
        check_entries(small("model={name: cnn, widht: 3}", "precision=fp16", "labels=[5]"), data)
    assert str(caught.value).count("unknown key") == 1, "what all entries share is said once"
    assert "3 problems" in str(caught.value)


def test_what_several_processes_cannot_share_is_refused_before_anything_runs(data: ImageData) -> None:
    suite = small("draws=1", "gpus_per_run=2", "entries.fixmatch.train.activation_checkpointing=true")
    with pytest.raises(
        SemisupError, match=r"entries\.fixmatch: 2 processes .*activation_checkpointing: is for one process"
    ):
        check_entries(suite, data)
    check_entries(suite.model_copy(update={"gpus_per_run": 1}), data)


def test_a_suite_has_no_network_that_hangs_on_the_number_of_processes(data: ImageData) -> None:
    entry = {"recipe": "digits/quickstart", "overrides": ["sync_batchnorm=false"]}
    suite = small("draws=1", "gpus_per_run=2", entries={"own": entry}, baseline=None)
    with pytest.raises(SemisupError, match=r"entries\.own: 2 processes by gpus_per_run: sync_batchnorm: false makes"):
        check_entries(suite, data)
    check_entries(suite.model_copy(update={"gpus_per_run": 1}), data)


def test_a_search_needs_two_labels_per_class(data: ImageData) -> None:
    with pytest.raises(SemisupError, match=r"data\.validation: takes at least one label of every class"):
        check_entries(small(**{**SEARCHED, "labels": [10]}), data)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"recipe": "digits/quickstart", "stage": "pretrain", "search": {"stages.pretrain.method.hidden": [8, 9, 10]}},
         "search: stage 'pretrain' classifies nothing, so nothing says which trial is best"),
        ({"baseline": {"name": "logistic_regression"}, "search": {"Cx": [1, 2, 3]}},
         "search.Cx: unknown key"),
        ({"train": {"method": {"name": "fixmatch"}}, "search": {"method.treshold": [0.5, 0.6, 0.7]}},
         "method.treshold: unknown key; did you mean 'threshold'?"),
    ],
)  # fmt: skip
def test_a_search_is_checked_before_it_starts(entry: dict[str, Any], problem: str, data: ImageData) -> None:
    searched = {**SEARCHED, "entries": {**SEARCHED["entries"], "wrong": entry}}
    with pytest.raises(SemisupError) as caught:
        check_entries(small(**searched), data)
    assert problem in str(caught.value)


def test_an_entrys_own_length_replaces_the_default(data: ImageData) -> None:
    suite = small("labels=[20]", "draws=1", only=("supervised",))
    suite.entries["supervised"].train["epochs"] = 4
    ((_, jobs),) = plan(suite, data)
    assert jobs[0].steps == 5, "4 x 20 images / 16"


def test_jobs_do_not_depend_on_where_they_run(data: ImageData) -> None:
    """The recipe that travels says its precision, so that a worker with a GPU plans the same fingerprints."""
    for _, jobs in plan(small("draws=1"), data):
        assert {job.recipe.precision for job in jobs} == {"fp32"}
        assert np.all([len(job.fingerprint) == 20 for job in jobs])
