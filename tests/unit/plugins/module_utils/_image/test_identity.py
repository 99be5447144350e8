# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scripts for debugfs, from what debugfs 1.47.0 says of an image."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import Refused
from ansible_collections.cnvm.platform.plugins.module_utils._image import identity
from ansible_collections.cnvm.platform.plugins.module_utils._image.identity import Entry

RECORDED = """\
debugfs: ls -p /etc
/12/040755/0/0/.//
/2/040755/0/0/..//
/13/100644/0/0/debian_version/5/
/14/100444/0/0/machine-id/33/
/15/040755/0/0/ssh//
/16/120777/0/0/os-release/21/

debugfs: ls -p /etc/ssh
/15/040755/0/0/.//
/12/040755/0/0/..//
/17/100600/0/0/ssh_host_rsa_key/2602/
/18/100644/0/0/ssh_host_rsa_key.pub/570/
/19/100644/0/0/sshd_config/3223/

debugfs: ls -p /etc/systemd/system
/20/040755/0/0/.//
/21/040755/0/0/..//

debugfs: ls -p /lib/systemd/system
/22/040755/0/0/.//
/23/040755/0/0/..//
/24/100644/0/0/ssh.service/538/

debugfs: ls -p /var/lib/dbus
/25/040755/0/0/.//
/26/040755/0/0/..//
/27/120777/0/0/machine-id/15/

debugfs: ls -p /var/lib/cloud
/28/040755/0/0/.//
/24/040755/0/0/..//
/29/120777/0/0/instance/28/
/30/040755/0/0/instances//

debugfs: ls -p /nonexist
"""


def test_what_debugfs_says_is_read() -> None:
    found = identity.read(RECORDED)
    assert found["/etc/ssh"][0] == Entry("ssh_host_rsa_key", 0o100600, 2602)
    assert [entry.name for entry in found["/var/lib/cloud"]] == ["instance", "instances"]
    assert found["/nonexist"] == found["/etc/systemd/system"] == []
    assert identity.is_root(found)
    assert not identity.is_root({"/etc": [Entry("fstab", 0o100644)]})
    assert identity.deeper(found) == ["/var/lib/cloud/instances"]


@pytest.mark.parametrize("place", ["/var", "/var/", "/var/lib", "/var/lib/cloud", "/usr"])
def test_what_lies_in_another_file_system_is_not_forgotten(place: str) -> None:
    table = f"UUID=1 / ext4 defaults 0 1\n# /dev/vda3 /var ext4\n\tLABEL=x\t{place} xfs defaults 0 2\n"
    with pytest.raises(Refused, match="in a file system of its own") as refused:
        identity.check_mounts(table)
    assert "reset_identity: false" in refused.value.hint


def test_other_file_systems_are_no_obstacle() -> None:
    places = ("/", "/boot/efi", "/home", "/var/log", "/var/lib/postgresql", "none", "swap", "/variable")
    identity.check_mounts("".join(f"UUID=1 {place} ext4 defaults 0 1\n" for place in places) + "#\nx\n\n")
    assert not identity.has_table({"/etc": [Entry("fstab", 0o120777, 9)]})
    assert not identity.has_table({"/etc": [Entry("fstab", 0o100644, 2**40)]})


def test_one_round_after_the_other_goes_to_the_bottom() -> None:
    found = identity.read(RECORDED)
    found["/var/lib/cloud/instances"] = [Entry("i 1", 0o040755)]
    assert identity.deeper(found) == ["/var/lib/cloud/instances/i 1"]
    assert identity.look(identity.deeper(found)) == 'ls -p "/var/lib/cloud/instances/i 1"\n'
    found["/var/lib/cloud/instances/i 1"] = []
    assert identity.deeper(found) == []


def test_all_that_makes_it_one_machine_goes() -> None:
    found = identity.read(RECORDED)
    found["/var/lib/cloud/instances"] = [Entry("i-1", 0o040755), Entry("note", 0o100644)]
    found["/var/lib/cloud/instances/i-1"] = [Entry("a b", 0o100644)]
    script, done = identity.reset(found, "/p/empty", "/p/drop-in")
    assert script == [
        "rm /etc/machine-id",
        "write /p/empty /etc/machine-id",
        "rm /etc/ssh/ssh_host_rsa_key",
        "rm /etc/ssh/ssh_host_rsa_key.pub",
        'rm "/var/lib/cloud/instances/i-1/a b"',
        "rmdir /var/lib/cloud/instances/i-1",
        "rm /var/lib/cloud/instances/note",
        "rm /var/lib/cloud/instance",
        "rmdir /var/lib/cloud/instances",
        "mkdir /etc/systemd/system/ssh.service.d",
        "write /p/drop-in /etc/systemd/system/ssh.service.d/cnvm-host-keys.conf",
    ]
    # The link to /etc/machine-id and the settings of sshd are what every machine has.
    assert not any("dbus" in path or "sshd_config" in path for path in done)
    assert "/etc/machine-id" in done
    assert "/var/lib/cloud/instances" in done


