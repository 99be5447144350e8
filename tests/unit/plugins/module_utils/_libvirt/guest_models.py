# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models of domains for the tests: one of each kind of thing, and all that hypothesis can think of."""

from __future__ import annotations

import typing as t

from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import guest_definition
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt.domain import Model

OVERLAY = {"bridge": "cnvm0", "mtu": 1370, "gateway": "10.100.101.1", "subnet": "10.100.101.0/24"}
DIGEST = "ab" * 32
TEMPLATE = f"/var/lib/cnvm/templates/sha256/{DIGEST}/disk.qcow2"


def item(**given: t.Any) -> dict[str, t.Any]:
    """A guest as a user writes it, in its normal form."""
    return guest_definition.normalise({"name": "web", "memory_mib": 512, **given})


def model(
    given: t.Mapping[str, t.Any], *, kind: str = "qemu", arch: str = "x86_64", seed: str = "", password: str = ""
) -> Model:
    """The model of a normal item on a host that has everything where it usually is."""
    templates = {disk["name"]: DIGEST for disk in given["disks"] if disk["template"]}
    known = {"digest": "cd" * 32, "policy": "new_instance"} if seed else None
    definition = guest_definition.definition_of(given, templates=templates, seeded=known)
    disks: dict[str, t.Any] = {}
    for disk in given["disks"]:
        path = disk["path"] or f"/var/lib/cnvm/workloads/{given['name']}/disks/{disk['name']}.{disk['format']}"
        linked = [{"path": TEMPLATE, "format": "qcow2", "read_only": True}] if disk["template"] else []
        disks[disk["name"]] = {"path": path, "backing": linked}
    return guest_definition.model_of(
        definition,
        kind=kind,
        arch=arch,
        disks=disks,
        overlay=OVERLAY,
        log=f"/var/log/cnvm/guests/{given['name']}.log",
        seed_path=seed,
        password=password or given["graphics"].get("password", ""),
    )


FULL = {
    "name": "web",
    "description": "<b>\"web\" & 'more'</b> ]]>",
    "tags": {"group": "front", "type": 'a<b>&"c"', "n": "1"},
    "memory_mib": 512,
    "max_memory_mib": 1024,
    "vcpus": 2,
    "max_vcpus": 4,
    "cpu": {"model": "EPYC", "features": [{"name": "svm", "policy": "disable"}, "aes"]},
    "firmware": "uefi",
    "disks": [
        {"template": "debian", "size_mib": 4096},
        {"size_mib": 100, "format": "raw", "bus": "scsi", "cache": "writeback", "serial": "data-1"},
        {"path": "/dev/vg/data", "format": "raw", "read_only": True},
    ],
    "cdrom": "/srv/install.iso",
    "networks": [
        {"source": "default"},
        {"type": "bridge", "source": "br0", "mac": "52:54:00:AA:bb:01", "model": "e1000"},
        {"type": "overlay", "address": "10.100.101.30"},
    ],
    "graphics": {"type": "vnc", "password": "se<>ret"},
    "serial": "log",
    "shared_folders": [
        {"source": "/srv/data", "tag": "data"},
        {"source": "/srv/ro", "tag": "ro", "driver": "9p", "read_only": True},
    ],
}


