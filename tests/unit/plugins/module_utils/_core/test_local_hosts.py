# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import ipaddress
import subprocess
import typing as t
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core import local_hosts as lh
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, InputError, Refused

NET = ipaddress.IPv4Network("10.90.1.0/24")


def hosts(value: object, state: str = "present", rate: t.Optional[int] = None) -> tuple[lh.Wanted, ...]:
    return lh.read_hosts(value, state=state, rate=rate)


# --- What users write -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, "3", " 3 "])
def test_read_hosts_count(count: object) -> None:
    assert [host.name for host in hosts(count)] == ["host1", "host2", "host3"]


@pytest.mark.parametrize(
    "value", [0, -1, 65, "x", "", "1_0", "1e1", "٣", True, False, 1.5, None, {"name": "a"}, "0x3", 2**70]
)
def test_read_hosts_refuses_what_is_no_count(value: object) -> None:
    with pytest.raises(InputError, match=r"hosts: .*Allowed: a whole number from 1 to 64, or a list"):
        hosts(value)


def test_read_hosts_items_take_what_they_do_not_say() -> None:
    got = hosts([{"name": "a"}, {"name": "b", "state": "absent", "rate": None, "link": "down"}], "powered_off", 10**9)
    assert got == (
        lh.Wanted("a", None, "powered_off", 10**9, "up"),
        lh.Wanted("b", None, "absent", None, "down"),
    )


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ("host1", "hosts[0] is not a mapping"),
        ({}, "hosts[0]: name is missing"),
        ({"name": "a", "ip": "1.2.3.4"}, "hosts[0]: unknown key 'ip'"),
        ({"name": 7}, "hosts[0].name: 7 is not text. Put it in quotes"),
        ({"name": True}, "Put it in quotes"),
        *(
            ({"name": name}, "hosts[0].name: ")
            for name in ("", "a/b", "..", "a b", "-a", "a-", "A", "a_b", "a.b", "ä", "x" * 64, "x" * 300, "a\n", "٣")
        ),
        ({"name": "a", "address": 10}, "hosts[0].address: 10 is not allowed"),
        ({"name": "a", "address": "10.0.0"}, "hosts[0].address: '10.0.0' is not allowed"),
        ({"name": "a", "address": "10.0.0.1/24"}, "hosts[0].address"),
        ({"name": "a", "address": "::1"}, "hosts[0].address"),
        ({"name": "a", "address": "010.0.0.1"}, "hosts[0].address"),
        ({"name": "a", "state": "running"}, "hosts[0].state: 'running' is not allowed. Allowed: present, powered_off"),
        ({"name": "a", "state": None}, "hosts[0].state"),
        ({"name": "a", "link": True}, "hosts[0].link: True is not allowed. Allowed: up, down"),
        ({"name": "a", "rate": "fast"}, "hosts[0].rate: 'fast' is not allowed"),
    ],
)
def test_read_hosts_refuses_bad_items(item: object, says: str) -> None:
    with pytest.raises(InputError) as caught:
        hosts([item])
    assert says in str(caught.value)


def test_read_hosts_refuses_twice() -> None:
    with pytest.raises(InputError, match="name 'a' is there twice"):
        hosts([{"name": "a"}, {"name": "a"}])
    with pytest.raises(InputError, match=r"address 10\.0\.0\.1 is there twice"):
        hosts([{"name": "a", "address": "10.0.0.1"}, {"name": "b", "address": "10.0.0.1"}])
    with pytest.raises(InputError, match="65 hosts are too many"):
        hosts([{"name": f"h{n}"} for n in range(65)])


@pytest.mark.parametrize(
    ("text", "bits"),
    [("1gbit", 10**9), ("1.5Gbit", 1_500_000_000), ("100 mbit", 10**8), ("64kbit", 64_000), (None, None), ("", None)],
)
def test_rate_bits(text: object, bits: t.Optional[int]) -> None:
    assert lh.rate_bits(text, "rate") == bits


@pytest.mark.parametrize(
    "text",
    ["1", 1, True, "1gb", "1gbps", "-1gbit", "0mbit", "63kbit", "101gbit", "1 e9bit", "1gbit x", "9" * 400 + "gbit"],
)
def test_rate_bits_refuses(text: object) -> None:
    with pytest.raises(InputError, match=r"rate: .*Allowed: 64kbit to 100gbit"):
        lh.rate_bits(text, "rate")


