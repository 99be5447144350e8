# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network of a container, with the commands recorded instead of run."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import Refused
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._criu import obstacles
from ansible_collections.cnvm.platform.plugins.module_utils._host import files, netns
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._net import arp
from ansible_collections.cnvm.platform.plugins.module_utils._net.endpoint import Endpoint, Forward

SPEC = Endpoint(
    name="web",
    uuid="u-1",
    address="10.100.101.20",
    prefix_length=24,
    gateway="10.100.101.254",
    mtu=1370,
    mac="02:98:34:87:6d:cf",
    bridge="cnvm0",
)

# ip -n … -j -batch - of iproute2 6.15: two arrays, one after the other.
LOOPBACK = {"ifname": "lo", "flags": ["LOOPBACK", "UP", "LOWER_UP"], "mtu": 65536, "addr_info": []}
INSIDE = {
    "ifindex": 2,
    "link_index": 20,
    "ifname": "eth0",
    "flags": ["BROADCAST", "MULTICAST", "UP"],
    "mtu": 1370,
    "address": "02:98:34:87:6d:cf",
    "addr_info": [{"family": "inet", "local": "10.100.101.20", "prefixlen": 24, "scope": "global"}],
}
ROUTE = {"dst": "default", "gateway": "10.100.101.254", "dev": "eth0", "flags": []}


def printed(inside: t.Optional[dict[str, t.Any]] = None, routes: t.Sequence[t.Any] = (ROUTE,)) -> str:
    return json.dumps([LOOPBACK, inside or INSIDE]) + "\n" + json.dumps(list(routes)) + "\n"


class Recorder:
    """Commands and what they were given; ``ip -n … -j`` prints ``inside``."""

    def __init__(self, inside: str = "") -> None:
        self.inside = inside
        self.calls: list[tuple[str, str]] = []

    def __call__(self, argv: t.Sequence[str], *, stdin: t.Optional[str] = None, **_: t.Any) -> CommandResult:
        looks = "-j" in argv
        if not looks:
            self.calls.append((" ".join(argv), stdin or ""))
        return CommandResult(tuple(argv), 0, self.inside if looks else "")


