"""Named places where a test makes this process die or its disk fail.

A failpoint is hit by name; nothing happens unless a rule armed it. Rules come
from the environment variable ``ARRAYLIFT_FAILPOINTS`` (read in config.py only):
``name=action[@n[+]]``, comma separated; ``n`` counts hits from 1, default 1;
``+`` acts on every later hit too (a disk that stays full). ``*`` at the end of a
name matches any suffix. Actions: ``kill`` (SIGKILL to ourselves), ``eio`` and
``enospc`` (OSError), ``hang`` (wait for ever).
Invariants: F1 every matching rule counts every hit, in the order of hits across
threads. F2 of several rules due at one hit the first armed acts.
Callers: any thread. Cost when nothing is armed: one attribute test.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
from dataclasses import dataclass

ACTIONS = ("kill", "eio", "enospc", "hang")

_RULE = re.compile(r"(?P<name>[^=@*\s]+\*?|\*)=(?P<action>[a-z]+)(@(?P<at>[1-9][0-9]*)(?P<on>\+)?)?")


@dataclass(slots=True)
class _Rule:
    name: str
    action: str
    at: int
    stays: bool
    hits: int = 0

    def matches(self, name: str) -> bool:
        return name.startswith(self.name[:-1]) if self.name.endswith("*") else name == self.name

    def count(self) -> bool:
        """Count one hit; say whether the rule is due."""
        self.hits += 1
        return self.hits == self.at or (self.stays and self.hits > self.at)


class Failpoints:
    """The armed rules of this process, or of one store."""

    def __init__(self) -> None:
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()

    def arm(self, spec: str) -> None:
        """Replace all rules by those of ``spec``, none if it is empty.

        Raises ValueError naming a bad rule; the rules before stay armed then.
        """
        rules = [_parse(text) for text in map(str.strip, spec.split(",")) if text]
        with self._lock:
            self._rules = rules

    def hit(self, name: str) -> None:
        """Act if a rule for ``name`` is due. Raises OSError for eio and enospc."""
        if not self._rules:
            return
        with self._lock:
            due = [rule.action for rule in self._rules if rule.matches(name) and rule.count()]
        if not due:
            return
        if due[0] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if due[0] == "hang":
            threading.Event().wait()
        code = errno.EIO if due[0] == "eio" else errno.ENOSPC
        raise OSError(code, f"{os.strerror(code)} (failpoint {name})")


def _parse(text: str) -> _Rule:
    parts = _RULE.fullmatch(text)
    if parts is None or parts["action"] not in ACTIONS:
        raise ValueError(
            f"bad failpoint {text!r}; write name=action[@n[+]], action one of {', '.join(ACTIONS)}"
        )
    return _Rule(parts["name"], parts["action"], int(parts["at"] or 1), stays=bool(parts["on"]))


FAILPOINTS = Failpoints()
