# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The way from a guest's source to the libvirt of its target, through SSH, and the moment at which it is stopped.

libvirt moves a guest in five steps that its client leads: begin, prepare, perform, finish, confirm. The client is the
mover on the source. Its connection to the target's libvirt goes through a ``Tunnel``, which keeps back the answer to
*finish*. By then the guest is whole on the target and paused there, and paused on the source; the *confirm* that ends
the source's QEMU is sent only when the client has the answer. So both are held until it is decided who goes on, and a
mover that dies leaves both as they are: libvirt waits for somebody who knows more.

A guest that may go on before all of its memory is there (post-copy) is started by libvirt itself, with *finish*. Then
the tunnel keeps that back, too, until it is decided that the guest goes on at the target.

On the target ``cnvm-host serve`` lets a peer's client through to libvirt for a guest whose move has begun, and lets
through no more than such a client needs.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
import typing as t

from .._core import paths
from .._core.errors import CnvmError, HostError, PeerError
from .._core.names import check_name
from .._libvirt import admission, rpc, xml
from .._migrate import records
from . import files, movedir, peers
from .system import Host

# libvirt's own daemon, or that of QEMU where there is one for each driver.
_SOCKETS = ("/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock")
_CHUNK = 1 << 16
_LOOK_S = 5


# --------------------------------------------------------------------------------------------------------------------
# On the source
# --------------------------------------------------------------------------------------------------------------------
class Tunnel:
    """A socket (``uri``) behind which the target's libvirt is. ``arrived`` is set when the guest is whole there: then
    neither a lost link nor anything else but ``release`` or ``close`` lets the client go on. ``post_copy``: it is set
    when the guest stands still there, and may go on with ``let_run``. ``answered``: what the client is to hear is here.
    """

    def __init__(self, host: Host, peer: str, name: str, move_id: str, *, post_copy: bool = False) -> None:
        self.arrived = threading.Event()
        self.answered = threading.Event()
        self.lost = threading.Event()
        self._post_copy = post_copy
        self._let_run = threading.Event()
        self._released = threading.Event()
        self._guard = threading.Lock()
        self._path = f"{paths.move_dir(move_id)}/libvirt.sock"
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(self._path)
        self._server.listen(1)
        argv = peers.ssh_argv(peers.find(peer), "libvirt", name)
        self._process = host.popen(argv, stdin=-1, stdout=-1, stderr=-1, start_new_session=True)
        self._client: t.Optional[socket.socket] = None
        self._closed = False
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def uri(self) -> str:
        """For libvirt's client."""
        return f"qemu+unix:///system?socket={self._path}"

    def let_run(self) -> None:
        """Have libvirt let the guest run on the target (post-copy)."""
        self._let_run.set()

    def release(self) -> None:
        """Let the client have the answer: libvirt ends the source's copy."""
        self._released.set()

    def last_words(self) -> str:
        """Why it ended, as the target or SSH has said it; '' when they have not."""
        return peers.last_words(self._process.stderr)

    def close(self) -> None:
        """End it. A client that waits for the answer takes it that the guest did not arrive, and lets the source go on:
        only for a move that is not committed, or was given back."""
        with self._guard:
            self._closed = True
            if self._client is not None:
                with contextlib.suppress(OSError):
                    self._client.shutdown(socket.SHUT_RDWR)
        self._released.set()
        self._let_run.set()
        self._server.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                pipe.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def _serve(self) -> None:
        try:
            client, _address = self._server.accept()
        except OSError:
            return
        with self._guard:
            self._client = client
        threading.Thread(target=self._there, args=(client,), daemon=True).start()
        self._back(client)

    def _there(self, client: socket.socket) -> None:
        frames, into = rpc.Frames(), self._process.stdin.fileno()
        with contextlib.suppress(OSError, ValueError, PeerError):
            while True:
                data = client.recv(_CHUNK)
                if not data:
                    break
                for frame in frames.feed(data):
                    if self._post_copy and rpc.is_departure(frame):
                        self.arrived.set()
                        self._let_run.wait()
                    with self._guard:
                        if self._closed:
                            return
                    files.write_all(into, frame.data)

    def _back(self, client: socket.socket) -> None:
        frames, out = rpc.Frames(), self._process.stdout.fileno()
        with contextlib.suppress(OSError, ValueError, PeerError):
            while True:
                data = os.read(out, _CHUNK)
                if not data:
                    break
                for frame in frames.feed(data):
                    if not self._post_copy and rpc.is_arrival(frame):
                        self.arrived.set()
                    if self.arrived.is_set() and rpc.is_answer(frame):
                        self.answered.set()
                        self._released.wait()
                    with self._guard:
                        if self._closed:
                            return
                    client.sendall(frame.data)
        self.lost.set()
        if self.arrived.is_set():
            self._released.wait()
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


