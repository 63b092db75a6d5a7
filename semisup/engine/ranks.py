"""The processes that share one run: who this one is, and what they tell each other.

Membership belongs to the process, as in `torch.distributed`: without a process group there is one rank, and everything
here does nothing. How a step is shared is `semisup.engine.split`'s matter; see docs/scale.md.
"""

from __future__ import annotations

import math
import os
import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from semisup.engine.lines import Lines, open_lines
from semisup.errors import SaidElsewhereError, SemisupError, first_line, from_system
from semisup.signals import told

__all__ = [
    "FailedRankError",
    "LostRankError",
    "agreeing",
    "any_rank",
    "at_one_step",
    "average",
    "crowd",
    "from_first",
    "hear",
    "joined",
    "longest_wait",
    "own_rows",
    "rank",
    "same_everywhere",
    "shares",
    "size",
    "started_by_torchrun",
    "step_together",
    "tell",
    "total",
    "whole",
    "with_grace",
]

TIMEOUT = "SEMISUP_RANKS_TIMEOUT"
"""Environment variable: seconds that a rank waits for the others within a step; 600 without it."""
PATIENCE = timedelta(days=365)
"""Longest time that may be asked for. Between steps there is none: data are read, networks evaluated and locks waited
for as long as it takes; who has ended, or cannot be reached any more, is noticed."""
SHUTDOWN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""Environment variable: seconds from a signal to the kill of processes that torchrun has started; 30 without it."""
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets."""
OWN = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))
"""What a rank's own GPU raises wherever it is noticed, in a message too: the others are not to blame."""
PER_CORE = 4
"""Most processes on a core: more gain nothing, and each needs some 300 MB for its libraries."""


ENDING = 20.0
"""Seconds that rank 0 has to end and to say why, before another rank does."""
SAYING = 1.0
"""Seconds that a rank stays after the first one has hung up: torchrun ends all as soon as one has ended, the first one
too, which may be about to say what is wrong."""


class LostRankError(SemisupError):
    """Another rank has ended or cannot be reached."""


class FailedRankError(SemisupError):
    """A rank has met what no check foresaw, such as a full memory; the message names it."""

    exit_code = 1


class _Process:
    """What belongs to this process, besides torch's default group."""

    words: Any = None
    """For messages of the hosts, whatever device they compute on."""
    lines: Lines | None = None
    """For words that may take any time."""
    at_one_step = False
    """Whether all ranks are at one and the same training step."""


