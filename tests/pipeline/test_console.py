"""What a run says: plain lines in a file, a bar on a terminal."""

from __future__ import annotations

import dataclasses
import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from semisup.errors import SemisupError
from semisup.pipeline import make_plan, run
from semisup.pipeline.console import PLAIN_SECONDS, Reporter, StageProgress
from semisup.pipeline.plan import StagePlan
from semisup.pipeline.result import StageResult
from tests.pipeline.pipeline_small import small


@pytest.fixture(scope="module")
def stage() -> StagePlan:
    return dataclasses.replace(make_plan(small()).stages[0], steps=100, images_per_step=50)


def test_names_of_folders_are_said_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter()
    reporter.say("results: runs/:cat:/[b]x\x1b[2J\nnext: \u202e")
    reporter.warn("runs/:cat:/[b]x\x1b[2J is replaced")
    said = capsys.readouterr()
    assert said.out == "results: runs/:cat:/[b]x\\x1b[2J\nnext: \\u202e\n"
    assert said.err == "warning: runs/:cat:/[b]x\\x1b[2J is replaced\n"


@pytest.mark.parametrize("key", ["", "loss.logit_adjustment=1", "loss.class_weights=auto", "batch.balanced=true"])
def test_unequal_classes_are_told_and_what_trains_for_them_only_where_nothing_does(key: str) -> None:
    keys = [f"stages.finetune.{key}"] if key else []
    plan = make_plan(small("data.long_tail=20", "data.labels=all", "stages.finetune.batch.labeled=8", *keys))
    reporter, text = plain()
    reporter.show_plan(plan, set())
    said = " ".join(text.getvalue().split())
    assert "read balanced accuracy (test/balanced_accuracy), the mean over classes" in said
    assert ("loss.logit_adjustment=1 trains for it" in said) == (not key)


