"""The inventory: which host has which VM. Every function returns a new one, and what changed.

Pure: no I/O, no clock. Several hosts may *claim* one VM id (a VM that moves, a copy left behind
by a crash); one claim is *shown*.
Invariants:
  I1 of the claims on a VM the newest that says the VM runs is shown; where none runs, the newest.
     A claim is as new as the revision in which it was made or last changed: a heartbeat that
     repeats it does not renew it, so two hosts with one VM do not take turns.
  I2 the revision grows with every change that can be seen or must survive; else it stays.
  I3 a report not newer than the last one taken of that host changes nothing.
  I4 VMs of a lost host are shown with unknown power, and come back with its next report.
  I5 a name that several VMs bear finds none of them; their ids still do.
Callers: live_inventory, under its lock; readers keep any Inventory as long as they like.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from arraylift.errors import NotFound, Overloaded, WrongState
from arraylift.ids import VmId
from arraylift.vm.types import PowerState, Vm
from vcenter.model import HOSTS_MAX, VMS_MAX, Host, Report

NAMES_SHOWN_MAX = 4


@dataclass(frozen=True, slots=True)
class Claim:
    """What one host says of one VM; ``order`` is the inventory's revision when that last changed."""

    vm: Vm
    order: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """One state of everything the center knows. Share it freely, change none of its mappings."""

    revision: int = 0
    hosts: Mapping[str, Host] = field(default_factory=dict)
    claims: Mapping[VmId, tuple[Claim, ...]] = field(default_factory=dict)
    shown: Mapping[VmId, Vm] = field(default_factory=dict)
    ids_by_name: Mapping[str, tuple[VmId, ...]] = field(default_factory=dict)
    ids_by_host: Mapping[str, frozenset[VmId]] = field(default_factory=dict)
    """Every claim of a host, shown or not."""

    def host(self, name: str) -> Host:
        """Raises NotFound."""
        found = self.hosts.get(name)
        if found is None:
            raise NotFound(
                f"no host {name} is registered", subject=f"host {name}", next_step="list the hosts there are"
            )
        return found

    def vm(self, vm_id: VmId) -> Vm:
        """Raises NotFound."""
        found = self.shown.get(vm_id)
        if found is None:
            raise NotFound(
                f"no host has a VM {vm_id}", subject=f"vm {vm_id}", next_step="list the VMs there are"
            )
        return found

    def vm_named(self, name: str) -> Vm:
        """Raises NotFound; WrongState where several VMs bear the name (I5)."""
        found = self.ids_by_name.get(name, ())
        if not found:
            raise NotFound(
                f"no host has a VM named {name}", subject=f"vm {name}", next_step="list the VMs there are"
            )
        if len(found) > 1:
            which = ", ".join(f"{vm_id} on {self.shown[vm_id].host}" for vm_id in found[:NAMES_SHOWN_MAX])
            raise WrongState(
                f"{len(found)} VMs are named {name}: {which}",
                subject=f"vm {name}",
                next_step="ask by id, or rename all but one",
            )
        return self.shown[found[0]]

    def is_lost(self, vm: Vm) -> bool:
        """Whether the VM's host is silent."""
        return self.hosts[vm.host].lost


@dataclass(frozen=True, slots=True)
class Hold:
    """What a host itself answered about a VM just now; a report made before that must not undo it."""

    vm: Vm | None
    """None: the VM was removed."""

    def agrees(self, reported: Vm | None) -> bool:
        """Whether a report has caught up with it."""
        if self.vm is None or reported is None:
            return self.vm is None and reported is None
        return reported.revision >= self.vm.revision


Holds = Mapping[tuple[VmId, str], Hold]
"""By VM and host: two hosts may both have answered about a VM that moved."""


@dataclass(frozen=True, slots=True)
class Change:
    """A new inventory and how it differs: what to store, and what a watcher sees."""

    inventory: Inventory
    hosts: tuple[Host, ...] = ()
    removed_hosts: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    removed_claims: tuple[tuple[VmId, str], ...] = ()
    shown: tuple[Vm, ...] = ()
    gone: tuple[VmId, ...] = ()
    noted: tuple[Vm, ...] = ()
    """Of ``shown``, those whose configuration or host is new."""

    @property
    def must_be_stored(self) -> bool:
        return bool(self.hosts or self.removed_hosts or self.claims or self.removed_claims)

    @property
    def is_visible(self) -> bool:
        """Whether a watcher of VMs sees it."""
        return bool(self.shown or self.gone)


# -- what may happen ----------------------------------------------------------------------------


def register_host(inventory: Inventory, *, name: str, address: str, driver: str) -> Change:
    """Make a host known, or change its address. Raises Overloaded."""
    known = inventory.hosts.get(name)
    if known is None and len(inventory.hosts) >= HOSTS_MAX:
        raise Overloaded(
            f"{HOSTS_MAX} hosts are registered", next_step="remove hosts that are gone with RemoveHost"
        )
    host = replace(known or Host(name, address, driver), address=address, driver=driver)
    if host == known:
        return Change(inventory)
    draft = _Draft(inventory)
    draft.put_host(host)
    return draft.finish()