def started_by_torchrun() -> bool:
    """Return whether this process is one of several that torchrun has started."""
    return all(os.environ.get(name) for name in VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


def rank() -> int:
    """Return the number of this process, 0 if it is alone."""
    return dist.get_rank() if size() > 1 else 0


def size() -> int:
    """Return how many processes share the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun has started next to this one, for as long as the context lasts.

    Raises:
        SemisupError: there are fewer GPUs here than ranks, or the time that a rank waits is none.
        LostRankError: the others cannot be reached.
        FailedRankError: on rank 0, an error that no check foresaw has ended this rank, or the first that failed.
        SaidElsewhereError: on the others, rank 0 says what is wrong.
    """
    if not started_by_torchrun() or size() > 1:
        yield
        return
    here = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        if here >= torch.cuda.device_count():
            raise SemisupError(f"ranks: rank {here} of this machine has no GPU, {torch.cuda.device_count()} are here")
        torch.cuda.set_device(here)  # from here on "cuda" means this one
    wait = longest_wait()
    with _within_reach():
        store, number, count = next(rendezvous("env://", timeout=wait))
        # Of a job that torchrun has started again the addresses of its former life are still there.
        store = PrefixStore(f"semisup {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=wait, store=store, rank=number, world_size=count)
        _Process.words = dist.new_group(backend="gloo", timeout=wait)
        lines = _Process.lines = open_lines(number, count, wait, same_everywhere)
    try:
        yield
    except Exception as error:
        if told():  # what a signal has broken off, such as the import of a library
            raise
        if not isinstance(error, LostRankError | SaidElsewhereError):
            lines.fail(_named(error, number))  # first of all: whoever has lost this rank looks for it here
        # Whoever waits for this rank is let go: connections end with the last name of their group.
        _Process.words = _Process.lines = None
        dist.destroy_process_group()
        ending = _first_ends(error, lines) if number == 0 else _other_ends(error, number, lines)
        if ending is error:
            raise
        raise ending from error
    finally:
        lines.close()
        _Process.words = _Process.lines = None
        if dist.is_initialized():
            dist.destroy_process_group()


def _first_ends(error: Exception, lines: Lines) -> Exception:
    """Return what rank 0 ends with: why all end, in its own words or in those of the rank that it has lost."""
    if isinstance(error, LostRankError):
        why = lines.listen(SAYING)
        lines.fail("")
        return error if why is None else FailedRankError(why)
    return error if isinstance(error, SemisupError | OSError) else FailedRankError(_named(error, 0))


def _other_ends(error: Exception, number: int, lines: Lines) -> Exception:
    """Return what another rank ends with: nothing to say once rank 0, which says why, has ended; else its own error."""
    if isinstance(error, SaidElsewhereError):
        said = lines.wait()
    elif isinstance(error, LostRankError):
        said = lines.listen(ENDING) is not None and lines.wait()
    else:
        said = lines.wait(ENDING)
    if said:
        time.sleep(SAYING)
        return SaidElsewhereError("rank 0 says what is wrong")
    return error if isinstance(error, LostRankError) else FailedRankError(_named(error, number))


def _named(error: Exception, number: int) -> str:
    """Say which rank has failed, how and, of what no check foresaw, where."""
    if isinstance(error, SemisupError):
        return f"rank {number}: {error}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"rank {number}: {from_system(error)}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    said = first_line(error) if str(error).strip() else "it says nothing else"
    return f"rank {number}: {type(error).__name__}: {said} ({Path(frame.filename).name}, line {frame.lineno})"


def crowd(processes: int, *, share_gpus: bool = False) -> str:
    """Return why so many processes are too many for this machine; nothing where they are not.

    Args:
        processes: how many.
        share_gpus: whether several may compute on one GPU, which ranks of one run cannot.
    """
    gpus, cores = 0 if share_gpus else torch.cuda.device_count(), os.cpu_count() or 1
    most = gpus or PER_CORE * cores
    here = f"the GPUs that are here: {gpus}" if gpus else f"{PER_CORE} for each of {cores} cores"
    return "" if processes <= most else f"must be at most {most}, not {processes} ({here})"


def with_grace(seconds: float) -> dict[str, str]:
    """Return the environment in which torchrun lets its processes have so many seconds to end, and ten to say so."""
    return {SHUTDOWN: str(math.ceil(seconds) + 10)}


def longest_wait() -> timedelta:
    """Return how long a rank waits for the others within a step.

    Raises:
        SemisupError: the environment variable says no such time.
    """
    said = os.environ.get(TIMEOUT, "600")
    try:
        wait = timedelta(seconds=float(said))
    except (ValueError, OverflowError):
        wait = timedelta()
    if not timedelta(seconds=1) <= wait <= PATIENCE:
        raise SemisupError(
            f"{TIMEOUT}: must be a number of seconds from 1 to {PATIENCE.total_seconds():.0f}, not '{said}'"
        )
    return wait


@contextmanager
def _within_reach() -> Iterator[None]:
    """Say in words that another rank is gone.

    Raises:
        LostRankError: instead of torch's RuntimeError, or a line's OSError.
    """
    try:
        yield
    except OWN:
        raise
    except (RuntimeError, OSError) as error:
        what = re.sub(r"^\[.*?\] ", "", first_line(error)).partition(". ")[0]  # without the line of gloo's source
        raise LostRankError(
            f"rank {os.environ.get('RANK', '0')}: lost touch with the other ranks; the one that ended first says why, "
            f"and the same command goes on from the last checkpoint ({what})"
        ) from error


@contextmanager
def agreeing() -> Iterator[None]:
    """Let no rank go on from the end of this context unless all can; one of them says why not.

    Raises:
        SemisupError: that of this rank, or on rank 0 that of the first rank that has one.
        SaidElsewhereError: another rank says it.
    """
    mine: SemisupError | None = None
    try:
        yield
    except SemisupError as error:
        if size() == 1:
            raise
        mine = error
    if not any_rank(mine is not None):
        return
    found: list[str | None] = [None] * size()
    with _within_reach():
        dist.all_gather_object(found, None if mine is None else str(mine), group=_Process.words)
    if rank() > 0:
        raise SaidElsewhereError("rank 0 says what is wrong")
    raise mine or SemisupError(next(f"rank {number}: {words}" for number, words in enumerate(found) if words))


@contextmanager
def step_together() -> Iterator[None]:
    """Within this context, which all ranks enter, work is shared; what a rank does outside of it is its own."""
    before = _Process.at_one_step
    _Process.at_one_step = size() > 1
    try:
        yield
    finally:
        _Process.at_one_step = before


def at_one_step() -> bool:
    """Return whether several ranks are at one and the same training step."""
    return _Process.at_one_step


# Rows of a batch ------------------------------------------------------------------------------------------------------


def own_rows(count: int, rank_: int | None = None) -> slice:
    """Return which of `count` rows are this rank's (or another's): parts that differ by one row at most."""
    number = rank() if rank_ is None else rank_
    return slice(count * number // size(), count * (number + 1) // size())


def shares(count: int, like: Tensor) -> Tensor:
    """Return what part of `count` rows each rank has (`own_rows`), (R,) of the type of `like` and on its device.

    It is computed there: for numbers that are sent to a GPU its host would wait.
    """
    ends = torch.arange(size() + 1, device=like.device) * count // size()
    return ends.diff().to(like.dtype) / count


def whole(part: Tensor, count: int) -> Tensor:
    """Return all `count` rows of which each rank has a part (`own_rows`); without gradient.

    Images in channels_last memory arrive in it.
    """
    if part.ndim == 4 and part.is_contiguous(memory_format=torch.channels_last) and not part.is_contiguous():
        return whole(part.permute(0, 2, 3, 1), count).permute(0, 3, 1, 2)
    rows = [own_rows(count, other) for other in range(size())]
    lengths = [row.stop - row.start for row in rows]
    padded = part.contiguous()
    if len(part) < max(lengths):
        padded = torch.cat([padded, part.new_zeros(max(lengths) - len(part), *part.shape[1:])])
    gathered = part.new_empty(size() * max(lengths), *part.shape[1:])
    with _within_reach():
        dist.all_gather(list(gathered.chunk(size())), padded)
    if min(lengths) == max(lengths):
        return gathered
    return torch.cat([block[:length] for block, length in zip(gathered.chunk(size()), lengths, strict=True)])


# Gradients and states -------------------------------------------------------------------------------------------------


def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one type by their means over the ranks: one message, however many there are."""
    _as_one(tensors, lambda flat: total(flat).div_(size()))


def from_first(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one type by rank 0's: one message, however many there are."""

    def send(flat: Tensor) -> None:
        with _within_reach():
            dist.broadcast(flat, 0)

    _as_one(tensors, send)


def _as_one(tensors: Sequence[Tensor], change: Callable[[Tensor], object]) -> None:
    """Change tensors of one type in place, all their numbers at once."""
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    change(flat)
    for tensor, changed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(changed.view(tensor.shape))


def total(tensor: Tensor) -> Tensor:
    """Sum a tensor over the ranks in place, and return it."""
    with _within_reach():
        dist.all_reduce(tensor)
    return tensor


def same_everywhere(content: Callable[[], bytes]) -> bytes:
    """Return rank 0's bytes on every rank, however long it takes to make them; the others' are not asked for."""
    mine = content() if rank() == 0 else b""
    if _Process.lines is not None:
        any_rank(False)
    length = torch.tensor([len(mine)])
    with _within_reach():
        dist.broadcast(length, 0, group=_Process.words)
        data = torch.frombuffer(bytearray(mine), dtype=torch.uint8) if mine else torch.empty(0, dtype=torch.uint8)
        data = data if rank() == 0 else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(data, 0, group=_Process.words)
    return data.numpy().tobytes()


# Words between hosts --------------------------------------------------------------------------------------------------


def any_rank(wanted: bool) -> bool:
    """Return whether any rank wants something, when all have come, however long that takes; the same on all of them."""
    if size() == 1:
        return wanted
    if rank() > 0:
        tell(wanted)
        return bool(hear())
    wanted = bool(hear()) or wanted
    tell(wanted)
    return wanted


def tell(word: int) -> None:
    """Send a number from rank 0 to all that `hear`."""
    if _Process.lines is not None:
        with _within_reach():
            _Process.lines.tell(word)


def hear() -> int:
    """Wait for what rank 0 tells, or on rank 0 all others, however long that takes; signals are obeyed meanwhile.

    Raises:
        LostRankError: it has ended.
    """
    assert _Process.lines is not None
    with _within_reach():
        return _Process.lines.hear()
