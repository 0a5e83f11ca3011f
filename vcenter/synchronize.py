"""Ask hosts for their VMs now, instead of waiting for their reports.

Limits: AT_ONCE hosts are asked at a time. Callers: the edge, on the threads of its calls.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from arraylift.errors import ArrayliftError
from arraylift.logs import get_logger
from arraylift.outcome import attempt
from vcenter.routing import Budget, Router

AT_ONCE = 16

_log = get_logger("vcenter")


def synchronize_hosts(router: Router, name: str, budget: Budget) -> list[str]:
    """Take what the host of that name, or every host, has; returns the names of those that were asked.

    One that is named raises what hinders it (NotFound, PeerUnavailable); of all, each is asked for itself.
    """
    if name:
        router.synchronize(name, budget)
        return [name]
    names = sorted(router.live.now.hosts)

    def ask(one: str) -> ArrayliftError | None:
        return attempt(lambda: router.synchronize(one, budget), f"synchronization of host {one}")[1]

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="synchronize") as pool:
        for one, error in zip(names, pool.map(ask, names), strict=True):
            if error is not None:
                _log.info("host_not_synchronized", host=one, error=str(error))
    return names
