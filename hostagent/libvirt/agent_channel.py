"""The agent of a libvirt guest. libvirt owns the guest's channel, keeps it in step and bounds answers.

Contract: hostagent/guest_agent/channel.py. libvirt runs one agent command a guest at a time, with a time
limit of its own; so a thaw that comes while a freeze hangs is sent by libvirt as soon as that has ended, and
a thread here waits for it.
Callers: guest_agent, any thread.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping

from arraylift.errors import ArrayliftError, DeadlineExceeded, InvalidRequest, PeerUnavailable
from arraylift.logs import get_logger
from hostagent.guest_agent.channel import ANSWER_BYTES_MAX, AgentRefused, Answer, GuardTarget
from hostagent.libvirt.hypervisor import Hypervisor

COMMAND_BYTES_MAX = 160 << 10
"""libvirt 9.0 hangs in a command that its socket to the guest does not take at once: 208 KiB on Linux."""

THAW_SECONDS_MAX = 40.0
"""How long a thaw waits for its turn: libvirt gives up on the command before it, and on the wait, sooner."""

_THAW = "guest-fsfreeze-thaw"
_log = get_logger("libvirt_agent")


class LibvirtAgentChannel:
    """AgentChannel of one guest."""

    def __init__(self, hypervisor: Hypervisor, uri: str, uuid: str) -> None:
        self._hypervisor, self._uri, self._uuid = hypervisor, uri, uuid

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_seconds: float
    ) -> Answer:
        asked: dict[str, object] = {"execute": command}
        if arguments:
            asked["arguments"] = dict(arguments)
        text = json.dumps(asked)
        if len(text) > COMMAND_BYTES_MAX:
            raise InvalidRequest(f"{command} of {len(text)} bytes is more than libvirt passes on")
        answer = self._hypervisor.agent(self._uuid, text, seconds=timeout_seconds)
        if len(answer) > ANSWER_BYTES_MAX:
            raise PeerUnavailable(
                f"the agent answered {command} with more than {ANSWER_BYTES_MAX} bytes", subject=self._uuid
            )
        try:
            found = json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise PeerUnavailable(
                f"the agent's answer to {command} is no JSON", subject=self._uuid
            ) from error
        if not isinstance(found, dict) or "return" not in found:
            raise AgentRefused(f"the agent did not do {command}", subject=self._uuid)
        returned: Answer = found["return"]
        return returned

    def thaw(self, *, timeout_seconds: float) -> int:
        done = threading.Event()
        freed: list[int] = []
        errors: list[ArrayliftError] = []

        def run() -> None:
            try:
                answer = self.execute(_THAW, timeout_seconds=THAW_SECONDS_MAX)
                freed.append(answer if type(answer) is int else 0)
            except ArrayliftError as error:
                errors.append(error)
                _log.warning("thaw_failed", guest=self._uuid, error=str(error))
            finally:
                done.set()

        threading.Thread(target=run, name="libvirt-thaw", daemon=True).start()
        if not done.wait(timeout_seconds):
            raise DeadlineExceeded("the agent did not thaw in time", subject=self._uuid)
        if errors:
            raise errors[0]
        return freed[0]

    def guard(self) -> GuardTarget:
        program = shutil.which("virsh")
        if program is None:
            raise PeerUnavailable(
                "virsh is not installed: nothing would thaw a guest if this process died",
                next_step="install libvirt-clients",
            )
        thaw = json.dumps({"execute": _THAW})
        return GuardTarget(
            ("command", program, "--connect", self._uri, "qemu-agent-command", self._uuid, thaw)
        )
