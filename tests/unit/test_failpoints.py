"""Failpoint rules: what is parsed, when they act, and that ``kill`` kills."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys

import pytest

from arraylift.failpoints import Failpoints


def act(failpoints: Failpoints, name: str) -> str:
    try:
        failpoints.hit(name)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def test_nothing_happens_unarmed() -> None:
    assert act(Failpoints(), "container.write.before") == ""


def test_a_rule_acts_on_its_first_hit_only() -> None:
    failpoints = Failpoints()
    failpoints.arm("container.write.before=eio")
    assert [act(failpoints, "container.write.before") for _ in range(3)] == ["EIO", "", ""]


def test_a_rule_counts_hits_of_its_own_name() -> None:
    failpoints = Failpoints()
    failpoints.arm("a.write.before=enospc@2")
    hits = ["a.write.before", "a.write.after", "b.write.before", "a.write.before", "a.write.before"]
    assert [act(failpoints, name) for name in hits] == ["", "", "", "ENOSPC", ""]


def test_plus_keeps_acting() -> None:
    failpoints = Failpoints()
    failpoints.arm("a=enospc@2+")
    assert [act(failpoints, "a") for _ in range(4)] == ["", "ENOSPC", "ENOSPC", "ENOSPC"]


def test_star_matches_any_suffix_and_nothing_else() -> None:
    failpoints = Failpoints()
    failpoints.arm("container.*=eio@1+")
    assert act(failpoints, "container.fsync.after") == "EIO"
    assert act(failpoints, "containers.fsync.after") == ""
    failpoints.arm("*=eio")
    assert act(failpoints, "anything") == "EIO"


def test_the_first_of_two_due_rules_acts_and_both_count() -> None:
    failpoints = Failpoints()
    failpoints.arm("a=eio, a=enospc@1+")
    assert [act(failpoints, "a"), act(failpoints, "a")] == ["EIO", "ENOSPC"]


def test_arming_replaces_and_nothing_disarms() -> None:
    failpoints = Failpoints()
    failpoints.arm("a=eio")
    failpoints.arm("b=eio")
    assert act(failpoints, "a") == ""
    failpoints.arm(" , ")
    assert act(failpoints, "b") == ""


@pytest.mark.parametrize(
    "spec",
    ["a", "a=", "=eio", "a=explode", "a=eio@", "a=eio@0", "a=eio@-1", "a=eio@x", "a*b=eio", "a=eio@1-"],
)
def test_a_bad_rule_is_named_and_leaves_the_old_ones(spec: str) -> None:
    failpoints = Failpoints()
    failpoints.arm("good=eio")
    with pytest.raises(ValueError, match="bad failpoint") as caught:
        failpoints.arm(f"other=eio,{spec}")
    assert repr(spec) in str(caught.value)
    assert act(failpoints, "good") == "EIO"


def test_kill_leaves_no_time_for_handlers() -> None:
    program = (
        "from arraylift.failpoints import FAILPOINTS\n"
        "FAILPOINTS.arm('here=kill')\n"
        "try:\n    FAILPOINTS.hit('here')\n"
        "finally:\n    print('handler', flush=True)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout == b""


def test_hang_never_comes_back() -> None:
    program = (
        "from arraylift.failpoints import FAILPOINTS\n"
        "FAILPOINTS.arm('here=hang')\n"
        "print('before', flush=True)\n"
        "FAILPOINTS.hit('here')\n"
        "print('after', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"before\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.3)
        process.kill()
        assert process.stdout.read() == b""