@given(st.integers(min_value=64, max_value=10**8))
def test_rate_text_reads_back(kbits: int) -> None:
    assert lh.rate_bits(lh.rate_text(kbits * 1000), "rate") == kbits * 1000


@pytest.mark.parametrize("value", ["10.0.0.0/30", "10.0.0.1/24", "10.0.0.0/8", "x", 10, None, "224.0.0.0/24", "::/64"])
def test_check_subnet_refuses(value: object) -> None:
    with pytest.raises(InputError, match="subnet: "):
        lh.check_subnet(value)


@pytest.mark.parametrize(
    "value", ["", "relative", "/", "/a/../b", "/a b", "/a,b", "/a:b", "/a/./b", "/..", "/a$(x)", 1]
)
def test_check_path_refuses(value: object) -> None:
    with pytest.raises(InputError, match=r"^dir"):
        lh.check_path(value, "dir")


def test_check_path_takes_usual_ones() -> None:
    assert lh.check_path("/home/me.x/.cache/cnvm-platform", "dir") == "/home/me.x/.cache/cnvm-platform"


@pytest.mark.parametrize("value", ["git", ["git;reboot"], ["--yes"], [1], ["Git"], ["a b"]])
def test_check_packages_refuses(value: object) -> None:
    with pytest.raises(InputError, match="packages: "):
        lh.check_packages(value, "packages")


@pytest.mark.parametrize("value", ["", "x" * 21, "a.b", "a/b", "..", "-a", 1, None, "A"])
def test_check_set_refuses(value: object) -> None:
    with pytest.raises(InputError, match="set: "):
        lh.check_set(value)


@pytest.mark.parametrize("value", ["", "x" * 16, "a b", "-a", 1, "a/b"])
def test_check_bridge_refuses(value: object) -> None:
    with pytest.raises(InputError, match="bridge: "):
        lh.check_bridge(value)


# --- Addresses ------------------------------------------------------------------------------------------------


def test_assign_counts_up_and_keeps() -> None:
    wanted = hosts([{"name": "a"}, {"name": "b", "address": "10.90.1.12"}, {"name": "c"}, {"name": "d"}])
    got = lh.assign(wanted, {"c": "10.90.1.11", "z": "10.90.1.13"}, NET)
    assert [host.address for host in got] == ["10.90.1.14", "10.90.1.12", "10.90.1.11", "10.90.1.15"]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("10.90.2.11", "is not in 10.90.1.0/24"),
        ("10.90.1.1", "machine's own address"),
        ("10.90.1.0", "not a host's address"),
        ("10.90.1.255", "not a host's address"),
        ("10.90.1.50", "is the address of other"),
    ],
)
def test_assign_refuses_bad_addresses(address: str, says: str) -> None:
    with pytest.raises((InputError, Refused), match=says):
        lh.assign(hosts([{"name": "a", "address": address}]), {"other": "10.90.1.50"}, NET)


def test_assign_refuses_to_move_a_host() -> None:
    with pytest.raises(Refused, match=r"a is there with the address 10\.90\.1\.11"):
        lh.assign(hosts([{"name": "a", "address": "10.90.1.12"}]), {"a": "10.90.1.11"}, NET)


def test_assign_says_when_the_subnet_is_full() -> None:
    with pytest.raises(InputError, match="no address is left for host6"):
        lh.assign(hosts(6), {}, ipaddress.IPv4Network("10.0.0.0/29"))
    assert len({host.address for host in lh.assign(hosts(5), {}, ipaddress.IPv4Network("10.0.0.0/29"))}) == 5


def test_pick_subnet_is_stable_and_avoids_what_is_routed() -> None:
    first = lh.pick_subnet("demo", None, hosts(1), [])
    assert first == lh.pick_subnet("demo", None, hosts(1), [])
    second = lh.pick_subnet("demo", None, hosts(1), [first])
    assert not second.overlaps(first)
    with pytest.raises(Refused, match="none of the usual networks is free"):
        lh.pick_subnet("demo", None, hosts(1), [ipaddress.IPv4Network("10.0.0.0/8")])