# Text that XML can hold; libvirt and we take white space at the ends away.
texts = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff"), max_size=30)
words = st.from_regex(r"[a-z][a-z0-9_.-]{0,10}", fullmatch=True)
paths = st.lists(words, min_size=1, max_size=4).map(lambda parts: "/srv/" + "/".join(parts)) | st.just("/dev/vg/lv")
files = st.lists(words, min_size=1, max_size=4).map(lambda parts: "/srv/" + "/".join(parts))
macs = st.lists(st.integers(0, 255), min_size=5, max_size=5).map(
    lambda parts: ":".join(["52", *(f"{part:02x}" for part in parts)])
)
features = st.dictionaries(words, st.sampled_from(guest_definition.POLICIES), max_size=3)
cpus = st.fixed_dictionaries({"model": st.sampled_from(["host-model", "qemu64", "EPYC"]), "features": features})
disks = st.fixed_dictionaries(
    {
        "path": paths,
        "format": st.sampled_from(guest_definition.FORMATS),
        "bus": st.sampled_from(guest_definition.BUSES),
        "cache": st.sampled_from(["default", *guest_definition.CACHES]),
        "read_only": st.booleans(),
        "serial": st.just("") | words,
        "backing": st.lists(
            st.fixed_dictionaries(
                {"path": paths, "format": st.sampled_from(["qcow2", "raw"]), "read_only": st.booleans()}
            ),
            max_size=3,
        ),
    }
)
cdroms = st.fixed_dictionaries({"path": st.just("") | files, "bus": st.sampled_from(["sata", "scsi"])})
networks = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["network", "bridge"]),
        "source": words,
        "model": st.sampled_from(guest_definition.CARDS),
        "mtu": st.just(0) | st.integers(576, 9000),
    }
)
screens = st.just({"type": "none"}) | st.fixed_dictionaries(
    {
        "type": st.just("vnc"),
        "listen": st.sampled_from(["127.0.0.1", "0.0.0.0", "::1"]),
        "port": st.none() | st.integers(5900, 65535),
        "password": texts,
    }
)
folders = st.fixed_dictionaries(
    {"source": files, "driver": st.sampled_from(["virtiofs", "9p"]), "read_only": st.booleans()}
)
marks = st.fixed_dictionaries(
    {
        "definition": st.just("ef" * 32),
        "tags": st.dictionaries(words, texts, max_size=3),
        "seed": st.sampled_from(["", DIGEST]),
        "templates": st.dictionaries(st.sampled_from(["vda", "vdb"]), st.just(DIGEST)),
    }
)


@st.composite
def models(draw: st.DrawFn) -> Model:
    """Any model that a definition can lead to, and then some."""
    firmware = draw(st.sampled_from(["bios", "uefi"]))
    cpu = draw(cpus)
    memory, vcpus = draw(st.integers(8, 2**20)), draw(st.integers(1, 64))
    targets = st.sampled_from(["vda", "vdb", "vdz", "vdaa", "sdc"])
    return {
        "name": "web",
        "uuid": guest_definition.uuid_of("web"),
        "type": draw(st.sampled_from(["kvm", "qemu"])),
        "description": draw(texts).strip(),
        "marks": {**draw(marks), "cpu": cpu},
        "memory_mib": memory,
        "max_memory_mib": memory + draw(st.integers(0, 100)),
        "vcpus": vcpus,
        "max_vcpus": vcpus + draw(st.integers(0, 4)),
        "cpu": cpu,
        "arch": "x86_64",
        "machine": draw(st.sampled_from(["q35", "pc", "pc-q35-8.2"])),
        "firmware": firmware,
        "secure_boot": firmware == "uefi" and draw(st.booleans()),
        "kernel": draw(st.just("") | files),
        "initrd": draw(st.just("") | files),
        "cmdline": draw(st.just("") | words),
        "boot": draw(st.lists(st.sampled_from(guest_definition.BOOTS), unique=True)),
        "disks": draw(st.dictionaries(targets, disks, max_size=4)),
        "cdroms": draw(st.dictionaries(st.sampled_from(["sda", "sdb"]), cdroms)),
        "networks": draw(st.dictionaries(macs, networks, max_size=3)),
        "graphics": draw(screens),
        "serial": draw(
            st.sampled_from([{"type": "none", "log": ""}, {"type": "pty", "log": ""}, {"type": "pty", "log": "/v/l"}])
        ),
        "shared_folders": draw(st.dictionaries(words, folders, max_size=2)),
        "agent": draw(st.booleans()),
    }
