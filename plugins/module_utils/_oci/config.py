# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The config.json that a runtime is given: always made here, from the definition and the image's defaults.

Nothing but the process (command, environment, directory, user) is taken from an image. Mounts, devices, hooks and
annotations are ours, and they are the same on every host, because CRIU restores what it finds there.
"""

from __future__ import annotations

import typing as t

from .._core import paths
from .._core.errors import InputError

OCI_VERSION = "1.0.2"

# What podman gives a container by default, and AUDIT_WRITE, which sshd wants for its records.
DEFAULT_CAPABILITIES = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
# Capabilities that undo the container: with them its root is the host's root.
HOST_CAPABILITIES = (
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_DAC_READ_SEARCH",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_PERFMON",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_TIME",
)
CAPABILITIES = frozenset(
    (
        *DEFAULT_CAPABILITIES,
        *HOST_CAPABILITIES,
        "CAP_AUDIT_CONTROL",
        "CAP_AUDIT_READ",
        "CAP_BLOCK_SUSPEND",
        "CAP_IPC_LOCK",
        "CAP_IPC_OWNER",
        "CAP_LEASE",
        "CAP_LINUX_IMMUTABLE",
        "CAP_MKNOD",
        "CAP_NET_ADMIN",
        "CAP_NET_BROADCAST",
        "CAP_SYS_NICE",
        "CAP_SYS_PACCT",
        "CAP_SYS_PTRACE",
        "CAP_SYS_RESOURCE",
        "CAP_SYS_TTY_CONFIG",
        "CAP_WAKE_ALARM",
    )
)

# Kernel interfaces that a workload has no business with: the complement of the usual allow lists. A list of what is
# denied stays small, and is right for programs newer than it; io_uring is also what CRIU cannot move.
_DENIED = (
    "acct",
    "add_key",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "create_module",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_kernel_syms",
    "get_mempolicy",
    "init_module",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mbind",
    "migrate_pages",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "name_to_handle_at",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "set_mempolicy",
    "set_mempolicy_home_node",
    "setns",
    "settimeofday",
    "stime",
    "swapoff",
    "swapon",
    "sysfs",
    "umount",
    "umount2",
    "unshare",
    "uselib",
    "userfaultfd",
    "ustat",
    "vhangup",
    "vm86",
    "vm86old",
    "_sysctl",
)
# Programs fall back when these say "not implemented".
_ABSENT = ("io_uring_enter", "io_uring_register", "io_uring_setup", "clone3")
# clone(2) with a flag that makes a namespace.
_NEW_NAMESPACES = 0x7E020000
_EPERM, _ENOSYS = 1, 38
_ARCHITECTURES = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
    "ppc64le": ["SCMP_ARCH_PPC64LE"],
    "s390x": ["SCMP_ARCH_S390X", "SCMP_ARCH_S390"],
    "riscv64": ["SCMP_ARCH_RISCV64"],
}


def seccomp_profile(machine: str) -> dict[str, t.Any]:
    """What a container may not ask of the kernel. ``machine``: as ``uname -m`` says it."""
    # clone's flags are its second argument on s390.
    flags = 1 if machine == "s390x" else 0
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": _ARCHITECTURES.get(machine, []),
        "syscalls": [
            {"names": list(_DENIED), "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM},
            {"names": list(_ABSENT), "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
            *(
                {
                    "names": ["clone"],
                    "action": "SCMP_ACT_ERRNO",
                    "errnoRet": _EPERM,
                    "args": [{"index": flags, "value": bit, "valueTwo": bit, "op": "SCMP_CMP_MASKED_EQ"}],
                }
                for bit in (1 << shift for shift in range(32))
                if bit & _NEW_NAMESPACES
            ),
        ],
    }


def capabilities(add: t.Sequence[str], drop: t.Sequence[str]) -> list[str]:
    """The default set with changes; names are in full (``CAP_…``) already."""
    return sorted((set(DEFAULT_CAPABILITIES) - set(drop)) | set(add))


def resources(definition: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Limits as the runtime-spec has them."""
    limits: dict[str, t.Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if definition.get("memory_mib"):
        limits["memory"] = {"limit": definition["memory_mib"] * 2**20}
    if definition.get("cpus"):
        limits["cpu"] = {"period": 100000, "quota": int(definition["cpus"] * 100000)}
    if definition.get("pids_limit"):
        limits["pids"] = {"limit": definition["pids_limit"]}
    return limits


def _mounts(definition: t.Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    """Few of them: CRIU pays 3 to 8 ms on each side for each tmpfs."""
    mounts: list[dict[str, t.Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        },
        {
            "destination": "/sys",
            "type": "sysfs",
            "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"],
        },
    ]
    for mount in definition.get("mounts") or []:
        access = "ro" if mount.get("read_only") else "rw"
        if mount["type"] == "tmpfs":
            size = [f"size={mount['size_mib']}m"] if mount.get("size_mib") else []
            options = ["nosuid", "nodev", "mode=1777", access, *size]
            mounts.append({"destination": mount["destination"], "type": "tmpfs", "source": "tmpfs", "options": options})
        else:
            mounts.append(
                {
                    "destination": mount["destination"],
                    "type": "bind",
                    "source": mount["source"],
                    "options": ["rbind", "rprivate", "nosuid", "nodev", access],
                }
            )
    return mounts


def build(
    definition: t.Mapping[str, t.Any],
    process: t.Mapping[str, t.Any],
    *,
    uid: int,
    gid: int,
    groups: t.Sequence[int] = (),
    home: str = "/",
    machine: str = "x86_64",
) -> dict[str, t.Any]:
    """config.json of a container.

    ``definition``: as the module container wrote it. ``process``: the image's ``args``, ``env``, ``cwd``.
    ``uid``, ``gid``, ``groups``, ``home``: the user as the container's own passwd knows it.
    """
    name = definition["name"]
    args = list(definition.get("command") or process.get("args") or [])
    if not args:
        raise InputError(f"containers: {name}: the image names no command.", hint="Give one with the key command.")
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": home}
    for line in process.get("env") or []:
        key, _equals, value = line.partition("=")
        environment[key] = value
    environment.update(definition.get("env") or {})
    caps = capabilities(definition.get("capabilities_add") or [], definition.get("capabilities_drop") or [])
    linux: dict[str, t.Any] = {
        "cgroupsPath": paths.payload_cgroup(name),
        "namespaces": [
            {"type": "pid"},
            {"type": "ipc"},
            {"type": "uts"},
            {"type": "mount"},
            {"type": "network", "path": paths.netns_path(name)},
        ],
        "resources": resources(definition),
        "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    }
    if definition.get("seccomp", "default") == "default":
        linux["seccomp"] = seccomp_profile(machine)
    return {
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": False,
            "user": {"uid": uid, "gid": gid, "additionalGids": list(groups), "umask": 0o022},
            "args": args,
            "env": [f"{key}={value}" for key, value in sorted(environment.items())],
            "cwd": definition.get("cwd") or process.get("cwd") or "/",
            # Root in the container starts with these; another user has none until it runs something set-user-id.
            "capabilities": {
                "bounding": caps,
                "effective": caps if uid == 0 else [],
                "permitted": caps if uid == 0 else [],
            },
            "noNewPrivileges": bool(definition.get("no_new_privileges", True)),
        },
        "root": {"path": "rootfs", "readonly": False},
        "hostname": definition.get("hostname") or name,
        "mounts": _mounts(definition),
        "linux": linux,
    }
