"""Policies as they are kept, and the backups that their runs have yet to start.

Owns: the tables ``policies`` and ``policy_starts`` of the server's database.
Invariants:
  O1 a run is begun in one transaction: its instant is noted and its starts are listed, or neither.
  O2 a VM has one start of a policy at most: a later run takes the place of one that never came to start.
  O3 a policy that is set anew, enabled or given another schedule owes nothing of the time before.
  O4 no instant of the future keeps a policy from running: a clock that ran ahead is not believed once it
     was set back. What is begun again bears the same instant, and so is the same job.
Callers: any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arraylift.errors import NotFound, Overloaded
from backup_server import documents
from backup_server.policies.policy import Policy
from backup_server.server_db import ServerDb

POLICIES_MAX = 1_000
PROBLEM_BYTES_MAX = 2_000


@dataclass(frozen=True, slots=True)
class KeptPolicy:
    """A policy and what became of its runs. Instants in UTC nanoseconds, 0: never."""

    policy: Policy
    since_ns: int
    last_due_ns: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Start:
    """A backup of one VM that a run has yet to start, not before ``start_ns``."""

    policy: str
    vm_id: str
    vm_name: str
    due_ns: int
    start_ns: int


class PolicyStore:
    """All policies of one server."""

    def __init__(self, db: ServerDb) -> None:
        self._db = db

    def set(self, policy: Policy, *, now_ns: int) -> KeptPolicy:
        """Make or replace it. Raises Overloaded."""
        with self._db.change() as db:
            try:
                known = self.get(policy.name)
            except NotFound:
                if db.execute("SELECT count(*) FROM policies").fetchone()[0] >= POLICIES_MAX:
                    raise Overloaded(
                        f"there are {POLICIES_MAX} policies", next_step="remove some first"
                    ) from None
                kept = KeptPolicy(policy, now_ns)
            else:
                same = known.policy.schedule == policy.schedule and not known.policy.disabled
                kept = KeptPolicy(policy, known.since_ns if same else now_ns, known.last_due_ns)  # O3
            db.execute(
                "INSERT INTO policies (name, since_ns, last_due_ns, problem, document) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET since_ns = excluded.since_ns, problem = excluded.problem,"
                " document = excluded.document",
                (policy.name, kept.since_ns, kept.last_due_ns, kept.problem, documents.dump(policy)),
            )
            if policy.disabled:
                db.execute("DELETE FROM policy_starts WHERE policy = ?", (policy.name,))
        return kept

    def get(self, name: str) -> KeptPolicy:
        """Raises NotFound."""
        for kept in self.all(name):
            return kept
        raise NotFound(
            f"there is no policy {name[:100]!r}", subject=f"policy {name}", next_step="list the policies"
        )

    def all(self, name: str = "") -> list[KeptPolicy]:
        """By name; or the one of that name, if there is one."""
        with self._db.read() as db:
            rows = db.execute(
                "SELECT document, since_ns, last_due_ns, problem FROM policies WHERE ?1 IN ('', name)"
                " ORDER BY name",
                (name,),
            ).fetchall()
        return [
            KeptPolicy(documents.load(Policy, document, what="a policy"), *rest) for document, *rest in rows
        ]

    def remove(self, name: str) -> None:
        """Forget it and its starts. Raises NotFound."""
        with self._db.change() as db:
            self.get(name)
            db.execute("DELETE FROM policies WHERE name = ?", (name,))

    # -- runs -----------------------------------------------------------------------------------

    def begin_run(self, name: str, due_ns: int, starts: Sequence[Start]) -> None:
        """Note a run and what it has to start (O1, O2). Raises NotFound."""
        assert all(start.policy == name and start.due_ns == due_ns for start in starts)
        with self._db.change() as db:
            self.get(name)
            db.execute(
                "UPDATE policies SET last_due_ns = max(last_due_ns, ?), problem = '' WHERE name = ?",
                (due_ns, name),
            )
            db.executemany(
                "INSERT OR REPLACE INTO policy_starts (policy, vm_id, vm_name, due_ns, start_ns)"
                " VALUES (?, ?, ?, ?, ?)",
                [(one.policy, one.vm_id, one.vm_name, one.due_ns, one.start_ns) for one in starts],
            )

    def set_back(self, name: str, now_ns: int) -> None:
        """The clock was set back to ``now_ns``: nothing was due later than that (O4)."""
        with self._db.change() as db:
            db.execute(
                "UPDATE policies SET since_ns = min(since_ns, ?1), last_due_ns = min(last_due_ns, ?1)"
                " WHERE name = ?2",
                (now_ns, name),
            )

    def starts(self, *, until_ns: int | None = None, count_max: int) -> list[Start]:
        """Starts that are due, earliest first."""
        with self._db.read() as db:
            rows = db.execute(
                "SELECT policy, vm_id, vm_name, due_ns, start_ns FROM policy_starts"
                " WHERE ?1 IS NULL OR start_ns <= ?1 ORDER BY start_ns, policy, vm_id LIMIT ?2",
                (until_ns, count_max),
            ).fetchall()
        return [Start(*row) for row in rows]

    def finish_start(self, start: Start) -> None:
        """It was started, or cannot be. Idempotent; a later run's start of the VM stays."""
        with self._db.change() as db:
            db.execute(
                "DELETE FROM policy_starts WHERE policy = ? AND vm_id = ? AND due_ns = ?",
                (start.policy, start.vm_id, start.due_ns),
            )

    def postpone(self, start: Start, start_ns: int) -> None:
        """Let it wait until then. No error if it is gone."""
        with self._db.change() as db:
            db.execute(
                "UPDATE policy_starts SET start_ns = ? WHERE policy = ? AND vm_id = ? AND due_ns = ?",
                (start_ns, start.policy, start.vm_id, start.due_ns),
            )

    def note(self, name: str, problem: str) -> None:
        """Keep what went wrong; empty: nothing. No error if the policy is gone."""
        text = problem.encode()[:PROBLEM_BYTES_MAX].decode("utf-8", "ignore")
        with self._db.change() as db:
            db.execute("UPDATE policies SET problem = ? WHERE name = ? AND problem <> ?", (text, name, text))