def test_who_it_is_to_dhcp_goes() -> None:
    """By its DUID two clones would be one to a server."""
    names = {
        "/etc": ("dhcpcd.duid", "dhcpcd.secret", "dhcpcd.conf"),
        "/var/lib/dhcpcd": ("duid", "secret", "eth0.lease"),
        "/var/lib/wicked": ("duid.xml", "iaid.xml", "lease-eth0-dhcp-ipv4.xml", "wicked.xml"),
    }
    assert set(names) <= set(identity.first_directories())
    listings = {place: [Entry(name, 0o100644, 9) for name in found] for place, found in names.items()}
    _script, done = identity.reset(listings, "/p/empty", "/p/drop-in")
    every = {f"{place}/{name}" for place, found in names.items() for name in found}
    assert every - set(done) == {"/etc/dhcpcd.conf", "/var/lib/wicked/wicked.xml"}


def test_a_second_time_nothing_is_left_to_do() -> None:
    after = {
        "/etc": [Entry("machine-id", 0o100444, 0), Entry("os-release", 0o120777, 21)],
        "/etc/ssh": [Entry("sshd_config", 0o100644, 3223)],
        "/lib/systemd/system": [Entry("ssh.service", 0o100644, 538)],
        "/var/lib/cloud": [],
    }
    assert identity.reset(after, "/p/empty", "/p/drop-in") == ([], [])


def test_sshd_that_makes_its_keys_itself_is_left_alone() -> None:
    found = identity.read(RECORDED)
    found["/lib/systemd/system"] = [Entry("sshd.service", 0o100644, 500)]
    assert not any("drop-in" in line for line in identity.reset(found, "/p/empty", "/p/drop-in")[0])
    found = identity.read(RECORDED)
    found["/etc/systemd/system"] = [Entry("ssh.service.d", 0o040755)]
    assert "mkdir" not in " ".join(identity.reset(found, "/p/empty", "/p/drop-in")[0])
    found["/etc/systemd/system/ssh.service.d"] = [Entry("cnvm-host-keys.conf", 0o100644)]
    assert not any("drop-in" in line for line in identity.reset(found, "/p/empty", "/p/drop-in")[0])


@given(st.text(min_size=1, max_size=12).filter(lambda name: "/" not in name))
def test_no_name_of_an_image_gets_a_command_into_a_script(name: str) -> None:
    listings = {
        "/etc/ssh": [Entry(f"ssh_host_{name}", 0o100600, 1)],
        "/var/lib/cloud": [Entry(name, 0o040755)],
        f"/var/lib/cloud/{name}": [],
    }
    try:
        script, _done = identity.reset(listings, "/p/empty", "/p/drop-in")
        text = identity.look(listings)
    except Refused:
        return
    assert all(line.split(" ")[0] in ("rm", "rmdir") and line.isprintable() for line in script)
    assert len(text.splitlines()) == 3
    assert not set("\"'\\") & set(name)


def test_a_name_that_is_a_command_is_refused() -> None:
    listings = {"/var/lib/cloud": [Entry("x\ndump /etc/shadow /tmp/x", 0o100644)]}
    with pytest.raises(Refused, match="strange name"):
        identity.reset(listings, "/p/empty", "/p/drop-in")


def test_an_endless_directory_has_an_end() -> None:
    deep = "/var/lib/cloud" + "/a" * 20
    with pytest.raises(Refused, match="too deep"):
        identity.deeper({deep: [Entry("a", 0o040755)]})
    with pytest.raises(Refused, match="too many"):
        identity.deeper({"/var/lib/cloud": [Entry(str(number), 0o100644) for number in range(30_000)]})


def test_the_first_look_goes_everywhere() -> None:
    first = identity.first_directories()
    assert {"/etc", "/etc/ssh", "/var/lib/cloud", "/var/lib/dhcp", "/usr/lib/systemd/system"} <= set(first)
    assert identity.look(first).count("\n") == len(first)