def apply_report(inventory: Inventory, report: Report, holds: Holds) -> Change | None:
    """Take a report; None if it is not newer than the last (I3). Raises NotFound, Overloaded."""
    known = inventory.host(report.host)
    if report.sequence <= known.sequence:
        return None
    host = replace(
        known,
        sequence=report.sequence,
        lost=False,
        memory_bytes=report.memory_bytes,
        memory_free_bytes=report.memory_free_bytes,
        cpus=report.cpus,
        last_report_ns=report.received_at_ns,
        load_percent=report.load_percent,
    )
    draft = _Draft(inventory)
    draft.put_listing(report.host, report.vms, holds)
    if draft.is_touched or known.lost or known.sequence == 0:
        draft.put_host(host)
        return draft.finish()
    # A heartbeat that changes nothing costs no write (I2): only the soft figures move.
    return Change(replace(inventory, hosts={**inventory.hosts, host.name: host}))


def apply_listing(inventory: Inventory, host: str, vms: Sequence[Vm], holds: Holds) -> Change:
    """Take what a host answered when it was asked for all of its VMs. Raises NotFound, Overloaded."""
    inventory.host(host)
    draft = _Draft(inventory)
    draft.put_listing(host, vms, holds)
    return draft.finish()


def apply_vm(inventory: Inventory, vm: Vm) -> Change:
    """Take what the VM's host answered about it. Raises NotFound (the host is forgotten), Overloaded."""
    inventory.host(vm.host)
    draft = _Draft(inventory)
    draft.put_claim(vm)
    return draft.finish()


def remove_vm(inventory: Inventory, host: str, vm_id: VmId) -> Change:
    """Drop one host's claim on a VM; no change if it has none."""
    draft = _Draft(inventory)
    draft.drop_claim(vm_id, host)
    return draft.finish()


def remove_host(inventory: Inventory, name: str) -> Change:
    """Forget a host and its claims. Raises NotFound."""
    inventory.host(name)
    draft = _Draft(inventory)
    draft.drop_host(name)
    return draft.finish()


def mark_lost(inventory: Inventory, name: str) -> Change:
    """Note that a host is silent (I4). Raises NotFound."""
    host = inventory.host(name)
    if host.lost:
        return Change(inventory)
    draft = _Draft(inventory)
    draft.put_host(replace(host, lost=True))
    return draft.finish()


def rebuild(revision: int, hosts: Iterable[Host], claims: Iterable[Claim]) -> Inventory:
    """Return the inventory that was stored. A claim of an unknown host is our own bug."""
    draft = _Draft(Inventory(revision=revision))
    draft.hosts = {host.name: host for host in hosts}
    grouped: dict[VmId, list[Claim]] = {}
    ids: dict[str, list[VmId]] = {name: [] for name in draft.hosts}
    for claim in claims:
        grouped.setdefault(claim.vm.vm_id, []).append(claim)
        ids[claim.vm.host].append(claim.vm.vm_id)
    draft.claims = {
        vm_id: tuple(sorted(group, key=lambda claim: claim.order)) for vm_id, group in grouped.items()
    }
    draft.ids_by_host = {name: frozenset(found) for name, found in ids.items()}
    draft.touched = dict.fromkeys(grouped)
    if not grouped:
        return Inventory(revision=revision, hosts=draft.hosts, ids_by_host=draft.ids_by_host)
    return replace(draft.finish().inventory, revision=revision)


def winner(claims: Sequence[Claim]) -> Claim:
    """Return the claim that is shown (I1)."""
    assert claims, "a VM without claims is no VM"
    # Two claims of one revision come from one host's report, hence are on different VMs.
    return max(claims, key=lambda claim: (claim.vm.running, claim.order))


