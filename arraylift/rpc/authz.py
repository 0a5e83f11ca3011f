"""Which role may call which method: the one table (law 12).

Owns: ``ALLOWED``. Identity alone is decided here; whether *this* array may use
*this* transfer is decided by the grant, in the daemon that made it.
Invariants:
  Z1 a method without an entry is refused, and a server that would serve one does not start.
Callers: any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from arraylift.errors import NotPermitted
from arraylift.rpc.identity import ROLES, Peer

EVERYBODY = frozenset(ROLES)
MANAGEMENT = frozenset({"operator", "server"})
VOLUME_USERS = MANAGEMENT | {"host"}
MOVERS = frozenset({"array", "target"})


_VOLUME_METHODS = (
    "CreateVolume ListVolumes DeleteVolume ImportVolume ReadExtents WriteExtents CreateSnapshots "
    "ListSnapshots DeleteSnapshot ListChangedExtents GetPoolStats ResizeVolume CloneVolume "
    "RollbackVolume CreateExport ListExports DeleteExport"
)

_BY_SERVICE: dict[str, tuple[frozenset[str], str]] = {
    "grpc.health.v1.Health": (EVERYBODY, "Check List"),
    "arraylift.v1.VolumeService": (VOLUME_USERS, _VOLUME_METHODS),
    "arraylift.v1.BackupLogicService": (
        MANAGEMENT,
        "SendSnapshot SendForeignDisk CancelTransfer SetTransferRate ListTransfers DiffSnapshots",
    ),
    "arraylift.v1.SegmentExchangeService": (MOVERS, "Exchange"),
    "arraylift.v1.ImageService": (
        MANAGEMENT,
        (
            "ListImages GetImage ReadRange SendImage DeleteImage PublishBackup GetBackupManifest "
            "ListBackupManifests DeleteBackupManifest ListNames WriteFile Synthesize ComposeImage "
            "DiffImages LockImage VerifyImage PreviewDelete"
        ),
    ),
    "arraylift.v1.TargetAdminService": (
        MANAGEMENT,
        ("CreateGrant RevokeGrant GetTargetStats SurveySpace CollectGarbage Scrub ListUnits ListTenants"),
    ),
    "arraylift.v1.VmService": (
        MANAGEMENT | {"vcenter"},
        (
            "CreateVm GetVm ListVms DeleteVm PowerOn PowerOff CreateVmSnapshot GetVmSnapshot "
            "ListVmSnapshots RenewVmSnapshot DeleteVmSnapshot AttachVolume DetachVolume PutGuestFile "
            "GetGuestFile ListGuestFiles RemoveGuestFile"
        ),
    ),
    "arraylift.v1.VirtualCenterService": (
        MANAGEMENT,
        (
            "ListHosts RemoveHost ListManagedVms GetManagedVm WatchInventory PrepareBackup "
            "ReleaseSnapshot RenewSnapshot "
            "PlaceVm ProvisionVm AttachVmVolume PowerVm RemoveVm SynchronizeHosts GetVmHistory MigrateVm "
            "ListMigrations"
        ),
    ),
    "arraylift.v1.PolicyService": (
        frozenset({"operator"}),
        (
            "SetPolicy ListPolicies RemovePolicy PlanPolicy RunPolicy PlanRetention ApplyRetention "
            "ReportUnprotected ReportOverdue ReportSpace"
        ),
    ),
    "arraylift.v1.CatalogService": (
        frozenset({"operator"}),
        (
            "ListFileVolumes FindFiles ListFileVersions DiffBackups ExplainBackup CatalogBackup "
            "RebuildCatalog ReadFiles StartFileRestore"
        ),
    ),
    "arraylift.v1.BackupService": (
        frozenset({"operator"}),
        (
            "StartBackup StartRestore GetJob ListJobs WatchJob CancelJob ListBackups GetBackup "
            "DeleteBackup VerifyBackup LockBackup ListFiles GetFile AddPeer ListPeers RemovePeer"
        ),
    ),
}


def _rules() -> dict[str, frozenset[str]]:
    rules = {
        f"/{service}/{method}": roles
        for service, (roles, methods) in _BY_SERVICE.items()
        for method in methods.split()
    }
    # Opens a door for a target to write into the pool: a host has no business there.
    for method in ("PrepareRestore", "RevokeRestore", "CommitRestoreGroup", "CheckPool"):
        rules[f"/arraylift.v1.VolumeService/{method}"] = MANAGEMENT
    # Where backups lie, and how much a tenant may keep, is for people to decide.
    for method in ("AddUnit", "DrainUnit", "RetireUnit", "MoveImages", "RebuildUnit", "SetQuota"):
        rules[f"/arraylift.v1.TargetAdminService/{method}"] = frozenset({"operator"})
    # A second clock must not be the operator's: who sets one clock could set both.
    rules["/arraylift.v1.TargetAdminService/ConfirmTime"] = frozenset({"server", "array", "host", "vcenter"})
    # Whoever calls these out of turn has a VM run twice: only the one that keeps the order may.
    for method in ("ExpectVm", "HandOverVm", "AcceptVm", "AbandonMigration", "FinishMigration"):
        rules[f"/arraylift.v1.VmService/{method}"] = frozenset({"vcenter"})
    # A host speaks for itself only: the handler checks the name against the certificate.
    for method in ("RegisterHost", "ReportInventory"):
        rules[f"/arraylift.v1.VirtualCenterService/{method}"] = frozenset({"host"})
    return rules


ALLOWED: Mapping[str, frozenset[str]] = MappingProxyType(_rules())
"""Full method name, e.g. ``/arraylift.v1.ImageService/GetImage``, to the roles that may call it."""


def check_complete(methods: Iterable[str]) -> None:
    """Refuse to serve a method that nobody decided about (Z1): our own bug, hence an assert."""
    missing = sorted(method for method in methods if method not in ALLOWED)
    assert not missing, f"no authorization entry for {', '.join(missing)}; add it to arraylift/rpc/authz.py"


def check_allowed(peer: Peer, method: str) -> None:
    """Raise NotPermitted unless the table lets this role call this method."""
    if peer.role not in ALLOWED.get(method, frozenset()):
        raise NotPermitted(
            f"{peer} may not call {method.rpartition('/')[2]}",
            subject=str(peer),
            next_step="use a certificate of a role that may: " + ", ".join(sorted(ALLOWED.get(method, ()))),
        )