@pytest.fixture(autouse=True)
def _without_mptcp(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No namespace is entered that is not there."""
    if "real_namespace" not in request.fixturenames:
        monkeypatch.setattr(netns, "_MPTCP", "/proc/sys/net/none")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> t.Callable[[bool, t.Optional[int]], None]:
    """Whether the namespace is there, and the index of the host's link."""

    def put(namespace: bool, index: t.Optional[int]) -> None:
        monkeypatch.setattr(netns, "_is_namespace", lambda name: namespace)
        monkeypatch.setattr(netns, "_index_of", lambda link: index)

    return put


def test_a_namespace_is_made_with_two_calls_and_its_guard(place: t.Any) -> None:
    place(False, None)
    run = Recorder()
    assert netns.create(Host(run=run), SPEC)
    (first, outside), (second, inside), (third, guard) = run.calls
    assert (first, second, third) == ("ip -batch -", "ip -n cnvm-web -batch -", "nft -f -")
    assert outside.splitlines()[:2] == [
        "netns add cnvm-web",
        f"link add name {SPEC.host_link} mtu 1370 type veth peer name eth0 mtu 1370 address {SPEC.mac} netns cnvm-web",
    ]
    assert inside.splitlines()[-3:] == [
        "addr replace 10.100.101.20/24 dev eth0",
        "link set dev eth0 up",
        "route replace default via 10.100.101.254 dev eth0",
    ]
    assert "master" not in outside
    assert "10.100.101.20" in guard


def test_one_that_is_right_is_left_alone(place: t.Any) -> None:
    place(True, 20)
    run = Recorder(printed())
    assert not netns.create(Host(run=run), SPEC)
    assert run.calls == []


@pytest.mark.parametrize(
    "wrong",
    [
        printed({**INSIDE, "mtu": 1500}),
        printed({**INSIDE, "address": "02:00:00:00:00:00"}),
        printed({**INSIDE, "flags": ["BROADCAST"]}),
        printed({**INSIDE, "addr_info": []}),
        printed(routes=()),
        printed(routes=[{**ROUTE, "gateway": "10.100.101.1"}]),
    ],
)
def test_one_that_is_wrong_is_mended_and_keeps_its_link(place: t.Any, wrong: str) -> None:
    place(True, 20)
    run = Recorder(wrong)
    assert netns.create(Host(run=run), SPEC)
    assert [command for command, _text in run.calls] == ["ip -n cnvm-web -batch -", "nft -f -"]


def test_a_second_address_goes(place: t.Any) -> None:
    place(True, 20)
    more = {"family": "inet", "local": "10.100.101.77", "prefixlen": 24}
    run = Recorder(printed({**INSIDE, "addr_info": [*INSIDE["addr_info"], more]}))  # type: ignore[misc]
    netns.create(Host(run=run), SPEC)
    assert "addr del 10.100.101.77/24 dev eth0" in run.calls[0][1]


@pytest.mark.parametrize(
    ("namespace", "index", "inside", "first"),
    [
        (True, None, json.dumps([LOOPBACK]) + "\n[]\n", "link add"),
        (True, 21, printed(), f"link del {SPEC.host_link}"),  # its other end is elsewhere
        (False, 20, "", "netns add cnvm-web"),
    ],
)
def test_half_of_one_is_made_whole(place: t.Any, namespace: bool, index: int, inside: str, first: str) -> None:
    place(namespace, index)
    run = Recorder(inside)
    assert netns.create(Host(run=run), SPEC)
    assert run.calls[0][1].startswith(first)
    assert "link add name" in run.calls[0][1]


def test_what_has_no_link_on_the_host_loses_the_one_inside(place: t.Any) -> None:
    place(True, None)
    run = Recorder(printed())
    netns.create(Host(run=run), SPEC)
    assert run.calls[0] == ("ip -n cnvm-web -batch -", "link del eth0\n")


def test_unplugging_takes_the_link_down_first(place: t.Any) -> None:
    place(True, 20)
    run = Recorder()
    netns.detach(Host(run=run), SPEC)
    assert run.calls == [
        ("ip -batch -", f"link set dev {SPEC.host_link} down\nlink set dev {SPEC.host_link} nomaster\n")
    ]


def test_unplugging_what_is_not_there_is_nothing(place: t.Any) -> None:
    place(False, None)
    run = Recorder()
    netns.detach(Host(run=run), SPEC)
    assert run.calls == []


def test_plugging_in_is_one_call_and_an_announcement(monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[str] = []
    monkeypatch.setattr(netns, "announce", lambda host, spec: announced.append(spec.name))
    run = Recorder()
    netns.attach(Host(run=run), SPEC)
    link = SPEC.host_link
    assert run.calls == [("ip -batch -", f"link set dev {link} master cnvm0\nlink set dev {link} up\n")]
    assert announced == ["web"]


def test_listening_sockets_are_read_from_the_kernel() -> None:
    text = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 25452\n"
        "   1: 0B045A0A:0016 01045A0A:9A5E 01 0000043C:00000000 01:00000012 00000000     0        0 8379080\n"
        "   2: 0B045A0A:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 25453\n"
        "   3: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 25454\n"
    )
    assert netns.parse_listening(text, "tcp", "0A") == [("tcp", "", 22), ("tcp", "10.90.4.11", 80)]
    six = (
        "  sl  local_address                         remote_address\n"
        "   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 1\n"
        "   1: 0000000000000000FFFF00000B045A0A:0051 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 1\n"
        "   2: 00000000000000000000000001000000:0052 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 1\n"
    )
    assert netns.parse_listening(six, "tcp", "0A") == [("tcp", "", 22), ("tcp", "10.90.4.11", 81)]


def test_a_port_of_another_container_is_refused(tmp_path: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "WORKLOADS", str(tmp_path))
    monkeypatch.setattr(paths, "STATE", str(tmp_path))
    monkeypatch.setattr(paths, "HOST_FILE", str(tmp_path / "host.json"))
    monkeypatch.setattr(netns, "listening", list)
    files.write_json(paths.HOST_FILE, {"host_id": "one"})
    spec = SPEC._replace(ports=(Forward(8080, 80),))
    for name, owner in (("mail", "one"), ("gone", "other"), ("web", "one")):
        port = {"mail": "8081:80", "gone": "8080:80", "web": "8080:80"}[name]
        files.write_json(paths.definition_file(name), {"name": name, "ports": [port]})
        files.write_json(paths.owner_file(name), {"owner": owner})
    netns.check_forwards(spec)  # its own, and one that runs elsewhere, are no conflict
    files.write_json(paths.definition_file("mail"), {"name": "mail", "ports": ["8080:25"]})
    with pytest.raises(Refused, match="tcp port 8080 of the host already leads to the container mail"):
        netns.check_forwards(spec)


@pytest.fixture
def real_namespace(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[int]:
    """A process in a network namespace of its own, which is the one of each container."""
    if os.geteuid() != 0 or not os.path.exists(netns._MPTCP):
        pytest.skip("needs root and a kernel with MPTCP")
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        monkeypatch.setattr(paths, "netns_path", lambda name: f"/proc/{process.pid}/ns/net")
        yield process.pid
        process.kill()


ASK = """
import socket
try:
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    server.listen()
    print(open("/proc/self/net/protocols").read())
except OSError as error:
    print(error.errno)
"""


@pytest.mark.parametrize("create", [netns.create, netns.create_alone], ids=["with an address", "without"])
def test_nobody_gets_an_mptcp_socket(real_namespace: int, create: t.Callable[..., bool], place: t.Any) -> None:
    def ask() -> str:
        inside = ["nsenter", f"--net=/proc/{real_namespace}/ns/net", sys.executable, "-c", ASK]
        return subprocess.run(inside, capture_output=True, text=True, check=True).stdout

    # Before, one is had, and a plan of a move sees it.
    assert obstacles.mptcp_sockets(ask()) == 1
    place(True, None)
    host = Host(run=Recorder(json.dumps([LOOPBACK]) + "\n[]\n"))
    assert create(host, SPEC if create is netns.create else "web")
    assert ask().strip() == str(errno.ENOPROTOOPT)


class Wire:
    """A socket on which these frames have come; what was done with it."""

    def __init__(self, frames: t.Sequence[bytes]) -> None:
        self.frames = list(frames)
        self.done: list[t.Any] = []
        self.waits = 0.0

    def bind(self, place: tuple[str, int]) -> None:
        self.done.append(place)

    def send(self, frame: bytes) -> None:
        self.done.append(arp.sender_of(frame))

    def settimeout(self, seconds: float) -> None:
        self.waits = seconds

    def recv(self, size: int) -> bytes:
        if self.frames:
            return self.frames.pop(0)
        raise BlockingIOError if not self.waits else socket.timeout

    def close(self) -> None:
        self.done.append("close")


OWN, OTHER, SECOND = "02:00:00:00:00:01", "52:54:00:aa:aa:aa", "52:54:00:00:00:02"


@pytest.mark.parametrize(
    ("frames", "holder"),
    [
        ([], None),
        ([arp.announcement(OTHER, SPEC.address)], OTHER),
        ([arp.announcement(OTHER, "10.100.101.21"), b"no arp", arp.announcement(OTHER, SPEC.address)], OTHER),
        # Itself, with each of its cards, and who asks.
        ([arp.announcement(mac, SPEC.address) for mac in (SPEC.mac, SECOND, OWN)], None),
    ],
)
def test_who_else_has_an_address(
    monkeypatch: pytest.MonkeyPatch, frames: t.Sequence[bytes], holder: t.Optional[str]
) -> None:
    """Asked in a way that takes the kernel no time: without a protocol until it is at the bridge, and left open."""
    wire = Wire(frames)
    made: list[t.Any] = []

    def make(*words: int) -> Wire:
        made.append(words)
        return wire

    monkeypatch.setattr(netns, "_read", lambda path: f"{OWN}\n")
    monkeypatch.setattr(socket, "socket", make)
    asked = netns.AddressQuestion(SPEC, [SECOND])
    assert asked.holder() == holder
    assert made == [(socket.AF_PACKET, socket.SOCK_RAW, 0)]
    assert wire.done == [("cnvm0", arp.ETHERTYPE), (OWN, "0.0.0.0")]
    assert wire.waits == 0


def test_somebody_is_given_time_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire([])
    monkeypatch.setattr(netns, "_read", lambda path: OWN)
    monkeypatch.setattr(socket, "socket", lambda *words: wire)
    assert netns.address_holder(SPEC, timeout_s=5) is None
    assert wire.waits > 1
    assert wire.done[-1] == "close"