class _Draft:
    """The next inventory in the making: shares what does not change with the one before."""

    def __init__(self, base: Inventory) -> None:
        self.base = base
        self.revision = base.revision + 1
        self.hosts = dict(base.hosts)
        self.claims = base.claims
        self.ids_by_host: dict[str, frozenset[VmId]] = dict(base.ids_by_host)
        self._ids_of: dict[str, set[VmId]] = {}
        self.touched: dict[VmId, None] = {}
        self._put: dict[tuple[VmId, str], Claim] = {}
        self._dropped: dict[tuple[VmId, str], None] = {}
        self._hosts_put: dict[str, Host] = {}
        self._hosts_dropped: list[str] = []

    @property
    def is_touched(self) -> bool:
        return bool(self.touched)

    def put_host(self, host: Host) -> None:
        known = self.base.hosts.get(host.name)
        self.hosts[host.name] = host
        self._hosts_put[host.name] = host
        self.ids_by_host.setdefault(host.name, frozenset())
        if known is not None and known.lost != host.lost:
            self.touched.update(dict.fromkeys(self.ids_by_host[host.name]))

    def drop_host(self, name: str) -> None:
        for vm_id in self.ids_by_host[name]:
            self.drop_claim(vm_id, name)
        self._ids_of.pop(name, None)
        del self.hosts[name], self.ids_by_host[name]
        self._hosts_dropped.append(name)

    def put_listing(self, host: str, vms: Sequence[Vm], holds: Holds) -> None:
        said = {vm.vm_id: vm for vm in vms}
        for (vm_id, holder), hold in holds.items():
            if holder == host and not hold.agrees(said.get(vm_id)):
                if hold.vm is None:
                    said.pop(vm_id, None)
                else:
                    said[vm_id] = hold.vm
        for vm_id in self.ids_by_host[host] - said.keys():
            self.drop_claim(vm_id, host)
        for vm in said.values():
            self.put_claim(vm)

    def put_claim(self, vm: Vm) -> None:
        others = self.claims.get(vm.vm_id, ())
        if any(claim.vm == vm for claim in others):
            return
        claim = Claim(vm, self.revision)
        self._own_claims()[vm.vm_id] = (*(other for other in others if other.vm.host != vm.host), claim)
        self._put[vm.vm_id, vm.host] = claim
        self._dropped.pop((vm.vm_id, vm.host), None)
        self._own_ids(vm.host).add(vm.vm_id)
        self.touched[vm.vm_id] = None

    def drop_claim(self, vm_id: VmId, host: str) -> None:
        claims = self.claims.get(vm_id, ())
        left = tuple(claim for claim in claims if claim.vm.host != host)
        if len(left) == len(claims):
            return
        own = self._own_claims()
        if left:
            own[vm_id] = left
        else:
            del own[vm_id]
        self._dropped[vm_id, host] = None
        self._own_ids(host).discard(vm_id)
        self.touched[vm_id] = None

    def _own_claims(self) -> dict[VmId, tuple[Claim, ...]]:
        """Copy what the base shares, once, before the first change."""
        if self.claims is self.base.claims:
            self.claims = dict(self.base.claims)
        assert isinstance(self.claims, dict)
        return self.claims

    def _own_ids(self, host: str) -> set[VmId]:
        """A set to change: one copy a host, not one a VM."""
        if host not in self._ids_of:
            self._ids_of[host] = set(self.ids_by_host[host])
        return self._ids_of[host]

    def finish(self) -> Change:
        self.ids_by_host.update((host, frozenset(ids)) for host, ids in self._ids_of.items())
        if not (self.touched or self._hosts_put or self._hosts_dropped):
            return Change(self.base)
        if sum(map(len, self.ids_by_host.values())) > VMS_MAX:
            raise Overloaded(f"more than {VMS_MAX} VMs in one center", next_step="run a second one")
        shown, names = dict(self.base.shown), dict(self.base.ids_by_name)
        made: list[Vm] = []
        gone: list[VmId] = []
        noted: list[Vm] = []
        for vm_id in self.touched:
            before, after = shown.pop(vm_id, None), self._seen(vm_id)
            if after is not None:
                shown[vm_id] = after
            if before == after:
                continue
            if before is None or after is None or before.config.name != after.config.name:
                _rename(names, before, after)
            if after is None:
                gone.append(vm_id)
                continue
            made.append(after)
            if before is None or (before.config, before.host) != (after.config, after.host):
                noted.append(after)
        self._touch_hosts()
        return Change(
            Inventory(self.revision, self.hosts, self.claims, shown, names, self.ids_by_host),
            hosts=tuple(self._hosts_put.values()),
            removed_hosts=tuple(self._hosts_dropped),
            claims=tuple(self._put.values()),
            removed_claims=tuple(self._dropped),
            shown=tuple(made),
            gone=tuple(gone),
            noted=tuple(noted),
        )

    def _touch_hosts(self) -> None:
        """With a claim goes its host's row: the sequence that it stands for must survive with it."""
        for _, name in (*self._put, *self._dropped):
            if name in self.hosts:
                self._hosts_put[name] = self.hosts[name]

    def _seen(self, vm_id: VmId) -> Vm | None:
        claims = self.claims.get(vm_id)
        if not claims:
            return None
        vm = winner(claims).vm
        return replace(vm, power=PowerState.UNKNOWN) if self.hosts[vm.host].lost else vm


def _rename(names: dict[str, tuple[VmId, ...]], before: Vm | None, after: Vm | None) -> None:
    if before is not None:
        left = tuple(one for one in names[before.config.name] if one != before.vm_id)
        if left:
            names[before.config.name] = left
        else:
            del names[before.config.name]
    if after is not None:
        names[after.config.name] = (*names.get(after.config.name, ()), after.vm_id)
