"""The workers of a command listen to that command alone."""

from __future__ import annotations

import pytest
from distributed import Client
from distributed.security import Security

from semisup.bench.execution.cluster import cluster


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
