# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A template of all hosts: what its module is asked for."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import ssl
import subprocess
import threading
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.tests.unit.roles.stage import Stage


@pytest.mark.parametrize(("said", "asked"), [({"reset_identity": False}, {"False"}), ({}, {"None"})])
def test_false_is_an_answer(stage: Stage, said: dict[str, t.Any], asked: set[str]) -> None:
    for answers in stage.answers.values():
        answers["template"] = {"template": None, "changed": True}
    stage.playbook("vm_create", "--check", template="web", guest="web1", **said)
    calls = [options for _host, options in stage.asked("template", check=True) if "guest" in options]
    assert len(calls) == 3
    assert {str(options.get("reset_identity")) for options in calls} == asked


@pytest.mark.parametrize(("said", "asked"), [({"max_virtual_size": "2T"}, "2T"), ({"max_virtual_size": ""}, "1T")])
def test_how_large_an_image_may_be(stage: Stage, said: dict[str, t.Any], asked: str) -> None:
    for answers in stage.answers.values():
        answers["template"] = {"template": None, "changed": True}
    stage.playbook("vm_create", "--check", template="web", guest="web1", **said)
    calls = [options for _host, options in stage.asked("template", check=True) if "guest" in options]
    assert [options["max_virtual_size"] for options in calls] == [asked] * 3


def test_in_check_mode_an_older_template_will_not_do(stage: Stage) -> None:
    """The one that is to be made has no digest yet that could be compared."""
    for answers in stage.answers.values():
        answers["template"] = {"template": None, "changed": True}
    stage.playbook("vm_create", "--check", template="web", guest="web1")
    (taken,) = (options for _host, options in stage.asked("template", check=True) if "peer" in options)
    assert (taken["peer"], taken.get("digest"), taken["refresh"]) == ("host1", None, True)


def test_a_template_that_is_there_is_taken_by_its_digest(stage: Stage) -> None:
    one = {"digest": "1" * 64, "virtual_bytes": 2**20, "reset_identity": True}
    stage.answers["host1"]["template"] = {"template": one}
    stage.answers["host2"]["template"] = [{"template": None, "changed": True}, {"template": one, "changed": True}]
    stage.playbook("vm_create", "--check", template="web", guest="web1")
    (taken,) = (options for _host, options in stage.asked("template", check=True) if "peer" in options)
    assert (taken["peer"], taken["digest"], taken["refresh"]) == ("host1", "1" * 64, False)


MAKE = """
- hosts: host1
  gather_facts: false
  tasks:
    - ansible.builtin.include_role:
        name: cnvm.platform.guest_template
        tasks_from: make
"""


@pytest.mark.parametrize(
    ("checksum", "fails", "kept"),
    [("unverified", True, False), ("unverified", False, True), (f"sha256:{'a' * 64}", True, True)],
)
def test_what_was_got_and_is_no_template_is_got_again(
    stage: Stage, tmp_path: Path, checksum: str, fails: bool, kept: bool
) -> None:
    """The server would say that it has nothing newer."""
    url = "https://example.org/debian.qcow2"
    (tmp_path / "cache").mkdir()
    mark = hashlib.sha256(f"{url}{checksum}".encode()).hexdigest()[:16]
    cached = tmp_path / "cache" / f"{mark}-debian.qcow2"
    cached.write_text("<!doctype html>")
    (tmp_path / "make.yml").write_text(MAKE)
    refused = {"failed": True, "msg": "The file is a web page"}
    stage.answers["host1"]["template"] = refused if fails else {"template": {"digest": "1" * 64}}
    said = stage.playbook(
        "make.yml",
        check=not fails,
        guest_template_name="web",
        guest_template_url=url,
        guest_template_checksum=checksum,
        guest_template_cache_dir=str(tmp_path / "cache"),
        __guest_template_place=str(tmp_path / "place"),
        # It is in the cache: the role has got it a moment ago.
        __guest_template_found={"template": True},
    )
    assert ("The file is a web page" in said) == fails
    assert cached.exists() == kept


GET = MAKE.replace("tasks_from: make", "tasks_from: get")


class _Server(http.server.BaseHTTPRequestHandler):
    """Sends on to ``to``, or gives an image."""

    to = ""

    def do_GET(self) -> None:
        self.send_response(302 if self.to else 200)
        self.send_header("Location", self.to)
        self.end_headers()
        self.wfile.write(b"image")


@contextlib.contextmanager
def serving(to: str = "", context: ssl.SSLContext | None = None) -> t.Iterator[str]:
    """A server on this machine; its URL."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Server", (_Server,), {"to": to})) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http{'s' if context else ''}://127.0.0.1:{server.server_port}/web.qcow2"
        server.shutdown()


@pytest.fixture
def https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A certificate of this machine that is trusted here, where no proxy is in between."""
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    pem = tmp_path / "pem"
    words = ["openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=here", "-keyout", str(pem)]
    words += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", f"{pem}.crt"]
    subprocess.run(words, check=True, stderr=subprocess.DEVNULL)
    monkeypatch.setenv("SSL_CERT_FILE", f"{pem}.crt")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{pem}.crt", pem)
    return context


@pytest.mark.parametrize(
    ("first", "middle", "checksum", "refused"),
    [
        ("https", "http", "unverified", True),
        ("https", "https", "unverified", False),
        ("http", "http", "unverified", False),
        ("https", "http", f"sha256:{hashlib.sha256(b'image').hexdigest()}", False),
    ],
)
def test_what_nobody_knows_does_not_come_by_way_of_http(
    stage: Stage, tmp_path: Path, https: ssl.SSLContext, first: str, middle: str, checksum: str, refused: bool
) -> None:
    """Not even by way of it: who sits there sends on to anything. Unless the user wants http from the start."""
    (tmp_path / "get.yml").write_text(GET.replace("host1", "localhost"))
    with contextlib.ExitStack() as servers:
        url = servers.enter_context(serving(context=https))
        for kind in (middle, first):
            url = servers.enter_context(serving(url, https if kind == "https" else None))
        said = stage.playbook(
            "get.yml",
            check=not refused,
            guest_template_name="web",
            guest_template_url=url,
            guest_template_checksum=checksum,
            guest_template_cache_dir=str(tmp_path / "cache"),
        )
    assert ("no redirect from https to http is followed" in said) == refused
    assert [each.read_text() for each in (tmp_path / "cache").iterdir()] == ([] if refused else ["image"])


def test_a_server_does_not_send_on_to_a_file_of_the_controller(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "get.yml").write_text(GET.replace("host1", "localhost"))
    (tmp_path / "secret").write_text("secret")
    with serving(f"file://{tmp_path}/secret") as url:
        said = stage.playbook(
            "get.yml",
            check=False,
            guest_template_name="web",
            guest_template_url=url,
            guest_template_checksum="unverified",
            guest_template_cache_dir=str(tmp_path / "cache"),
        )
    assert f"{url} could not be got: " in said
    assert "is not allowed" in said
    assert list((tmp_path / "cache").iterdir()) == []
