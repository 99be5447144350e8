# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What a host gives to a guest that comes from another one. It decides by itself: its peer may have been taken over.

*Announced* is what the *needs* of a guest name (see ``migration``): disks, files that must be there, files that come
with it. What libvirt is told of the guest later is held against that.
"""

from __future__ import annotations

import posixpath
import typing as t

from .._core import paths
from .._core.names import is_digest
from . import domain
from .xml import Element, attribute

Needs = t.Mapping[str, t.Any]

# Where libvirt itself has images; other directories are those of pools.
IMAGES = "/var/lib/libvirt/images"
# libvirt's own places, which it names anew on each host, and devices that any guest may have.
_LIBVIRT = (
    "/var/lib/libvirt/qemu/channel/", "/var/lib/libvirt/qemu/domain-", "/run/libvirt/qemu/channel/",
    "/var/run/libvirt/qemu/channel/", "/dev/pts/",
)  # fmt: skip
_DEVICES = ("/dev/urandom", "/dev/random", "/dev/null", "/dev/net/tun", "/dev/vhost-net")
# What belongs to the distribution: (tag, attribute; '' is the text).
_PROGRAMS = (("emulator", ""), ("loader", ""), ("nvram", "template"))
# Children of a domain that are words for people, or no files.
_WORDS = ("name", "title", "description", "metadata", "resource")
_PATH_KEYS = ("file", "path", "dir", "socket")
_INTERFACES = ("network", "bridge", "direct", "user")


def _plain(path: object) -> bool:
    """Whether it is an absolute path that leads nowhere but where it says."""
    return isinstance(path, str) and path.startswith("/") and posixpath.normpath(path) == path


def refusals(name: str, host: str, needs: Needs, pools: t.Mapping[str, str]) -> list[str]:
    """What of what is announced this host (``host``) does not give. ``pools``: {name: directory} of its pools."""
    found = []
    for disk in (*needs["disks"], *needs["fixed"]):
        path, below = disk["path"], disk["below"]
        directory = posixpath.dirname(str(path))
        if not _plain(path):
            found.append(f"disks: {path!r} is no plain path.")
        elif disk["shared"] and path.startswith(f"{paths.STATE}/"):
            # What a guest has in there is removed on the host that it leaves.
            found.append(
                f"disks: {path} is on storage that hosts share. {paths.STATE} must be each host's own; put disks that"
                " are shared elsewhere."
            )
        elif disk["pool"] and pools.get(disk["pool"]) != directory:
            found.append(
                f"disks: {host} has no pool {disk['pool']} in {directory} for {path}. Make it there"
                " (cnvm.platform.pool)."
            )
        elif disk in needs["disks"] and not disk["shared"] and directory not in _places(name, pools):
            found.append(
                f"disks: {host} takes no disk from another host into {directory}. Make it the directory of a pool there"
                " (cnvm.platform.pool)."
            )
        if disk["template"] and not is_digest(str(disk["template"])):
            # It would lead anywhere.
            found.append(f"disks: {disk['template']!r}, on which {path} would rest, is no digest of a template.")
        elif below and (not disk["template"] or below != paths.template_disk(disk["template"])):
            found.append(f"disks: {host} gives {path} no file to rest on but a template, and {below} is none.")
    firmware = {**needs["firmware"], **needs["next_start"].get("firmware", {})}
    found += [f"files: {path!r} is no plain path." for path in (*needs["files"], *firmware) if not _plain(path)]
    own = (paths.guest_seed(name), *paths.guest_nvram(name), *(disk["path"] for disk in _own(name, needs["fixed"])))
    found += [f"files: {host} takes no {path} from another host." for path in needs["brought"] if path not in own]
    if needs["log"] not in ("", paths.guest_log(name)):
        found.append(f"serial: {host} lets no guest that comes write to {needs['log']}.")
    return found


def _places(name: str, pools: t.Mapping[str, str]) -> tuple[str, ...]:
    return (paths.guest_disks_dir(name), IMAGES, *pools.values())


def _own(name: str, disks: t.Sequence[t.Mapping[str, t.Any]]) -> list[t.Mapping[str, t.Any]]:
    """Disks in the guest's own directory."""
    return [disk for disk in disks if posixpath.dirname(disk["path"]) == paths.guest_disks_dir(name)]


def folders(model: domain.Model) -> list[str]:
    """The folders of its host that a guest has, in words."""
    return [f"the folder {tag}" for tag in sorted(model["shared_folders"])]


def volumes(root: Element) -> list[str]:
    """The disks of a domain that it has from its host's pools, in words."""
    return [f"the volume {volume} of the pool {pool}" for _source, pool, volume in domain.volumes(root)]