def test_pick_subnet_follows_the_addresses_given() -> None:
    assert lh.pick_subnet("demo", None, hosts([{"name": "a", "address": "10.90.1.11"}]), []) == NET


def test_pick_subnet_refuses_a_clash() -> None:
    with pytest.raises(Refused, match=r"subnet: 10\.90\.1\.0/24 overlaps 10\.90\.0\.0/16"):
        lh.pick_subnet("demo", NET, hosts(1), [ipaddress.IPv4Network("10.90.0.0/16")])


def test_routed_networks() -> None:
    routes = [
        {"dst": "default", "dev": "eth0"},
        {"dst": "10.1.0.0/16", "dev": "eth0"},
        {"dst": "10.90.1.0/24", "dev": "lh-x"},
        {"type": "local", "dst": "127.0.0.0/8", "dev": "lo"},
        {"dst": "192.168.1.9", "dev": "eth0"},
        {"dst": "fe80::/64", "dev": "eth0"},
    ]
    assert [str(net) for net in lh.routed_networks(routes, "lh-x")] == ["10.1.0.0/16", "192.168.1.9/32"]


# --- Names ----------------------------------------------------------------------------------------------------

LABELS = st.from_regex(lh._LABEL, fullmatch=True).filter(lambda text: len(text) <= 20)


@given(LABELS, LABELS)
def test_names_fit_the_kernel(set_name: str, host: str) -> None:
    assert len(lh.link_name(set_name, host)) <= 15
    assert len(lh.bridge_name(set_name)) <= 15
    lh.check_bridge(lh.bridge_name(set_name))


@given(LABELS, LABELS, LABELS, LABELS)
def test_names_do_not_clash(set1: str, host1: str, set2: str, host2: str) -> None:
    if (set1, host1) != (set2, host2):
        assert lh.unit_name(set1, host1) != lh.unit_name(set2, host2)
        assert lh.link_name(set1, host1) != lh.link_name(set2, host2)
    if set1 != set2:
        assert lh.table_name(set1) != lh.table_name(set2)
        assert lh.bridge_name(set1) != lh.bridge_name(set2)


def test_shaped_rate_reads_what_shaping_sets() -> None:
    argv = lh.shaping_argv("vb-x", 10**9)
    assert " ".join(argv) == "tc qdisc replace dev vb-x root tbf rate 1000000000bit burst 256147b latency 20ms"
    shown = [{"kind": "tbf", "handle": "8001:", "options": {"rate": 125_000_000, "burst": 256147, "lat": 20000}}]
    assert lh.shaped_rate(shown) == 10**9
    assert lh.shaped_rate([{"kind": "noqueue", "options": {}}]) is None
    assert lh.shaping_argv("vb-x", None) == ["tc", "qdisc", "del", "dev", "vb-x", "root"]


# --- The machine ----------------------------------------------------------------------------------------------

MOUNTS = """\
22 1 0:20 / / rw - overlay overlay rw,lowerdir=/x
23 22 8:1 / /var/lib/cnvm\\040x rw shared:1 - ext4 /dev/sda1 rw
24 22 0:5 / /sys/fs/cgroup rw - tmpfs tmpfs rw
25 24 0:6 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
28 24 0:9 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
29 24 0:9 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
26 22 0:7 / /srv rw - ext4 /dev/a rw
27 26 0:8 / /srv rw - nfs4 a:/b rw
"""


def test_file_system_of() -> None:
    assert lh.file_system_of("/var/lib/cnvm", MOUNTS) == "overlay"
    assert lh.file_system_of("/var/lib/cnvm x/hosts", MOUNTS) == "ext4"
    assert lh.file_system_of("/srv/x", MOUNTS) == "nfs4"
    assert not lh.holds_layers("overlay")
    assert not lh.holds_layers("nfs4")
    assert lh.holds_layers("ext4")
    assert lh.cgroup2_mount(MOUNTS) == "/sys/fs/cgroup/unified"
    assert lh.named_cgroup_mount(MOUNTS) == "/sys/fs/cgroup/systemd"
    assert lh.named_cgroup_mount("22 1 0:20 / / rw - ext4 x rw") is None
    assert lh.cgroup2_mount("22 1 0:20 / / rw - ext4 x rw") is None


