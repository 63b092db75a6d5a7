"""What is counted as a step, as its bare step and as its views; how the outcome is shown and kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import publish
import pytest
import speed_results
import startup
import throughput
import torch
from torch import Tensor, nn

from semisup.methods import METHODS
from semisup.stages.training import fit_stage


class World:
    """A clock that goes on only when something says how long it takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def batches(self) -> Any:
        def policy(images: Tensor, generator: torch.Generator, *, part: object = None) -> Tensor:
            self.now += 3.0
            return images

        class Batches:
            images_per_step = 4

            def __init__(batches) -> None:
                batches.labeled_policies: dict[str, Any] = {}
                batches.unlabeled_policies: dict[str, Any] = {"strong": policy}

            def __call__(batches, step: int) -> int:
                self.now += 2.0  # reading
                batches.unlabeled_policies["strong"](torch.zeros(1), torch.Generator())
                return step

        return Batches()

    def bare(self) -> Any:
        class Bare:
            loaded = 0

            def load(bare, calls: list[Any]) -> None:
                bare.loaded += 1

            def __call__(bare) -> None:
                self.now += 20.0

        return Bare()


def test_a_step_is_everything_between_two_batches_but_the_bare_step() -> None:
    world = World()
    bare = world.bare()
    in_turn = throughput.InTurn(world.batches(), nn.Linear(1, 1), bare, 4, world.clock)  # type: ignore[arg-type]
    for step in range(9):
        assert in_turn(step) == step  # type: ignore[comparison-overlap]
        world.now += 10.0 + (7.0 if step % 4 == 3 else 0.0)  # the rest of the step; the last of a block reports
    blocks = in_turn.blocks[:2]
    for block in blocks:
        assert block.step == [15.0, 15.0, 22.0]  # the first was watched
        assert block.bare == [20.0, 20.0, 20.0]
        assert block.batch == [5.0, 5.0, 5.0]
        assert block.views == {"unlabeled strong": [3.0, 3.0, 3.0]}
    assert bare.loaded == 2  # anew in every block
    found = throughput.summary(blocks)
    assert found.ratio.median == pytest.approx(52 / 60)
    assert (found.batch, found.view) == (pytest.approx(15 / 52), pytest.approx(9 / 52))
    assert (found.step_ms, found.bare_ms) == (15_000.0, 20_000.0)


TINY = throughput.Case(
    "tiny",
    "fashion_mnist/fixmatch",
    "train",
    (12, 1, 64),
    ("model={name: wrn, depth: 10, width: 1}", "data.labels=20", "stages.train.batch={labeled: 2, unlabeled: 14}"),
    block=3,
)


def test_a_case_goes_through_the_engine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    def watched(context: Any, method: Any, batches: Any) -> Any:
        result = fit_stage(context, method, batches)
        steps.append(context.steps)
        assert (context.folder / "events.jsonl").read_text(encoding="utf-8").count('"metrics"') == 4
        return result

    monkeypatch.setattr(throughput, "fit_stage", watched)
    monkeypatch.setattr(throughput, "committed", lambda name: {"cases": {"tiny": {"median": 1.234}}})
    throughput.run_steps([dataclasses.replace(TINY, goal=1.1)], 2, to=None)
    assert steps == [10]
    printed = capsys.readouterr().out
    assert "1.23" in printed and "load" in printed
    found = throughput.measure(TINY, 2, busy=True)
    assert found.ratio.median > 1.0  # next to a network this small the rest is a lot
    assert 0 < found.view < found.batch < 1


def test_every_method_has_a_case_but_those_that_gray_images_do_not_suit() -> None:
    named = {case.name.split()[0] for case in [*throughput.NAMED, *throughput.other_cases()]}
    assert set(METHODS) - named == {"colorization"}
    assert all(case.goal == throughput.GOAL for case in throughput.NAMED)


