# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._image import userdata
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import guest_definition as gd
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import options

from . import guest_models
from .guest_models import item


def test_defaults() -> None:
    found = item()
    assert found["described"]
    assert (found["state"], found["vcpus"], found["max_memory_mib"], found["agent"]) == ("running", 1, 512, True)
    assert found["graphics"] == {"type": "none"}
    assert found["autostart"] is None


def test_only_a_state_is_no_description() -> None:
    found = gd.normalise({"name": "web", "state": "stopped", "stop_timeout_s": "5", "force_stop": True})
    assert not found["described"]
    assert (found["stop_timeout_s"], found["force_stop"]) == (5, True)


def test_identity_is_stable_and_its_own() -> None:
    assert gd.uuid_of("web") == gd.uuid_of("web") != gd.uuid_of("web2")
    first, second = gd.mac_of("web", 0), gd.mac_of("web", 1)
    assert first.startswith("52:54:00:")
    assert first != second
    assert item(networks=[{}, {}])["networks"][1]["mac"] == second


@given(st.text(min_size=1), st.integers(0, 50))
def test_macs_are_unicast_and_local(name: str, index: int) -> None:
    assert int(gd.mac_of(name, index)[:2], 16) & 3 == 2


@pytest.mark.parametrize(
    "given",
    [
        {"name": "../x"},
        {"name": "a/b"},
        {"name": "-rf"},
        {"name": "a b"},
        {"name": "web\n"},
        {"name": ""},
        {"name": None},
        {"name": 7},
        {"name": "007"},
        {"name": "lost+found"},
        {"name": "web.lock"},
        {"name": "<b>"},
        {"memory_mib": "2048.7"},
        {"memory_mib": ""},
        {"memory_mib": 0},
        {"memory_mib": 2**70},
        {"memory_mib": True},
        {"memory_mib": "1_000"},
        {"memory_mib": "1e3"},
        {"vcpus": True},
        {"vcpus": "٣"},
        {"max_memory_mib": 100},
        {"vcpus": 4, "max_vcpus": 2},
        {"agent": "maybe"},
        {"uuid": "11111111-1111-1111-1111-111111111111"},
        {"uuid": "web"},
        {"firmware": "ovmf"},
        {"secure_boot": True},
        {"machine": "q35 -s"},
        {"cpu": "EPYC,+svm"},
        {"cpu": {"features": ["aes", "aes"]}},
        {"cpu": {"features": [{"name": "aes", "policy": "maybe"}]}},
        {"kernel": "boot/vmlinuz"},
        {"kernel": "/boot/../x"},
        {"cmdline": "quiet"},
        {"boot": ["disk", "disk"]},
        {"boot": ["floppy"]},
        {"description": "a\x00b"},
        {"description": "a\x1bb"},
        {"description": "\ud800"},
        {"tags": {"a b": "c"}},
        {"tags": {"a": True}},
        {"tags": {"version": 1.10}},
        {"tags": {"a": ["b"]}},
        {"tags": {"group": 7}},
        {"description": 1.1},
        {"cpu": {"model": False}},
        {"machine": 7},
        {"cdrom": False},
        {"state": False},
        {"boot": "disk, floppy"},
        {"disks": [{}]},
        {"disks": [{"path": "/a", "pool": "p"}]},
        {"disks": [{"path": "a"}]},
        {"disks": [{"path": "/a"}, {"path": "/a"}]},
        {"disks": [{"path": "/dev/sdb"}]},
        {"disks": [{"path": "/dev/sdb", "format": "raw", "size_mib": 10}]},
        {"disks": [{"size_mib": 1.5}]},
        {"disks": [{"size_mib": 1, "name": "sda", "bus": "scsi"}]},
        {"disks": [{"size_mib": 1, "name": "sdc"}]},
        {"disks": [{"size_mib": 1, "name": "vda"}, {"size_mib": 1, "name": "vda"}]},
        {"disks": [{"size_mib": 1, "serial": "a,b"}]},
        {"disks": [{"size_mib": 1, "serial": 7}]},
        {"disks": [{"size_mib": 1, "serial": 0}]},
        {"disks": [{"size_mib": 1, "bus": False}]},
        {"disks": [{"size_mib": 1, "bus": "sata", "read_only": True}]},
        {"disks": [{"size_mib": 1, "format": "auto"}]},
        {"disks": [{"size_mib": 1, "unknown": 1}]},
        {"disks": [{"template": "debian", "format": "raw"}]},
        {"disks": [{"template": "../debian"}]},
        {"disks": {"size_mib": 1}},
        {"networks": [{"type": "user"}]},
        {"networks": [{"mac": 41135085296}]},
        {"networks": [{"mac": "53:54:00:00:00:01"}]},
        {"networks": [{"mac": "00:00:00:00:00:00"}]},
        {"networks": [{"mac": "52:54:00:00:00:01"}, {"mac": "52:54:00:00:00:01"}]},
        {"networks": [{"type": "bridge"}]},
        {"networks": [{"type": "bridge", "source": "a-name-that-is-too-long"}]},
        {"networks": [{"type": "overlay", "source": "br0"}]},
        {"networks": [{"type": "overlay", "address": "10.0.0"}]},
        {"networks": [{"address": "10.0.0.1"}]},
        {"networks": [{"type": "overlay", "address": "10.0.0.1"}, {"type": "overlay", "address": "10.0.0.2"}]},
        {"graphics": {"type": "spice"}},
        {"graphics": {"password": "x"}},
        {"graphics": {"type": "vnc", "password": "123456789"}},
        {"graphics": {"type": "vnc", "password": 342391}},
        {"graphics": {"type": "vnc", "password": ["secret"]}},
        {"graphics": {"type": "vnc", "listen": "all"}},
        {"graphics": {"type": "vnc", "port": 80}},
        {"shared_folders": [{"source": "srv", "tag": "a"}]},
        {"shared_folders": [{"source": "/srv", "tag": "a b"}]},
        {"shared_folders": [{"source": "/srv", "tag": 7}]},
        {"shared_folders": [{"source": "/srv", "tag": "a"}, {"source": "/s", "tag": "a"}]},
        {"cloud_init": {"userdata": ""}},
        {"cloud_init": {"user_data": "", "policy": "always"}},
        {"wait_for": {"port": 0}},
        {"wait_for": "dns"},
        {"wait_for": "ssh", "state": "stopped"},
        {"wait_for": "cloud_init", "agent": False},
        {"delete_disks": True},
        {"state": "shutdown"},
        {"memory": 1},
        "web",
    ],
)
def test_refused(given: t.Any) -> None:
    value = {"name": "web", "memory_mib": 512, **given} if isinstance(given, dict) else given
    with pytest.raises(InputError) as caught:
        gd.normalise(value, "guests[3]")
    assert str(caught.value).startswith("guests[3]")