@pytest.mark.parametrize(
    ("suite", "kernel", "where"),
    [
        ("trixie", "6.12.41+deb13-amd64", "suite"),
        ("trixie", "6.15.9", "suite"),
        ("trixie", "6.16.0-rc1", "newer"),
        ("trixie", "6.18.44-fc", "newer"),
        ("trixie", "7.1.0", "newer"),
        ("bookworm", "6.1.0-37-amd64", "suite"),
        ("bookworm", "6.13.1", "none"),
        ("bookworm", "10.0", "none"),
    ],
)
def test_criu_fits_the_kernel(suite: str, kernel: str, where: str) -> None:
    assert lh.criu_from(suite, lh.kernel_version(kernel)) == where


def test_recipe_refuses_what_cannot_work() -> None:
    with pytest.raises(HostError, match=r"No CRIU for Debian bookworm works on this machine's kernel 6\.18"):
        lh.recipe("bookworm", "ready", (), (6, 18), "x86_64")
    bare = lh.recipe("bookworm", "bare", ("git",), (6, 18), "x86_64")
    assert bare.include() == ["ca-certificates", "dbus", "git", "openssh-server", "python3", "systemd-sysv", "udev"]


def test_recipe_takes_criu_from_one_place_only() -> None:
    assert "criu" in lh.recipe("trixie", "ready", (), (6, 12), "x86_64").include()
    assert "criu" not in lh.recipe("trixie", "ready", (), (6, 18), "x86_64").include()


def test_digest_tells_recipes_apart() -> None:
    recipes = [
        lh.recipe(suite, flavour, packages, kernel, machine)
        for suite, flavour, packages, kernel, machine in (
            ("trixie", "ready", (), (6, 12), "x86_64"),
            ("trixie", "ready", (), (6, 18), "x86_64"),
            ("trixie", "bare", (), (6, 18), "x86_64"),
            ("trixie", "bare", ("git",), (6, 18), "x86_64"),
            ("trixie", "bare", ("git",), (6, 18), "aarch64"),
            ("bookworm", "bare", ("git",), (6, 18), "x86_64"),
        )
    ]
    assert len({made.digest() for made in recipes}) == len(recipes)
    # Another kernel of the same kind does not need another base.
    assert recipes[0].digest() == lh.recipe("trixie", "ready", (), (6, 11), "x86_64").digest()


DEB822 = """\
Types: deb
# a comment
URIs: http://mirror.example/debian
Suites: bookworm
 bookworm-updates
Components: main

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: bookworm-security
Components: main
"""


@pytest.mark.parametrize(
    ("sources", "is_debian", "mirror"),
    [
        ({"debian.sources": DEB822}, True, "http://mirror.example/debian"),
        ({"debian.sources": DEB822}, False, lh.DEFAULT_MIRROR),
        ({"debian.sources": DEB822.replace("Types: deb\n#", "Enabled: no\nTypes: deb\n#")}, True, lh.DEFAULT_MIRROR),
        (
            {"sources.list": "deb [arch=amd64] https://m.example/debian/ trixie main contrib # x"},
            True,
            "https://m.example/debian",
        ),
        ({"sources.list": "#deb http://m.example/debian trixie main"}, True, lh.DEFAULT_MIRROR),
        ({"sources.list": "deb-src http://m.example/debian trixie main"}, True, lh.DEFAULT_MIRROR),
        ({"a.list": "deb https://packages.example/apt cloud-sdk main"}, True, lh.DEFAULT_MIRROR),
        ({"a.list": "deb http://m.example/debian trixie-backports main"}, True, lh.DEFAULT_MIRROR),
        ({"a.list": "deb cdrom:[x]/debian trixie main"}, True, lh.DEFAULT_MIRROR),
        ({"a.list": "deb http://m.example/debian';reboot;' trixie main"}, True, lh.DEFAULT_MIRROR),
        ({"a.list": "deb http://m.example';reboot;'/debian trixie main"}, True, lh.DEFAULT_MIRROR),
        ({}, True, lh.DEFAULT_MIRROR),
    ],
)
def test_debian_mirror(sources: dict[str, str], is_debian: bool, mirror: str) -> None:
    assert lh.debian_mirror(sources, is_debian) == mirror


