"""Named places where a test makes this process die or its disk fail.

A failpoint is hit by name; nothing happens unless a rule armed it. Rules come
from the environment variable ``ARRAYLIFT_FAILPOINTS`` (read in config.py only):
``name=action[@n]``, comma separated; ``n`` counts hits from 1, default 1.
``*`` at the end of a name matches any suffix. Actions: ``kill`` (SIGKILL to
ourselves), ``eio`` and ``enospc`` (OSError), ``hang`` (sleep for ever).

Callers: any thread. Cost when nothing is armed: one attribute test.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from dataclasses import dataclass

ACTIONS = ("kill", "eio", "enospc", "hang")


@dataclass(slots=True)
class _Rule:
    name: str
    action: str
    hits_left: int

    def matches(self, name: str) -> bool:
        return name.startswith(self.name[:-1]) if self.name.endswith("*") else name == self.name


class Failpoints:
    """The armed rules of this process."""

    def __init__(self) -> None:
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()

    def arm(self, spec: str) -> None:
        """Replace all rules by those of ``spec``; raises ValueError naming a bad rule."""
        rules = []
        for text in filter(None, (part.strip() for part in spec.split(","))):
            name, _, what = text.partition("=")
            action, _, count = what.partition("@")
            if not name or action not in ACTIONS or not (count or "1").isdigit():
                raise ValueError(f"bad failpoint {text!r}; write name=action[@n], action one of {ACTIONS}")
            rules.append(_Rule(name, action, int(count or "1")))
        with self._lock:
            self._rules = rules

    def hit(self, name: str) -> None:
        """Act if a rule for ``name`` is due. Raises OSError for eio and enospc."""
        if not self._rules:
            return
        with self._lock:
            due = None
            for rule in self._rules:
                if rule.matches(name):
                    rule.hits_left -= 1
                    if rule.hits_left == 0:
                        due = rule.action
        if due == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif due == "hang":
            threading.Event().wait()
        elif due:
            code = errno.EIO if due == "eio" else errno.ENOSPC
            raise OSError(code, f"{os.strerror(code)} (failpoint {name})")


FAILPOINTS = Failpoints()