# --------------------------------------------------------------------------------------------------------------------
# On the target
# --------------------------------------------------------------------------------------------------------------------
def answer(args: t.Sequence[str], host: Host) -> int:
    """``libvirt NAME``: be a peer's way to this host's libvirt for the guest NAME, which it is moving here."""
    if len(args) != 1 or host.stdin is None or host.stdout is None:
        raise CnvmError("This key may only bring a guest.", hint="Log in with your own key.")
    name = check_name(args[0], "NAME")
    journal = expected(name)
    with _daemon() as there:
        _pass(name, journal, host.stdin.fileno(), host.stdout.fileno(), there)
    return 0


def expected(name: str) -> dict[str, t.Any]:
    """The journal of a guest that is on its way to this host and has not arrived; PeerError when there is none."""
    journal = files.read_json(paths.journal_file(name)) or {}
    here = journal.get("role") == "target" and journal.get("kind") == "guest"
    if not here or journal.get("state") != records.TARGET_RECEIVING or journal.get("boot_id") != movedir.boot_id():
        raise PeerError(f"No guest {name} is on its way to this host.")
    return journal


def _daemon() -> socket.socket:
    problem = "there is no socket of it"
    for path in _SOCKETS:
        there = socket.socket(socket.AF_UNIX)
        try:
            there.connect(path)
            return there
        except OSError as error:
            there.close()
            problem = str(error) if os.path.exists(path) else problem
    raise HostError(f"libvirt does not answer: {problem}.", hint="Start it: 'systemctl start libvirtd'.")


def _pass(name: str, journal: t.Mapping[str, t.Any], read: int, write: int, there: socket.socket) -> None:
    """Pass on what comes from either side, until one of them ends, or the move; what the peer sends is looked at."""
    frames = rpc.Frames()
    poll = select.poll()
    for fd in (read, there.fileno()):
        poll.register(fd, select.POLLIN)
    looked = time.monotonic()
    while True:
        events = poll.poll(_LOOK_S * 1000)
        # A link that is dead does not say so to who only listens.
        if time.monotonic() - looked >= _LOOK_S:
            _see_it_go_on(name, journal)
            looked = time.monotonic()
        for fd, _event in events:
            data = os.read(fd, _CHUNK)
            if not data and fd != read:
                raise HostError("libvirt's daemon ended the connection.", hint="See 'journalctl -u libvirtd' there.")
            if not data:
                return
            if fd != read:
                files.write_all(write, data)
                continue
            for frame in frames.feed(data):
                _check(name, journal, frame)
                there.sendall(frame.data)


def _see_it_go_on(name: str, journal: t.Mapping[str, t.Any]) -> None:
    if (files.read_json(paths.journal_file(name)) or {}).get("move_id") != journal["move_id"]:
        raise PeerError(f"The move of {name} to this host has ended.")


def _check(name: str, journal: t.Mapping[str, t.Any], frame: rpc.Frame) -> None:
    if not rpc.is_allowed(frame):
        raise PeerError(f"A host that brings {name} may not ask libvirt for procedure {frame.procedure}.")
    said = rpc.arguments(frame)
    if said is None:
        return
    _see_it_go_on(name, journal)
    if said.texts.get("destination_name", name) != name:
        raise PeerError(f"A host that brings {name} may not give it another name.")
    text = said.texts.get("destination_xml")
    if text is None and frame.procedure == rpc.PREPARE:
        raise PeerError(f"{name} was to be brought without a definition.")
    roots = [] if text is None else [xml.parse(text, "what is brought", "domain")]
    if said.cookie:
        # The definition that is kept comes beside the one that runs.
        roots += xml.parse(said.cookie, "what is brought beside it").iter("domain")
    found = {one for root in roots for one in admission.strangers(name, root, journal["needs"])}
    if found:
        raise PeerError(f"What is brought as {name} is not what was announced: {', '.join(sorted(found))}.")
