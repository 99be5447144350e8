# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An HTTP client on one keep-alive connection, asking every few milliseconds. It runs on a local host.

usage: heartbeat.py ADDRESS PORT PAUSE_MS [reconnect]

The server counts requests; each answer must be one more than the one before, so a lost or doubled request shows. A
second connection is sent a number every 5 ms; silence_ms is the longest time in which none came. A word on standard
input gets one JSON line: what happened since the word before. With ``reconnect`` there is no second connection, but a
new one as soon as the old one is silent, every 50 ms, and whichever answers first is taken.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import threading
import time

ADDRESS, PORT, PAUSE_S = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) / 1000
RECONNECT = len(sys.argv) > 4
REQUEST = b"GET / HTTP/1.1\r\nHost: counter\r\n\r\n"
lock = threading.Lock()
seen = {"requests": 0, "worst_gap_ms": 0.0, "resets": 0, "lost": 0, "pid": 0, "count": 0, "silence_ms": 0.0, "ticks": 0}
last = time.monotonic()


def note_answer(body: bytes) -> None:
    """The body is "COUNT PID UPTIME_MS"."""
    global last
    count, pid = (int(word) for word in body.split()[:2])
    now = time.monotonic()
    with lock:
        seen["worst_gap_ms"] = max(seen["worst_gap_ms"], round((now - last) * 1000, 1))
        seen["requests"] += 1
        if seen["count"] and count != seen["count"] + 1:
            seen["lost"] += 1
        seen["count"], seen["pid"] = count, pid
        last = now


def read_answer(connection: socket.socket) -> bytes:
    """One response; its end is known by its length."""
    data = b""
    while True:
        head, split, body = data.partition(b"\r\n\r\n")
        if split:
            length = int(head.lower().partition(b"content-length:")[2].split()[0])
            if len(body) >= length:
                return body[:length]
        more = connection.recv(4096)
        if not more:
            raise ConnectionResetError("the server closed the connection")
        data += more


def connect(timeout_s: float) -> socket.socket:
    made = socket.create_connection((ADDRESS, PORT), timeout=timeout_s)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def steady() -> None:
    """One connection for ever; when it breaks, that is a reset, and all further ones are new."""
    connection = connect(10)
    connection.settimeout(120)
    while True:
        try:
            connection.sendall(REQUEST)
            note_answer(read_answer(connection))
        except OSError:
            with lock:
                seen["resets"] += 1
            time.sleep(0.05)
            try:
                connection = connect(1)
                connection.settimeout(120)
            except OSError:
                pass
        time.sleep(PAUSE_S)


def listen() -> None:
    """Note when numbers come; with the connection lost, that is a reset, and there is no other."""
    try:
        connection = connect(10)
        connection.settimeout(120)
        connection.sendall(b"GET /ticks HTTP/1.1\r\nHost: counter\r\n\r\n")
        lines = connection.makefile("rb")
        while lines.readline().strip():
            pass
        before, expected = time.monotonic(), 1
        while True:
            line = lines.readline()
            if not line:
                raise ConnectionResetError("the server closed the connection")
            now = time.monotonic()
            with lock:
                seen["silence_ms"] = max(seen["silence_ms"], round((now - before) * 1000, 1))
                seen["lost"] += int(line) != expected
                seen["ticks"] += 1
            before, expected = now, int(line) + 1
    except OSError:
        with lock:
            seen["resets"] += 1


def eager() -> None:
    """As soon as the connection is silent for 50 ms, a new one is tried beside it, every 50 ms."""
    connections = [connect(10)]
    while True:
        asked, waiting, begin = set(), list(connections), time.monotonic()
        for one in waiting:
            try:
                one.send(REQUEST)
                asked.add(one)
            except OSError:
                pass
        answered = None
        while answered is None:
            ready, writable, dummy = select.select(waiting, [one for one in waiting if one not in asked], [], 0.05)
            for one in writable:
                try:
                    one.send(REQUEST)
                    asked.add(one)
                except OSError:
                    waiting.remove(one)
                    one.close()
            for one in ready:
                if one not in waiting:
                    continue
                try:
                    one.settimeout(1)
                    body = read_answer(one)
                    answered = one
                    break
                except OSError:
                    waiting.remove(one)
                    one.close()
                    with lock:
                        seen["resets"] += 1
            if answered is None and time.monotonic() - begin > 0.05 and not (ready or writable):
                fresh = socket.socket()
                fresh.setblocking(False)
                fresh.connect_ex((ADDRESS, PORT))
                waiting.append(fresh)
                # Nobody has hundreds of them open; the oldest attempts give way.
                while len(waiting) > 64:
                    waiting.pop(1).close()
        with lock:
            seen["count"] = 0
        note_answer(body)
        for one in waiting:
            if one is not answered:
                one.close()
        connections = [answered]
        time.sleep(PAUSE_S)


threading.Thread(target=eager if RECONNECT else steady, daemon=True).start()
if not RECONNECT:
    threading.Thread(target=listen, daemon=True).start()
for dummy_line in sys.stdin:
    with lock:
        silent = round((time.monotonic() - last) * 1000, 1)
        print(json.dumps({**seen, "silent_ms": silent}), flush=True)
        seen.update(requests=0, worst_gap_ms=0.0, resets=0, lost=0, silence_ms=0.0, ticks=0)
