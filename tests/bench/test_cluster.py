"""The workers of a command listen to that command alone."""

from __future__ import annotations

import pytest
from distributed import Client
from distributed.security import Security

from semisup.bench.execution.cluster import cluster
from semisup.errors import SemisupError


def test_workers_that_do_not_start_in_time_are_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semisup.bench.execution.cluster.OWN_SECONDS", 1e-3)
    said = r"the workers of this machine have not started within .*--workers"
    with pytest.raises(SemisupError, match=said), cluster(None, 1, 0):
        pass


def test_nobody_else_can_submit_work_to_own_workers() -> None:
    """Neither in plain words nor with a certificate of one's own, to the scheduler as to a worker."""
    with cluster(None, 1, 0) as client:
        assert client.submit(sum, [1, 2]).result() == 3
        scheduler = client.scheduler.address
        (worker,) = client.scheduler_info(n_workers=-1)["workers"]
        assert scheduler.startswith("tls://") and worker.startswith("tls://")
        others = [Security(), Security.temporary()]  # type: ignore[no-untyped-call]
        for address in (scheduler, worker):
            for scheme, security in (("tcp", others[0]), ("tls", others[1])):
                place = f"{scheme}://{address.partition('://')[2]}"
                with pytest.raises(OSError):
                    Client(place, security=security, timeout=3, set_as_default=False)  # type: ignore[no-untyped-call]
