"""What looks on while a method trains: log, quality of pseudo-labels, collapse, looks at a test set, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from semisup.engine.checkpoint import load_checkpoint, save_checkpoint
from semisup.engine.training import Training
from semisup.errors import SemisupError, first_line
from semisup.evaluate import collapse_panel, collapsed
from semisup.methods import PseudoLabels, Update

__all__ = ["Checkpoints", "CollapseError", "CollapseWatch", "Log", "Looks", "Observer", "Quality"]

PANEL = "collapse/"
"""What the names of the measures of embeddings begin with in the log."""
GRACE = 0.1
"""Part of the steps in which embeddings may be collapsed: a fresh network's may well be, before it has learned."""


class CollapseError(SemisupError):
    """The embeddings have become one and the same for all images, or lie on a line."""


class Observer:
    """Somebody who looks on; at each of these moments nothing is done unless a class says otherwise.

    Observers are called in the order in which `fit` was given them. They must not change the method.
    """

    def begins(self, run: Training) -> None:
        """Before the first step of this sitting."""

    def measures(self, run: Training, update: Update) -> dict[str, Tensor]:
        """After an update was applied: 0-d terms to log, NaN where there is nothing to measure."""
        return {}

    def reports(self, run: Training) -> None:
        """After every `log_every` steps and after the last: `run.terms` are the means since the last report."""

    def steps(self, run: Training) -> None:
        """After every step, and after its report."""

    def stops(self, run: Training) -> None:
        """Ctrl-C was pressed; the step is finished."""


class Log(Observer):
    """Hands on the reported terms.

    Args:
        on_log: gets the number of finished steps and the terms. Both are the same however often the run was killed.
    """

    def __init__(self, on_log: Callable[[int, dict[str, float]], None]) -> None:
        self.on_log = on_log

    def reports(self, run: Training) -> None:
        """Hand on the terms."""
        self.on_log(run.step, run.terms)


class Quality(Observer):
    """Measures a step's pseudo-labels against the hidden labels.

    Args:
        evaluate: pseudo-labels -> terms.
    """

    def __init__(self, evaluate: Callable[[PseudoLabels], dict[str, Tensor]]) -> None:
        self.evaluate = evaluate

    def measures(self, run: Training, update: Update) -> dict[str, Tensor]:
        """Evaluate the pseudo-labels of an update that has some."""
        return {} if update.pseudo_labels is None else self.evaluate(update.pseudo_labels)


class CollapseWatch(Observer):
    """Measures the embeddings that a method hands over, at the reported steps alone: it costs.

    Args:
        stop: raise when they have collapsed (see `semisup.evaluate.collapse`), from a tenth of the steps on.
    """

    def __init__(self, *, stop: bool = False) -> None:
        self.stop = stop

    def measures(self, run: Training, update: Update) -> dict[str, Tensor]:
        """Measure the embeddings."""
        if update.embeddings is None or not run.reports:
            return {}
        return {PANEL + name: value for name, value in collapse_panel(*update.embeddings).items()}

    def reports(self, run: Training) -> None:
        """Stop a run that has collapsed.

        Raises:
            CollapseError: names the step and the measure.
        """
        step = run.step - 1
        if not self.stop or step < GRACE * run.settings.steps:
            return
        problem = collapsed({name.removeprefix(PANEL): v for name, v in run.terms.items() if name.startswith(PANEL)})
        if problem is not None:
            raise CollapseError(
                f"step {step}: the embeddings have collapsed, {PANEL}{problem}. Try a smaller learning rate, a larger "
                f"batch, or more weight on what keeps the embeddings apart (temperature, variance and covariance "
                f"terms, predictor and target network); stop_on_collapse: false trains on"
            )


class Looks(Observer):
    """Looks at the network that would be evaluated now; the time of that is not training's.

    Args:
        every: steps between looks; there is one after the last step too.
        look: gets the number of finished steps and the network.
    """

    def __init__(self, every: int, look: Callable[[int, nn.Module], None]) -> None:
        self.every = every
        self.look = look

    def steps(self, run: Training) -> None:
        """Look, if it is time."""
        if run.step % self.every == 0 or run.done:
            with run.paused():
                self.look(run.step, run.predictor())


class Checkpoints(Observer):
    """Resumes from a file, and writes it from time to time and when Ctrl-C is pressed.

    Args:
        path: of the checkpoint.
        seconds: least time between two.
    """

    def __init__(self, path: Path, seconds: float = 30.0) -> None:
        self.path = path
        self.every = seconds
        self._latest = 0.0

    def begins(self, run: Training) -> None:
        """Go back to where the checkpoint was written, if there is one.

        Raises:
            SemisupError: the checkpoint is damaged or of another run.
        """
        for torn in self.path.parent.glob(f".{self.path.name}.*.tmp"):  # of a process killed while it wrote
            torn.unlink(missing_ok=True)
        if self.path.exists():
            state = load_checkpoint(self.path, torch.device("cpu"))  # a second copy on the device might not fit
            try:
                run.load(state)
            except (KeyError, IndexError, TypeError, AttributeError, RuntimeError, ValueError) as error:
                what = f"{type(error).__name__}: {first_line(error)}"
                message = f"{self.path}: the checkpoint of another run ({what}); delete it to start"
                raise SemisupError(message) from error
            run.kept = self.path
        self._latest = time.perf_counter()

    def steps(self, run: Training) -> None:
        """Write one, if it is time."""
        if time.perf_counter() - self._latest > self.every:
            self.stops(run)

    def stops(self, run: Training) -> None:
        """Write one now.

        Raises:
            NonFiniteLossError: the weights are not fit to be kept; the checkpoint before is.
            SemisupError: it cannot be written.
        """
        run.check_finite()
        save_checkpoint(self.path, run.state())
        run.kept = self.path
        self._latest = time.perf_counter()