def test_compiling_breaks_even_when_it_has_saved_what_it_took() -> None:
    ratio = throughput.Ratio(1.0, 1.0, 1.0)
    assert throughput.Compiled(ratio, 30.0, 80.0, 50.0).break_even == pytest.approx(1000)
    assert throughput.Compiled(ratio, 30.0, 50.0, 50.0).break_even == float("inf")


def test_what_is_kept_are_ratios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_results, "RESULTS", tmp_path)
    measured = throughput.Measured(throughput.Ratio(1.05, 1.01, 1.09), 31.0, 29.0, 0.04, 0.02)
    monkeypatch.setattr(throughput, "measure", lambda case, blocks, busy: measured)
    throughput.run_steps([dataclasses.replace(TINY, goal=1.1)], 2, to="throughput")
    kept = json.loads((tmp_path / "throughput.json").read_text(encoding="utf-8"))
    assert kept["cases"] == {
        "tiny": {"goal": 1.1, "median": 1.05, "low": 1.01, "high": 1.09, "batch": 0.04, "view": 0.02}
    }
    table = (tmp_path / "throughput.md").read_text(encoding="utf-8")
    assert table.splitlines()[0].replace(" ", "") == "|step|ratio(95%)|goal|batch%|view%|"
    assert "31.0" not in table
    assert speed_results.committed("throughput") == kept and speed_results.committed("nothing") == {}
    throughput.run_steps([dataclasses.replace(TINY, name="other")], 2, to="throughput")  # as with --only
    both = json.loads((tmp_path / "throughput.json").read_text(encoding="utf-8"))["cases"]
    assert both["tiny"] == kept["cases"]["tiny"]
    assert both["other"]["goal"] is None
    assert [line.split("|")[1].strip() for line in (tmp_path / "throughput.md").read_text().splitlines()[2:4]] == [
        "tiny",
        "other",
    ]


def test_the_readme_takes_the_lines_that_it_names() -> None:
    text = "| a | b |\n| - | - |\n| x one | 1 |\n| y two | 2 |\n| z one | 3 |\n\nnote\n"
    assert publish.some_lines(text, ["one"]).splitlines()[2:] == ["| x one | 1 |", "| z one | 3 |"]
    assert publish.some_lines(text, []).splitlines() == text.splitlines()[:5]


def test_the_first_step_is_the_first_number_of_a_stage(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    assert startup.first_step(events) is None
    lines = [
        {"event": "run_start", "time": 1.0},
        {"event": "metrics", "stage": None, "time": 2.0},
        {"event": "metrics", "stage": "a", "time": 3.0},
        {"event": "metrics", "stage": "a", "time": 4.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    for length in range(len(text)):  # whatever of the file has been written when it is read
        events.write_text(text[:length], encoding="utf-8")
        whole = text[:length].count("\n")
        assert startup.first_step(events) == (3.0 if whole >= 3 else None)


def test_a_failed_run_has_no_memory_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "semisup"
    script.write_text("#!/bin/sh\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(startup, "SEMISUP", script)
    with pytest.raises(RuntimeError, match="exit status 3"):
        startup.fixmatch_bytes()
    script.write_text("#!/bin/sh\nexit 0\n")
    assert startup.fixmatch_bytes() > 1e6


def test_lightly_has_its_turn_after_every_block_but_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    import against_lightly

    world, turns = World(), SimpleNamespace(lightly=0, steps=[])

    def lightly() -> float:  # seconds of its own process's clock
        turns.lightly += 1
        world.now += 110.0
        return 100.0

    monkeypatch.setattr(against_lightly.time, "perf_counter", world.clock)
    in_turn = against_lightly.InTurn(world.batches(), nn.Linear(1, 1), world.bare(), lightly, 3)  # type: ignore[arg-type]
    for step in range(10):  # (2 blocks + 1) * 3 + 1
        assert in_turn(step) == step  # type: ignore[comparison-overlap]
        world.now += 10.0
    assert in_turn.seconds == {"semisup": [45.0, 45.0], "lightly": [100.0, 100.0], "bare": [60.0, 60.0]}
    assert turns.lightly == 2