@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        ("{batch: {balanced: true}, loss: {logit_adjustment: 1}}", "batch.balanced: .* as loss.logit_adjustment would"),
        ("{loss: {class_weights: auto, logit_adjustment: 1}}", "loss.logit_adjustment: .* as loss.class_weights would"),
        ("{loss: {class_weights: balanced}}", "loss.class_weights: must be auto, not 'balanced'"),
    ],
)
def test_unequal_classes_are_made_up_for_once(stage: str, problem: str) -> None:
    with pytest.raises(SemisupError, match=rf"stages\.finetune\.{problem}"):
        make_plan(small(f"stages.finetune={stage}"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless told to go on."""
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def plain() -> tuple[Reporter, io.StringIO]:
    reporter, text = Reporter(), io.StringIO()
    reporter.console = Console(file=text, width=150)
    return reporter, text


def terminal() -> tuple[Reporter, io.StringIO]:
    reporter, text = Reporter(), io.StringIO()
    reporter.console = Console(file=text, width=150, force_terminal=True)
    return reporter, text


def test_the_first_lines_are_printed_at_once(stage: StagePlan) -> None:
    reporter, text = plain()
    with reporter.progress(stage) as bar:
        assert text.getvalue() == "pretrain 0/100\n"
        bar.update(1, {"loss/main": 2.0, "contrastive": 2.0, "lr": 0.1})
        assert text.getvalue().splitlines()[1] == "pretrain 1/100 contrastive 2"


def test_of_the_collapse_panel_the_two_that_tell_most_are_shown(stage: StagePlan) -> None:
    reporter, text = plain()
    with reporter.progress(stage) as bar:
        bar.update(1, {"contrastive": 2.0, "collapse/std": 0.5, "collapse/rank": 12.34, "collapse/positive": 0.9})
    assert text.getvalue().splitlines()[1] == "pretrain 1/100 contrastive 2 std 0.5 rank 12.3"


def test_plain_lines_come_every_few_seconds_and_at_the_end(stage: StagePlan, clock: list[float]) -> None:
    reporter, text = plain()
    with reporter.progress(stage) as bar:
        for step in range(10, 101, 10):
            bar.update(step, {"contrastive": 1.0})
            clock[0] += 2.0
    steps = [int(line.split()[1].split("/")[0]) for line in text.getvalue().splitlines()]
    every = int(-(-PLAIN_SECONDS // 2.0)) * 10  # steps in the first multiple of 2 s that is long enough
    assert steps == [0, *range(10, 101, every), *([] if (100 - 10) % every == 0 else [100])]


def test_the_rate_is_images_per_step_over_time(stage: StagePlan, clock: list[float]) -> None:
    reporter, text = plain()
    with reporter.progress(stage) as bar:
        bar.update(20, {"contrastive": 1.0})
        clock[0] += 10.0
        bar.update(60, {"contrastive": 0.5, "pseudo_labels_of_batch/coverage": 0.25})
    # 40 steps of 50 images in 10 s; 40 steps are left.
    last = text.getvalue().splitlines()[-1]
    assert last == "pretrain 60/100 contrastive 0.5 coverage 0.25 | 200 images/s | 10 s left"


def test_a_resumed_stage_counts_its_rate_from_where_it_went_on(stage: StagePlan, clock: list[float]) -> None:
    reporter, text = plain()
    with reporter.progress(stage) as bar:
        bar.update(90, {})
        clock[0] += 10.0
        bar.update(92, {})
    assert "| 10 images/s | 40 s left" in text.getvalue()


def test_a_resumed_stage_does_not_begin_at_nothing(stage: StagePlan) -> None:
    reporter, text = plain()
    with reporter.progress(stage, resumes=True) as bar:
        assert text.getvalue() == f"{stage.name}: goes on\n"
        bar.update(90, {})
    assert "0/100" not in text.getvalue().replace("90/100", "")


def test_lines_and_warnings_reach_the_log(caplog: pytest.LogCaptureFixture) -> None:
    reporter, _ = plain()
    with caplog.at_level("INFO", logger="semisup"):
        reporter.say("a [line]")
        reporter.warn("100% [odd]")
    assert [(r.name, r.levelname, r.message) for r in caplog.records] == [
        ("semisup", "INFO", "a [line]"),
        ("semisup", "WARNING", "100% [odd]"),
    ]


def test_a_terminal_has_a_bar_with_terms_rate_and_time_left(stage: StagePlan, clock: list[float]) -> None:
    reporter, text = terminal()
    with reporter.progress(stage) as bar:
        assert isinstance(bar, StageProgress)
        bar.update(20, {"contrastive": 1.25})
        clock[0] += 10.0
        bar.update(60, {"contrastive": 0.5})
        assert bar.progress is not None
        bar.progress.refresh()
    shown = text.getvalue()
    assert "━" in shown
    assert "60/100" in shown
    assert "contrastive 0.5 | 200 images/s" in shown
    assert "pretrain 0/100\n" not in shown


def test_a_stage_without_steps_has_no_progress(stage: StagePlan) -> None:
    for reporter, text in (plain(), terminal()):
        with reporter.progress(dataclasses.replace(stage, steps=0)):
            pass
        assert text.getvalue() == ""


def test_square_brackets_are_only_brackets(stage: StagePlan) -> None:
    """A path or a server's message may look like rich's markup, which would vanish or raise."""
    reporter, text = plain()
    reporter.errors = Console(file=text, width=150)
    reporter.say("results: runs/[red]/[/x]/result.json")
    reporter.warn("MLflow does not answer [errno 111] [/bold]")
    with reporter.progress(stage) as bar:
        bar.update(1, {"[/a]": 1.0})
    assert text.getvalue().splitlines()[:2] == [
        "results: runs/[red]/[/x]/result.json",
        "warning: MLflow does not answer [errno 111] [/bold]",
    ]
    assert "[/a] 1" in text.getvalue()


def test_a_finished_stage_is_one_line_without_what_could_not_be_measured() -> None:
    reporter, text = plain()
    metrics = {"test/accuracy": 0.5, "pseudo_labels/coverage": 0.0, "pseudo_labels/kept_accuracy": None}
    reporter.stage_done(StageResult("s", "fixmatch", "f", "resumed", 9, 1.25, 10.0, 5, metrics))
    assert text.getvalue() == "s resumed, 1.2 s: test/accuracy 0.5000, pseudo_labels/coverage 0.0000\n"


def test_a_run_prints_plan_progress_and_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(small(), out=tmp_path / "a")
    first = capsys.readouterr().out
    run(small(), out=tmp_path / "a")
    second = capsys.readouterr().out
    assert "pretrain 4/4" in first
    assert "pretrain 4/4" not in second
    for text in (first, second):
        lines = text.splitlines()
        (start,) = [i for i, line in enumerate(lines) if line.startswith("method ")]
        titles = [line.split("  ")[0].strip() for line in lines[start - 1 :]]
        assert titles[:9] == [
            *("stage", "method", "status", "parameters", "time"),
            *("accuracy", "balanced", "macro F1", "majority class"),
        ]
        assert {"NLL", "ECE", "coverage", "kNN"} <= set(titles)
        assert text.splitlines()[-1] == f"results: {tmp_path / 'a' / 'result.json'}, {tmp_path / 'a' / 'report.html'}"
    assert second.count("done before") == 4
    assert "done before" not in first


def test_quiet_is_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(small("stages.pretrain.steps=1", "stages.finetune.steps=1"), out=tmp_path / "a", quiet=True)
    out, err = capsys.readouterr()
    assert out == "" and all(line.startswith("warning: ") for line in err.splitlines())
