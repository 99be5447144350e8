# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Where things lie on a host. Names in paths were checked by ``names.check_name`` before they come here."""

from __future__ import annotations

ETC = "/etc/cnvm"
STATE = "/var/lib/cnvm"
RUN = "/run/cnvm"
LOGS = "/var/log/cnvm"

HOST_FILE = f"{ETC}/host.json"
OVERLAY_FILE = f"{ETC}/overlay.json"
SSH_CONFIG = f"{ETC}/ssh/config"
HELPER = "/usr/local/sbin/cnvm-host"
HELPER_LIBRARY = "/usr/local/lib/cnvm"

IMAGES = f"{STATE}/images"
WORKLOADS = f"{STATE}/workloads"
UNIT_SLICE = "cnvm.slice"
# libvirt's.
NVRAM = "/var/lib/libvirt/qemu/nvram"
QEMU_LOGS = "/var/log/libvirt/qemu"


def workload_dir(name: str) -> str:
    """What a host keeps of a container: definition, owner record, journal of a move, writable layer."""
    return f"{WORKLOADS}/{name}"


def definition_file(name: str) -> str:
    """The receiver's own description of the container; written by the module container, copied by a move."""
    return f"{workload_dir(name)}/definition.json"


def owner_file(name: str) -> str:
    """The owner record: which host may run the container, and since which generation."""
    return f"{workload_dir(name)}/owner.json"


def journal_file(name: str) -> str:
    """The journal of the move that the container is in; absent when it is in none."""
    return f"{workload_dir(name)}/move.json"


def bundle_dir(name: str) -> str:
    """The OCI bundle that the runtime starts: config.json, and rootfs as the mount point of the layers."""
    return f"{workload_dir(name)}/bundle"


def upper_dir(name: str) -> str:
    """The writable layer."""
    return f"{workload_dir(name)}/upper"


def layer_work_dir(name: str) -> str:
    """overlayfs's work directory, on the file system of the writable layer."""
    return f"{workload_dir(name)}/work"


def run_dir(name: str) -> str:
    """What does not outlive a boot: pid file, FIFOs of an incoming restore."""
    return f"{RUN}/containers/{name}"


def turned_away_file(name: str) -> str:
    """Says during which move the container's unit was started and turned away."""
    return f"{RUN}/turned-away/{name}"


def lock_file(name: str) -> str:
    """Held with flock by whoever changes the container."""
    return f"{RUN}/locks/{name}.lock"


def move_dir(move_id: str) -> str:
    """Checkpoint images and sockets of one move: memory only (tmpfs), mode 0700."""
    return f"{RUN}/moves/{move_id}"


def move_log_dir(move_id: str) -> str:
    """CRIU's and our logs of one move; kept after it."""
    return f"{LOGS}/moves/{move_id}"


def image_dir(digest: str) -> str:
    """An unpacked image: image.json, config.json, rootfs. ``digest``: 64 hexadecimal digits (sha256)."""
    return f"{IMAGES}/sha256/{digest}"


def image_name_file(name: str) -> str:
    """Holds the digest that a name stands for on this host."""
    return f"{IMAGES}/names/{name}"


def unit_name(name: str) -> str:
    """The systemd unit that supervises the container."""
    return f"cnvm-container@{name}.service"


def unit_cgroup(name: str) -> str:
    """The unit's cgroup, relative to the root of the hierarchy."""
    return f"/{UNIT_SLICE}/{unit_name(name)}"


def hold_cgroup(name: str) -> str:
    """Freezing this one freezes the container whatever its runtime or CRIU do to its own cgroup below."""
    return f"{unit_cgroup(name)}/hold"


def payload_cgroup(name: str) -> str:
    """The container's own cgroup (``linux.cgroupsPath`` of its config.json)."""
    return f"{hold_cgroup(name)}/payload"


def netns_name(name: str) -> str:
    """The container's network namespace, as ``ip netns`` knows it."""
    return f"cnvm-{name}"


def netns_path(name: str) -> str:
    """The same as a path, as config.json names it (so that it is external to CRIU)."""
    return f"/run/netns/{netns_name(name)}"


KEPT_DISKS = f"{STATE}/kept-disks"
TEMPLATES = f"{STATE}/templates"
# What is written down of disk images, wherever these lie.
DISK_RECORDS = f"{STATE}/disks"


def template_dir(digest: str) -> str:
    """A template: template.json and disk.qcow2, which is read-only. ``digest``: the sha256 of disk.qcow2."""
    return f"{TEMPLATES}/sha256/{digest}"


def template_disk(digest: str) -> str:
    """A template's image. The same path on every host, so that what rests on it can move."""
    return f"{template_dir(digest)}/disk.qcow2"


def template_name_file(name: str) -> str:
    """Holds the digest that a template's name stands for on this host."""
    return f"{TEMPLATES}/names/{name}"


def guest_disks_dir(name: str) -> str:
    """Where the guest's own disks lie."""
    return f"{workload_dir(name)}/disks"


def pooled_disk(guest: str, disk: str, kind: str) -> str:
    """The name of a guest's disk's file in a pool."""
    return f"{guest}-{disk}.{kind}"


def guest_seed(name: str) -> str:
    """The guest's cloud-init seed."""
    return f"{workload_dir(name)}/seed.iso"


def guest_snapshots_file(name: str) -> str:
    """Which snapshots the guest has, and which files they are made of."""
    return f"{workload_dir(name)}/snapshots.json"


def guest_making_file(name: str) -> str:
    """Which files are being made for it."""
    return f"{workload_dir(name)}/making.json"


def guest_restart_file(name: str) -> str:
    """What it was before it was stopped for a change, until it is started again."""
    return f"{workload_dir(name)}/restart.json"


def guest_keeping_file(name: str) -> str:
    """Where its disks are being brought as it is removed without them."""
    return f"{workload_dir(name)}/keeping.json"


def guest_nvram(name: str) -> tuple[str, ...]:
    """Where libvirt keeps the variables of the guest's firmware."""
    return tuple(f"{NVRAM}/{name}_VARS.{ending}" for ending in ("fd", "qcow2"))


def qemu_log(name: str) -> str:
    """What QEMU, and libvirt of it, have said of the guest."""
    return f"{QEMU_LOGS}/{name}.log"


def guest_log(name: str) -> str:
    """What the guest has written on its serial console."""
    return f"{LOGS}/guests/{name}.log"


def kept_disks_dir(name: str) -> str:
    """Disks of a guest that was removed without them."""
    return f"{KEPT_DISKS}/{name}"
