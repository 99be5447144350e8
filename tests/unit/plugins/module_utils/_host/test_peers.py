# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A channel to a peer, with a small program in the place of ssh."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import (
    HostError,
    InputError,
    PeerError,
    Refused,
)
from ansible_collections.cnvm.platform.plugins.module_utils._host import files, peers
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._migrate import wire

from .fake_clock import Clock

PEER = {"name": "host2", "tunnel": "10.100.100.2"}


@pytest.fixture
def channel() -> t.Iterator[t.Callable[[str], peers.Channel]]:
    """A channel whose other end is a Python program."""
    opened: list[peers.Channel] = []

    def open_it(program: str) -> peers.Channel:
        def popen(argv: t.Sequence[str], **kwargs: t.Any) -> subprocess.Popen[bytes]:
            assert argv == peers.ssh_argv(PEER, "serve")
            return subprocess.Popen([sys.executable, "-c", "import sys, time, json\n" + program], **kwargs)

        opened.append(peers.Channel(Host(run=t.cast("t.Any", None), popen=popen), PEER))
        return opened[-1]

    yield open_it
    for one in opened:
        one.close()


ECHO = """
for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps({"result": request}), flush=True)
"""


def test_ssh_goes_through_the_tunnel_with_our_configuration() -> None:
    assert peers.ssh_argv(PEER, "serve") == [
        "ssh", "-F", "/etc/cnvm/ssh/config", "-o", "HostName=10.100.100.2", "host2", "serve",
    ]  # fmt: skip


def test_question_and_answer(channel: t.Any) -> None:
    one = channel(ECHO)
    assert one.call("facts", timeout_s=20, x=1) == {"op": "facts", "args": {"x": 1}, "stream": False}
    assert one.call("check", timeout_s=20)["op"] == "check"


def test_stream_goes_with_the_question(channel: t.Any) -> None:
    one = channel(
        """
import hashlib, struct
source = sys.stdin.buffer
json.loads(source.readline())
total = hashlib.sha256()
while True:
    (length,) = struct.unpack(">I", source.read(4))
    if not length:
        break
    total.update(source.read(length))
said = json.loads(source.readline())
print(json.dumps({"result": {"same": said["sha256"] == total.hexdigest(), "bytes": said["bytes"]}}), flush=True)
"""
    )
    size = 3 * wire.CHUNK + 5
    assert one.call("layer", timeout_s=20, stream=lambda out: out.write(b"x" * size)) == {"same": True, "bytes": size}


def test_no_more_of_a_stream_goes_out_than_was_asked_for(channel: t.Any, clock: Clock) -> None:
    """All the time, not a lot of it at once and then nothing; of the next one it is no limit."""
    one = channel(
        """
import struct
source = sys.stdin.buffer
while source.readline():
    while True:
        (length,) = struct.unpack(">I", source.read(4))
        if not length:
            break
        source.read(length)
    source.readline()
    print('{"result": {}}', flush=True)
"""
    )
    size = 3 * wire.CHUNK
    one.call("file", timeout_s=20, mib_s=2, stream=lambda out: out.write(b"x" * size))
    assert sum(clock.slept) == pytest.approx(size / (2 * 2**20), rel=0.01)
    assert max(clock.slept) < 0.1
    clock.slept.clear()
    one.call("file", timeout_s=20, stream=lambda out: out.write(b"x" * size))
    assert clock.slept == []


def test_progress_comes_before_the_answer(channel: t.Any) -> None:
    lines = "".join(f'{{"progress": {count}}}\n' for count in (5, 0, 7)) + '{"result": {"a": 1}}\n'
    heard: list[int] = []
    one = channel(f"sys.stdout.write({lines!r}); sys.stdout.flush(); time.sleep(9)")
    assert one.call("template", timeout_s=20, progress=heard.append) == {"a": 1}
    assert heard == [5, 0, 7]