@pytest.mark.parametrize("number", [7, 0, False, 1.5])
@pytest.mark.parametrize(("kind", "key"), [("disks", "template"), ("disks", "pool"), ("networks", "source")])
def test_a_name_that_yaml_made_a_number_of_is_refused(kind: str, key: str, number: object) -> None:
    """As Ansible gives it to us: it would make the name 7 of 007."""
    one = {"size_mib": 1, key: number} if kind == "disks" else {key: number}
    validated = ArgumentSpecValidator(options.GUEST).validate(
        {"guests": [{"name": "web", "memory_mib": 512, kind: [one]}]}
    )
    assert validated.error_messages == []
    with pytest.raises(InputError, match=rf"{kind}\[0\]\.{key}: {number!r} is not text\. Put it in quotes"):
        gd.normalise(validated.validated_parameters["guests"][0])


def test_memory_is_needed_to_describe() -> None:
    with pytest.raises(InputError, match="memory_mib is missing"):
        gd.normalise({"name": "web", "vcpus": 2})


def test_what_surveys_send_is_understood() -> None:
    found = gd.normalise(
        {"name": "web", "memory_mib": " 2048 ", "agent": "no", "disks": [""], "networks": "", "tags": ""}
    )
    assert (found["memory_mib"], found["agent"], found["disks"], found["networks"]) == (2048, False, [], [])
    empty = ("disks", "networks", "shared_folders", "graphics", "cloud_init", "wait_for", "cpu", "boot", "state")
    plain = gd.normalise({"name": "web", "memory_mib": 64})
    assert gd.normalise({"name": "web", "memory_mib": 64, **dict.fromkeys(empty, "")}) == plain
    assert gd.normalise({"name": "web", "memory_mib": 64, "boot": "cdrom, disk"})["boot"] == ["cdrom", "disk"]


def test_disks_are_named_in_order_around_those_that_have_a_name() -> None:
    disks = [{"size_mib": 1}, {"size_mib": 1, "name": "vda"}, {"size_mib": 1, "bus": "scsi"}, {"size_mib": 1}]
    assert [disk["name"] for disk in item(disks=disks)["disks"]] == ["vdb", "vda", "sdc", "vdc"]
    many = item(disks=[{"size_mib": 1}] * 30)["disks"]
    assert [many[at]["name"] for at in (0, 25, 26, 29)] == ["vda", "vdz", "vdaa", "vdad"]


def test_features_may_be_a_mapping() -> None:
    assert item(cpu={"model": "EPYC", "features": {"svm": "disable"}})["cpu"]["features"] == {"svm": "disable"}