@pytest.mark.parametrize("flavour", lh.FLAVOURS)
@pytest.mark.parametrize("kernel", [(6, 12), (6, 18)])
def test_finish_script_is_good_shell(flavour: str, kernel: tuple[int, int]) -> None:
    made = lh.recipe("trixie", flavour, (), kernel, "x86_64")
    script = lh.finish_script(made, lh.DEFAULT_MIRROR, "/nested")
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0
    assert ("newer='forky sid'" in script) == (kernel == (6, 18))
    # The newer suite is told to apt once, and what tells it is taken away again.
    assert script.count("Check-Valid-Until: no") == 1
    assert 'rm -f "$list" "$pin"' in script


def test_build_ends_with_its_caller_and_keeps_proxies() -> None:
    made = lh.recipe("trixie", "bare", (), (6, 12), "x86_64")
    argv = lh.build_argv(made, "/c/x.new", "http://m/debian", "/c/x.finish", {"http_proxy": "http://p:1"})
    assert argv[:3] == ["setpriv", "--pdeathsig", "KILL"]
    assert "--kill-child" in argv
    assert argv[argv.index("env") + 1] == "http_proxy=http://p:1"
    assert argv[-3:] == ["trixie", "/c/x.new", "http://m/debian"]


# --- One host -------------------------------------------------------------------------------------------------


def start(cgroup: t.Optional[str]) -> list[str]:
    return lh.start_argv(
        set_name="demo",
        host="host1",
        own="/d/host1",
        lower="/c/base",
        bridge="lh-demo",
        binds={"/var/lib/cnvm": "/d/host1/cnvm"},
        cgroup=cgroup,
    )


@pytest.mark.parametrize("cgroup", [None, "/sys/fs/cgroup/unified/x"])
def test_start_argv(cgroup: t.Optional[str]) -> None:
    argv = start(cgroup)
    assert (argv[0] == "systemd-run") == (cgroup is None)
    assert {"--boot", "--keep-unit", "--register=no", "--network-bridge=lh-demo", "--capability=all"} <= set(argv)
    assert "--bind=/d/host1/cnvm:/var/lib/cnvm" in argv
    for setting in ("UNIFIED_HIERARCHY=1", "API_VFS_WRITABLE=1", "SYSTEMD_SECCOMP=0"):
        assert sum(setting in word for word in argv) == 1
    assert ("--property=Delegate=yes" in argv) == (cgroup is None)
    # The layers are mounted in the host's own mount namespace, so that no mount is ever left behind.
    assert argv.index("unshare") < argv.index("systemd-nspawn")