def foreign_paths(name: str, root: Element, needs: Needs) -> list[str]:
    """The files of its host that a domain's XML names and that were not announced, or not for what they are there:
    what belongs to the host, and a template, a guest only reads."""
    own = {disk["path"] for disk in needs["disks"]} | set(needs["brought"]) | {needs["log"]}
    own |= set(paths.guest_nvram(name)) | set(_DEVICES)
    read = {disk["path"] for disk in needs["fixed"]} | set(needs["files"])
    read |= {disk["below"] for disk in (*needs["disks"], *needs["fixed"])}
    readers = _readers(root)
    return sorted(
        {
            path
            for element, path in _named(root)
            if path not in own
            and not (path in read and element in readers)
            and not (posixpath.normpath(path) == path and path.startswith(_LIBVIRT))
        }
    )


def _readers(root: Element) -> list[Element]:
    """The parts of a domain whose files it only reads."""
    found = [each for tag in ("os/kernel", "os/initrd") for each in root.findall(tag)]
    for disk in root.findall("devices/disk"):
        if disk.get("device") == "cdrom" or disk.find("readonly") is not None:
            found += disk.findall("source")
        found += disk.findall("backingStore//source")
    return found


def _named(root: Element) -> list[tuple[Element, str]]:
    """The files that a domain's XML names: (where, path)."""
    found = []
    for child in root:
        for each in child.iter() if child.tag not in _WORDS else ():
            if each.tag == "cmdline":
                continue
            for key, value in (("", (each.text or "").strip()), *each.attrib.items()):
                if (each.tag, key) == ("graphics", "passwd"):
                    continue
                if (each.tag, key) in _PROGRAMS and value.startswith("/usr/") and _plain(value):
                    continue
                if value.startswith("/") or (value and key in _PATH_KEYS):
                    found.append((each, value))
    return found


def _unlike(root: Element, needs: Needs) -> list[str]:
    """The disks of a domain that are read as something else than was announced, in words."""
    formats = {disk["path"]: disk["format"] for disk in (*needs["disks"], *needs["fixed"])}
    found = []
    for disk in root.findall("devices/disk"):
        target, path = attribute(disk, "target", "dev"), domain.path_of(disk)
        kind = attribute(disk, "driver", "type", "raw")
        if kind != ("raw" if disk.get("device") == "cdrom" else formats.get(path, kind)):
            found.append(f"{target} as {kind}")
    return found


def _devices(root: Element) -> list[str]:
    """The disks of a domain, and what lies below them, that are devices or sockets of the host, in words. They need not
    have a path. (Those of a pool or of the network others tell.)"""
    parts = [part for disk in root.findall("devices/disk") for part in disk.iter() if part.find("source") is not None]
    kinds = {part.get("type", "file") for part in parts} - {"file", "block", "volume", "network"}
    return [f"a disk of the type {kind!r}" for kind in sorted(kinds)]


def left_open(root: Element, needs: Needs) -> list[str]:
    """The disks of a domain that leave it to their files what they rest on, in words: libvirt would believe those, and
    give the guest whatever they name. Of what comes with this move the host has made the file, or looked at it (see
    ``_host.guest_target``)."""
    checked = {disk["path"] for disk in needs["disks"] if not disk["shared"]} | set(needs["brought"])
    return [
        f"{attribute(disk, 'target', 'dev')} without a word on what it rests on (backingStore)"
        for disk in root.findall("devices/disk")
        if domain.path_of(disk) not in checked and not domain.is_closed(disk)
    ]


def strangers(name: str, root: Element, needs: Needs) -> list[str]:
    """What of a domain that is being brought was not announced, or is given to no guest that comes."""
    model = domain.parse(root)
    found = [] if model["name"] == name and model["uuid"] == needs["uuid"] else ["its name or UUID"]
    found += foreign_paths(name, root, needs)
    drives = {one["path"] for one in (*model["disks"].values(), *model["cdroms"].values())}
    # A disk of no file: of a pool, of the network.
    found += sorted(drive for drive in drives if drive and not drive.startswith("/"))
    found += volumes(root)
    found += _devices(root)
    found += _unlike(root, needs)
    found += left_open(root, needs)
    if len(root.findall("devices")) > 1:
        found.append("a second list of devices")
    found += domain.other_devices(root)
    found += folders(model)
    kinds = {card["type"] for card in model["networks"].values()}
    found += [f"a network of the type {kind!r}" for kind in sorted(kinds - set(_INTERFACES))]
    found += domain.passed_through(root)
    return found