def test_wait_for_is_a_word_or_a_mapping() -> None:
    assert item(wait_for="ssh")["wait_for"]["ssh"]
    assert item(wait_for={"port": "80", "timeout_s": 5})["wait_for"] == {
        "address": False, "ssh": False, "cloud_init": False, "port": 80, "timeout_s": 5,
    }  # fmt: skip
    assert item(wait_for={"ssh": False})["wait_for"] is None


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({"name": "a"}, {"name": "a"}, "given twice"),
        ({"name": "a", "uuid": gd.uuid_of("b")}, {"name": "b"}, "same UUID"),
        ({"name": "a", "networks": [{"mac": gd.mac_of("b", 0)}]}, {"name": "b", "networks": [{}]}, "same MAC"),
        (
            {"name": "a", "networks": [{"type": "overlay", "address": "10.0.0.2"}]},
            {"name": "b", "networks": [{"type": "overlay", "address": "10.0.0.2"}]},
            "same address",
        ),
        ({"name": "a", "disks": [{"path": "/d"}]}, {"name": "b", "disks": [{"path": "/d"}]}, "same disk"),
    ],
)
def test_nothing_twice_in_a_list(first: dict[str, t.Any], second: dict[str, t.Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        gd.normalise_all([{"memory_mib": 64, **first}, {"memory_mib": 64, **second}])


def test_a_read_only_disk_may_be_shared() -> None:
    disk = {"path": "/d", "read_only": True}
    assert len(gd.normalise_all([{"name": name, "memory_mib": 64, "disks": [disk]} for name in ("a", "b")])) == 2


def test_the_definition_keeps_no_secrets() -> None:
    given = item(**guest_models.FULL, cloud_init={"user_data": "#cloud-config\npassword: canary"})
    definition = gd.definition_of(
        given, templates={"vda": "ab" * 32}, seeded={"digest": "cd" * 32, "policy": "new_instance"}
    )
    text = repr(definition)
    assert "se<>ret" not in text
    assert "canary" not in text
    assert definition["address"] == "10.100.101.30"
    assert definition["disks"][0]["template_digest"] == "ab" * 32
    assert gd.digest_of(definition) == gd.digest_of(dict(reversed(list(definition.items()))))


FULL = {
    "uuid": "0705aea1-1ea0-540a-967e-c710e0d8de07", "description": " A  guest ", "tags": {"team": "web"},
    "max_memory_mib": 1024, "vcpus": 2, "max_vcpus": 4, "cpu": {"model": "EPYC", "features": ["vmx"]},
    "machine": "pc-q35-7.2", "firmware": "uefi", "secure_boot": True, "kernel": "/boot/vmlinuz", "cmdline": "a  b",
    "boot": "network", "cdrom": "/srv/x.iso", "autostart": True, "agent": False, "serial": "log",
    "disks": [
        {"template": "sha256:" + "a" * 64}, {"pool": "srv", "size_mib": 5, "format": "raw"},
        {"path": "/dev/vg/x", "format": "raw"},
        {"path": "/srv/x.qcow2", "read_only": True, "bus": "scsi", "serial": "abc"},
    ],
    "networks": [{"type": "overlay", "address": "10.0.0.5"}, {"type": "bridge", "source": "br0"}],
    "graphics": {"type": "vnc", "port": 5901, "password": "secret"},
    "shared_folders": [{"source": "/srv", "tag": "srv"}],
    "cloud_init": {"user_data": "x"},
}  # fmt: skip


def sent(**given: t.Any) -> dict[str, t.Any]:
    """A definition as it comes from another host."""
    wanted = item(**given)
    seeded = {"digest": "d", "instance_id": "i", "policy": "keep"} if wanted["cloud_init"] else None
    made = gd.definition_of(wanted, templates={"vda": "a" * 64}, seeded=seeded)
    made["disks"] = [{**disk, "made": True} for disk in made["disks"]]
    return t.cast("dict[str, t.Any]", json.loads(json.dumps(made)))


@pytest.mark.parametrize("given", [{}, FULL])
def test_what_the_module_writes_is_taken_from_another_host(given: dict[str, t.Any]) -> None:
    gd.check_normal(sent(**given))


def of_disk(**changed: t.Any) -> dict[str, t.Any]:
    definition = sent(**FULL)
    return {**definition, "disks": [{**definition["disks"][0], **changed}, *definition["disks"][1:]]}


@pytest.mark.parametrize(
    "definition",
    [
        {**sent(), "memory_mib": "many"},
        {**sent(), "memory_mib": "512"},
        {**sent(), "more": 1},
        {**sent(), "name": "../x"},
        {**sent(), "kind": "container"},
        {**sent(), "schema": 7},
        {**sent(), "disks": "/etc/passwd"},
        {**sent(), "address": "10.0.0.5"},
        {**sent(), "cloud_init": {"digest": "d", "instance_id": "i", "policy": "what"}},
        {**sent(), "cloud_init": {"digest": "d", "instance_id": ["i"], "policy": "keep"}},
        {**sent(), "cloud_init": {"digest": "d", "instance_id": "i", "policy": "keep", "more": 1}},
        of_disk(name="vda/../../x"),
        of_disk(name=""),
        of_disk(path="/srv/../etc/passwd"),
        of_disk(pool="../x"),
        of_disk(made="yes"),
        of_disk(made=None),
        of_disk(template_digest="../x"),
        of_disk(template_digest=None),
        of_disk(format="vmdk"),
        of_disk(more=1),
    ],
)
def test_what_the_module_would_not_write_is_not_taken(definition: dict[str, t.Any]) -> None:
    with pytest.raises(InputError):
        gd.check_normal(definition)


def test_changed_keys() -> None:
    before = gd.definition_of(item(), templates={}, seeded=None)
    after = gd.definition_of(item(memory_mib=1024, tags={"a": "b"}), templates={}, seeded=None)
    assert gd.changed_keys(before, after) == ["max_memory_mib", "memory_mib", "tags"]
    assert gd.changed_keys(before, before) == []


@pytest.mark.parametrize(
    ("arch", "kind", "model"),
    [
        ("x86_64", "qemu", "qemu64"),
        ("x86_64", "kvm", "host-model"),
        # libvirt: "CPU mode 'host-model' for aarch64 kvm domain on aarch64 host is not supported by hypervisor".
        ("aarch64", "qemu", "maximum"),
        ("aarch64", "kvm", "host-passthrough"),
    ],
)
def test_the_cpu_follows_from_how_it_is_run(arch: str, kind: str, model: str) -> None:
    assert guest_models.model(item(), kind=kind, arch=arch)["cpu"]["model"] == model
    assert guest_models.model(item(cpu="host-passthrough"), kind="kvm")["cpu"]["model"] == "host-passthrough"


def test_vnc_is_on_the_loopback_unless_said_otherwise() -> None:
    assert guest_models.model(item(graphics="vnc"))["graphics"]["listen"] == "127.0.0.1"


def test_the_overlay_is_a_bridge_with_its_mtu() -> None:
    given = item(networks=[{"type": "overlay"}, {"type": "overlay", "model": "e1000"}])
    cards = list(guest_models.model(given)["networks"].values())
    assert [(card["type"], card["source"], card["mtu"]) for card in cards] == [
        ("bridge", "cnvm0", 1370),
        ("bridge", "cnvm0", 0),
    ]


def test_without_an_overlay_it_is_refused() -> None:
    definition = gd.definition_of(item(networks=[{"type": "overlay"}]), templates={}, seeded=None)
    with pytest.raises(InputError, match="no overlay"):
        gd.model_of(definition, kind="qemu", arch="x86_64", disks={}, overlay=None, log="", seed_path="")


def test_static_network_has_the_route_only_when_it_is_alone() -> None:
    alone = gd.static_network(item(networks=[{"type": "overlay", "address": "10.100.101.30"}]), guest_models.OVERLAY)
    card = alone["ethernets"]["net0"]
    assert card["addresses"] == ["10.100.101.30/24"]
    assert card["match"] == {"macaddress": gd.mac_of("web", 0)}
    assert card["routes"] == [{"to": "0.0.0.0/0", "via": "10.100.101.1"}]
    both = gd.static_network(
        item(networks=[{"type": "overlay", "address": "10.100.101.30"}, {}]), guest_models.OVERLAY
    )["ethernets"]
    assert "routes" not in both["net0"]
    assert both["net1"]["dhcp4"] is True


def test_a_config_drive_says_the_same_as_openstack_does() -> None:
    cards = [{"type": "overlay", "address": "10.100.101.30"}, {}, {"type": "overlay"}]
    said = gd.openstack_network(gd.static_network(item(networks=cards), guest_models.OVERLAY))
    userdata.check_openstack_network(said, "x")
    macs = [gd.mac_of("web", number) for number in range(3)]
    assert [(link["id"], link["ethernet_mac_address"], link.get("mtu")) for link in said["links"]] == [
        ("net0", macs[0], guest_models.OVERLAY["mtu"]),
        ("net1", macs[1], None),
        ("net2", macs[2], None),
    ]
    where = {"ip_address": "10.100.101.30", "netmask": "255.255.255.0"}
    static = {"id": "net0", "link": "net0", "type": "ipv4", **where}
    assert said["networks"] == [{**static, "routes": []}, {"id": "net1", "link": "net1", "type": "ipv4_dhcp"}]
    alone = gd.openstack_network(gd.static_network(item(networks=cards[:1]), guest_models.OVERLAY))
    default = {"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.100.101.1"}
    assert alone["networks"] == [{**static, "routes": [default]}]