def test_a_host_is_in_its_cgroup_before_its_start_returns(tmp_path: Path) -> None:
    """Where no systemd does it: one that is not there yet would be taken for one that ended."""
    argv = start(str(tmp_path))
    shim = tmp_path / "setsid"
    shim.write_text(f"#!/bin/sh\ncat {tmp_path}/cgroup.procs >{tmp_path}/entered\n")
    shim.chmod(0o755)
    log = argv.index("/d/host1/console.log")
    argv[log] = "/dev/null"
    subprocess.run(argv, check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert (tmp_path / "entered").read_text() == "0\n"


def test_host_files() -> None:
    texts = lh.host_files("host1", "10.90.1.11", 24, "10.90.1.1")
    assert texts["etc/hostname"] == "host1\n"
    assert "Address=10.90.1.11/24\nGateway=10.90.1.1\n" in texts["etc/systemd/network/10-host0.network"]


@pytest.mark.parametrize(
    ("resolv", "behind", "result"),
    [
        ("# x\nnameserver 10.0.0.1\nsearch a\n", "", "nameserver 10.0.0.1\nsearch a\n"),
        ("nameserver 127.0.0.53\n", "nameserver 10.0.0.1\n", "nameserver 10.0.0.1\n"),
        ("nameserver 127.0.0.1\nsearch a\n", "", "search a\n"),
        ("nameserver 127.0.0.1\nnameserver 10.0.0.2\n", "", "nameserver 10.0.0.2\n"),
        ("nameserver 10.0.0.1\n", "nameserver 10.0.0.9\n", "nameserver 10.0.0.1\n"),
        ("nameserver ::1\nnameserver ::1234\n", "", "nameserver ::1234\n"),
    ],
)
def test_resolver_text(resolv: str, behind: str, result: str) -> None:
    assert lh.resolver_text(resolv, behind) == result


def test_last_lines_are_plain() -> None:
    assert lh.last_lines("a\n\x1b[0;1;31mred\x1b[0m\r\n\n\x07b  \n", 2) == "red\nb"


def test_namespace_init() -> None:
    statuses = {10: "Name:\tnspawn\nNSpid:\t10\n", 12: "NSpid:\t12\t5\t1\n", 11: "NSpid:\t11\t1\n", 13: ""}
    assert lh.namespace_init(statuses) == 11
    assert lh.namespace_init({}) is None


def test_has_capability() -> None:
    assert lh.has_capability("CapEff:\t000001ffffffffff\n", 24)
    assert not lh.has_capability("CapEff:\t000001fffeffffff\n", 24)


# --- The plan -------------------------------------------------------------------------------------------------


def wanted(name: str, state: str = "present", rate: t.Optional[int] = None, link: str = "up") -> lh.Wanted:
    return lh.Wanted(name, "10.90.1.11", state, rate, link)


@pytest.mark.parametrize(
    ("want", "has", "plan"),
    [
        (wanted("a"), None, lh.Plan(create=("a",), boot=("a",))),
        (wanted("a", "powered_off"), None, lh.Plan(create=("a",))),
        (wanted("a", "absent"), None, lh.Plan()),
        (wanted("a", "absent"), wanted("a"), lh.Plan(remove=("a",))),
        (wanted("a"), wanted("a"), lh.Plan()),
        (wanted("a"), wanted("a", "powered_off"), lh.Plan(boot=("a",))),
        (wanted("a", "powered_off"), wanted("a"), lh.Plan(power_off=("a",))),
        (wanted("a", rate=10**9), wanted("a"), lh.Plan(shape=("a",))),
        (wanted("a"), wanted("a", rate=10**9), lh.Plan(shape=("a",))),
        (wanted("a", link="down"), wanted("a"), lh.Plan(links=("a",))),
        (wanted("a"), wanted("a", link="down"), lh.Plan(links=("a",))),
        (wanted("a", rate=10**9), None, lh.Plan(create=("a",), boot=("a",), shape=("a",))),
    ],
)
def test_plan(want: lh.Wanted, has: t.Optional[lh.Wanted], plan: lh.Plan) -> None:
    got = lh.plan([want], {"a": has} if has else {})
    assert got == plan
    assert got.any() == (plan != lh.Plan())


def test_plan_leaves_others_alone_and_removes_remains() -> None:
    assert lh.plan([wanted("a")], {"a": wanted("a"), "b": wanted("b")}) == lh.Plan()
    assert lh.plan([wanted("x", "absent")], {}, ["x"]).remove == ("x",)


STATE = st.sampled_from(lh.STATES)
WANTED = st.builds(wanted, st.just("a"), STATE, st.sampled_from([None, 10**6]), st.sampled_from(lh.LINKS))


@given(WANTED, st.one_of(st.none(), WANTED.filter(lambda host: host.state != "absent")))
def test_plan_of_what_is_wanted_is_empty_the_second_time(want: lh.Wanted, has: t.Optional[lh.Wanted]) -> None:
    first = lh.plan([want], {"a": has} if has else {})
    second = lh.plan([want], {} if want.state == "absent" else {"a": want})
    assert not second.any()
    assert first.any() == ((has if has else None) != (None if want.state == "absent" else want))


def test_forwarding_stays_on_where_somebody_else_has_a_bridge() -> None:
    changed = {"net/ipv4/ip_forward": "0", "fs/pipe-max-size": "1048576"}
    assert lh.settings_to_restore(changed, []) == changed
    assert lh.settings_to_restore(changed, ["docker0"]) == {"fs/pipe-max-size": "1048576"}