def test_a_peer_that_gets_no_further_is_not_waited_for(channel: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life, which come while it waits, are none of progress."""
    monkeypatch.setattr(peers, "_NO_PROGRESS_S", 1.0)
    one = channel(
        """
for _number in range(8):
    print(json.dumps({"progress": 1}), flush=True)
    time.sleep(0.2)
while True:
    print(flush=True)
    time.sleep(0.1)
"""
    )
    heard: list[int] = []
    with pytest.raises(PeerError, match=r"The connection to host2 showed no progress for 1 s\."):
        one.call("template", timeout_s=60, progress=heard.append)
    assert len(heard) == 8
    # The time that it has in all is kept, too.
    with pytest.raises(PeerError, match="did not answer in time"):
        one.call("template", timeout_s=0.3, progress=heard.append)


def test_an_answer_that_comes_too_late_is_not_that_to_the_next_question(channel: t.Any) -> None:
    one = channel(
        """
sys.stdin.readline()
sys.stdin.readline()
print(json.dumps({"progress": 1}))
print(json.dumps({"result": {"to": "template"}}))
print(json.dumps({"result": {"to": "give_up"}}), flush=True)
time.sleep(9)
"""
    )
    with pytest.raises(PeerError, match="did not answer in time"):
        one.call("template", timeout_s=0.2, progress=pytest.fail)
    assert one.is_late
    assert one.call("give_up", timeout_s=20) == {"to": "give_up"}
    assert not one.is_late


def until_heard(one: peers.Channel) -> None:
    while not one.heard():
        time.sleep(0.01)


def test_nobody_waits_for_the_answer_to_what_is_only_asked(channel: t.Any, tmp_path: Path) -> None:
    """It is heard when it comes, and is not the answer to what is called meanwhile."""
    one = channel(
        f"""
import os
sys.stdin.readline()
while not os.path.exists({str(tmp_path / "go")!r}): time.sleep(0.01)
print(json.dumps({{"result": {{}}}}), flush=True)
sys.stdin.readline()
sys.stdin.readline()
print(json.dumps({{"result": {{"to": "ask"}}}}))
print(json.dumps({{"result": {{"to": "hold"}}}}), flush=True)
time.sleep(9)
"""
    )
    one.ask("drained", timeout_s=20, limit_s=0)
    assert not one.heard()
    (tmp_path / "go").touch()
    until_heard(one)
    one.ask("drained", timeout_s=20, limit_s=0)
    assert one.call("hold", timeout_s=20) == {"to": "hold"}


def test_what_is_asked_has_its_time(channel: t.Any) -> None:
    one = channel("time.sleep(60)")
    one.ask("drained", timeout_s=0.2)
    with pytest.raises(PeerError, match="did not answer in time"):
        until_heard(one)


def test_what_is_asked_may_be_refused(channel: t.Any) -> None:
    line = wire.error_line(Refused("web is in a move.")).decode()
    one = channel(f"sys.stdin.readline(); sys.stdout.write({line!r}); sys.stdout.flush(); time.sleep(9)")
    one.ask("drained", timeout_s=20)
    with pytest.raises(Refused, match="web is in a move"):
        until_heard(one)


# A host as the target of a move whose disk is full; what had come by then is a file.
FULL = """
sys.path[:0] = {path!r}
import os, types
from ansible_collections.cnvm.platform.plugins.module_utils._host import kinds, serve
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host

def work(call, file):
    call.tell(0)
    with open({left!r}, "wb") as begun, open("/dev/full", "wb", buffering=0) as full:
        begun.write(file.read(10))
        full.write(b"x")

kinds.target_of = lambda journal: types.SimpleNamespace(
    OPERATIONS={{"file": lambda call: call.receive(lambda file: work(call, file))}},
    give_up=lambda host, name, journal: os.unlink({left!r}),
)
conversation = serve.Conversation(Host(run=None), sys.stdin.buffer, sys.stdout.buffer)
conversation.journal = {{"name": "web"}}
conversation.run()
"""


def test_a_target_whose_disk_is_full_is_sent_no_more(channel: t.Any, tmp_path: Path) -> None:
    """What is asked next is answered: to send other things, or to leave nothing of it there."""
    left = tmp_path / "begun"
    one = channel(FULL.format(path=sys.path, left=str(left)))
    sent: list[int] = []

    def produce(out: t.BinaryIO) -> None:
        for number in range(64):
            sent.append(number)
            out.write(b"x" * wire.CHUNK)

    for _time in range(2):
        sent.clear()
        with pytest.raises(HostError, match="No space left on device"):
            one.call("file", timeout_s=60, stream=produce)
        # No more than fits between the two.
        assert len(sent) < 10
        assert not one.is_late
    sent.clear()
    assert one.call("probe", timeout_s=60, stream=produce) == {}
    assert len(sent) == 64
    assert left.exists()
    assert one.call("give_up", timeout_s=60) == {}
    assert not left.exists()


TAKE = """
import struct
source = sys.stdin.buffer
def chunk():
    (length,) = struct.unpack(">I", source.read(4))
    return len(source.read(length))
def rest():
    while chunk():
        pass
    source.readline()
"""


def test_a_late_error_is_not_that_of_the_stream_under_way(channel: t.Any) -> None:
    late = "\n" + wire.error_line(Refused("Too late.")).decode() + "\n"
    one = channel(
        f"""{TAKE}
source.readline()
source.readline()
chunk()
sys.stdout.write({late!r})
sys.stdout.flush()
rest()
print(json.dumps({{"result": {{"to": "file"}}}}), flush=True)
source.readline()
"""
    )
    with pytest.raises(PeerError, match="did not answer in time"):
        one.call("facts", timeout_s=0.2)
    assert one.call("file", timeout_s=60, stream=lambda out: out.write(b"x" * (5 * wire.CHUNK))) == {"to": "file"}
    assert not one.is_late


def test_what_was_not_sent_is_not_taken_for_arrived(channel: t.Any) -> None:
    one = channel(f"{TAKE}source.readline()\nprint('{{\"result\": {{}}}}', flush=True)\nrest()\nsource.readline()")
    with pytest.raises(PeerError, match="answered before it had everything"):
        one.call("file", timeout_s=60, stream=lambda out: out.write(b"x" * (5 * wire.CHUNK)))


def test_a_peer_that_hangs_in_a_stream_is_not_waited_for(channel: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_NO_PROGRESS_S", 1.0)
    one = channel(f"{TAKE}source.readline()\nchunk()\ntime.sleep(60)")
    with pytest.raises(PeerError, match=r"The connection to host2 showed no progress for 1 s\."):
        one.call("file", timeout_s=40, stream=lambda out: out.write(b"x" * (5 * wire.CHUNK)))
    assert one.is_late


def test_a_peer_that_is_slow_with_a_stream_is_waited_for(channel: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """First it waits for somebody else and says so; then it takes little at a time; then it syncs what has come."""
    one = channel(
        f"""{TAKE}
source.readline()
print(json.dumps({{"result": {{}}}}), flush=True)
source.readline()
for _number in range(8):
    print(json.dumps({{"progress": 0}}), flush=True)
    time.sleep(0.2)
read = source.read
def slowly(size):
    data = b""
    while len(data) < size:
        time.sleep(0.1)
        data += read(min(1 << 16, size - len(data)))
    return data
source = type("Slow", (), {{"read": staticmethod(slowly), "readline": source.readline}})
rest()
time.sleep(2)
print(json.dumps({{"result": {{}}}}), flush=True)
source.readline()
"""
    )
    one.call("facts", timeout_s=60)
    monkeypatch.setattr(peers, "_NO_PROGRESS_S", 1.0)
    assert one.call("file", timeout_s=60, stream=lambda out: out.write(b"x" * (2 * wire.CHUNK))) == {}


def test_error_of_the_other_side(channel: t.Any) -> None:
    line = wire.error_line(Refused("web is in a move.")).decode()
    with pytest.raises(Refused, match="web is in a move"):
        channel(f"sys.stdin.readline(); sys.stdout.write({line!r}); sys.stdout.flush(); time.sleep(9)").call(
            "begin", timeout_s=20
        )


def test_no_answer_in_time(channel: t.Any) -> None:
    one = channel("time.sleep(60)")
    start = time.monotonic()
    with pytest.raises(PeerError, match="connection to host2 did not answer in time"):
        one.call("facts", timeout_s=0.3)
    assert time.monotonic() - start < 20


def test_a_peer_that_reads_nothing_does_not_hold_us(channel: t.Any) -> None:
    one = channel("time.sleep(60)")
    with pytest.raises(PeerError, match="did not answer in time"):
        one.call("layer", timeout_s=0.5, stream=lambda out: out.write(b"x" * (8 << 20)))


def test_lost_with_what_ssh_said(channel: t.Any) -> None:
    one = channel("print('noise\\nssh: connect to host: No route to host', file=sys.stderr)")
    with pytest.raises(
        PeerError, match=r"connection to host2 was lost: ssh: connect to host: No route to host"
    ) as caught:
        one.call("facts", timeout_s=20)
    assert caught.value.details["peer"] == "host2"


def test_lost_in_the_middle_of_a_line(channel: t.Any) -> None:
    with pytest.raises(PeerError, match="was lost"):
        channel("sys.stdin.readline(); sys.stdout.write('{\"result\"'); sys.stdout.flush()").call("facts", timeout_s=20)


def test_garbage(channel: t.Any) -> None:
    with pytest.raises(PeerError, match="'Welcome!', which is not our protocol"):
        channel("print('Welcome!', flush=True); time.sleep(9)").call("facts", timeout_s=20)


def test_a_line_without_end(channel: t.Any) -> None:
    program = f"sys.stdout.write('x' * ({wire.MAX_LINE} + 70000)); sys.stdout.flush(); time.sleep(9)"
    with pytest.raises(PeerError, match="sent too long a line"):
        channel(program).call("facts", timeout_s=30)


def test_close_ends_a_peer_that_does_not(channel: t.Any) -> None:
    one = channel("import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); time.sleep(600)")
    one.close()
    assert one._process.returncode is not None


@pytest.fixture
def overlay(tmp_path: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "overlay.json"
    monkeypatch.setattr(paths, "OVERLAY_FILE", str(path))
    files.write_json(str(path), {"self": {"name": "host1"}, "peers": [PEER]})


@pytest.mark.usefixtures("overlay")
def test_find() -> None:
    assert peers.find("host2") == PEER
    with pytest.raises(InputError, match="'host1' is this host itself"):
        peers.find("host1")
    with pytest.raises(InputError, match=r"Hosts in it: host2\."):
        peers.find("host9")


def test_no_overlay(tmp_path: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "OVERLAY_FILE", str(tmp_path / "none"))
    with pytest.raises(HostError, match="no overlay"):
        peers.find("host2")


def test_signs_of_life_of_hours(channel: t.Any) -> None:
    """One comes every 5 seconds while a container takes its time to stop."""
    signs = "\n" * 5000 + '{"result": {}}\n'
    one = channel(f"sys.stdout.write({signs!r}); sys.stdout.flush(); time.sleep(9)")
    assert one.call("arrived", timeout_s=20) == {}


def test_answer_lines_are_kept_apart(channel: t.Any) -> None:
    answers = "".join(json.dumps({"result": {"n": n}}) + "\n" for n in range(2))
    one = channel(f"sys.stdout.write({answers!r}); sys.stdout.flush(); time.sleep(9)")
    assert [one.call("a", timeout_s=20)["n"], one.call("b", timeout_s=20)["n"]] == [0, 1]
