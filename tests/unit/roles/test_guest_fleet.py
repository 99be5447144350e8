# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clones where some hosts are for containers only, and words that a survey leaves empty."""

from __future__ import annotations

import json
import re
import typing as t

import pytest

from ansible_collections.cnvm.platform.tests.unit.roles.stage import Stage, unsaid


@pytest.fixture
def hosts(stage: Stage) -> Stage:
    """host2 is for containers only."""
    for name, answers in stage.answers.items():
        answers["guest_info"] = {"libvirt": name == "host1", "guests": []}
        answers["template_info"] = {"peers": [], "templates": [{"digest": "1" * 64, "names": ["debian"]}]}
        answers["guest_clone"] = {"clones": []}
    return stage


def test_a_host_for_containers_only_gets_no_clone(hosts: Stage) -> None:
    """It is no host that did not answer, either."""
    hosts.playbook("vm_instantiate", template="debian", count=2, memory_mib=8)
    ((host, options),) = hosts.asked("guest_clone")
    assert (host, options["numbers"]) == ("host1", [1, 2])


def test_a_word_that_is_empty_is_not_said(hosts: Stage) -> None:
    """A survey sends all of its words."""
    words = ("file", "group", "type", "pattern", "memory_mib", "vcpus", "size_mib", "network", "key", "linked", "gone")
    hosts.playbook("vm_instantiate", template="debian", count="1", memory_mib="8")
    plain = hosts.asked("guest_clone")
    hosts.playbook("vm_instantiate", template="debian", count="1", state="", **{**unsaid(words), "memory_mib": "8"})
    assert hosts.asked("guest_clone") == plain
    hosts.playbook("vm_list", output="")


def test_words_reach_the_clones(hosts: Stage) -> None:
    """A relative key is found from where the command is given."""
    (hosts.path / "key.pub").write_text("ssh-ed25519 AAAA me\n", encoding="utf-8")
    words: dict[str, t.Any] = {
        "memory_mib": 64,
        "vcpus": 2,
        "size_mib": 2048,
        "network": "inner",
        "key": "key.pub",
        "linked": False,
    }
    hosts.playbook("vm_instantiate", template="debian", count=1, group="pf", type="web", state="stopped", **words)
    ((_host, options),) = hosts.asked("guest_clone")
    assert options["guest"] == {
        "memory_mib": 64, "vcpus": 2, "networks": [{"source": "inner"}], "tags": {"group": "pf", "type": "web"},
        "cloud_init": {"user_data": {"ssh_authorized_keys": ["ssh-ed25519 AAAA me"]}},
    }  # fmt: skip
    assert (options["pattern"], options["disk"], options["linked"], options["state"]) == (
        "debian-pf-web-%d", {"size_mib": 2048}, False, "stopped",
    )  # fmt: skip


def test_words_reach_those_that_are_stopped_and_launched(hosts: Stage) -> None:
    there = {"managed": True, "state": "running", "tags": {"group": "pf", "type": "web"}, "template": "debian"}
    hosts.answers["host1"]["guest_info"]["guests"] = [{"name": "a", **there}, {"name": "b", **there}]
    hosts.answers["host1"]["guest"] = {"guests": []}
    hosts.playbook("vm_stop", guest="a", force=True, timeout_s=7)
    ((_host, options),) = hosts.asked("guest")
    (stopped,) = options["guests"]
    # Before ansible-core 2.19 what a template makes may be a text; the module takes that, too.
    assert int(stopped.pop("stop_timeout_s")) == 7
    assert stopped == {"name": "a", "state": "stopped", "force_stop": True}
    hosts.playbook("vm_launch", all=True)
    ((_host, options),) = hosts.asked("guest")
    assert options["guests"] == [{"name": name, "state": "running"} for name in "ab"]


def test_a_description_is_taken_as_a_whole(hosts: Stage) -> None:
    """Who adds a group means that part of it, and with state=absent would lose the others, too."""
    (hosts.path / "clones").write_text("debian:1:pf1\ndebian:1:pf2\n", encoding="utf-8")
    said = hosts.playbook("vm_instantiate", file="clones", group="pf1", count=0, state="absent", check=False)
    assert "file: it does not go with count, group:" in said
    assert hosts.asked("guest_info") == []
    words = ("template", "count", "group", "type", "pattern")
    hosts.playbook("vm_instantiate", file="clones", memory_mib=8, **unsaid(words))
    assert [options["pattern"] for dummy, options in hosts.asked("guest_clone")] == ["debian-pf1-%d", "debian-pf2-%d"]


def test_what_a_host_keeps_that_does_not_answer_is_said(hosts: Stage) -> None:
    hosts.off = {"host2"}
    words: dict[str, t.Any] = {"template": "debian", "count": 1, "state": "absent"}
    said = hosts.playbook("vm_instantiate", "--limit", "host1", **words)
    assert "Whether debian-1 is gone is not known: host2 did not answer" in said
    assert "host2: no answer. What is there stays as it is." in said
    assert "no answer" not in hosts.playbook("vm_instantiate", "--limit", "host1", gone="host2", **words)


PLAY = """
- hosts: cnvm_hosts
  gather_facts: false
  roles: [cnvm.platform.guest_fleet]
"""


def play(stage: Stage, *args: str, check: bool = True, **more: t.Any) -> str:
    """The role by itself, with one clone."""
    file = stage.path / "play.yml"
    file.write_text(PLAY, encoding="utf-8")
    clones: dict[str, t.Any] = {"guest_fleet_clones": "debian:1", "guest_fleet_guest": {"memory_mib": 8}}
    return stage.playbook(str(file), *args, check=check, **{**clones, **more})


@pytest.mark.parametrize("gone", ["host10", ["host10"], " host10, host11,"])
def test_nobody_is_gone_whose_name_is_a_part_of_one(hosts: Stage, gone: object) -> None:
    """-e and surveys give a text where a list is meant. The silent host may have the clone that would be made."""
    hosts.answers["host2"]["guest_info"]["libvirt"] = True
    hosts.answers["host10"] = hosts.answers["host2"]
    hosts.off = {"host1", "host10"}
    said = play(hosts, check=False, guest_fleet_gone_hosts=gone)
    assert "Whether debian-1 is there already is not known: host1 did not answer" in said
    assert hosts.asked("guest_clone") == []
    said = hosts.playbook("vm_instantiate", check=False, template="debian", count=1, gone=gone)
    assert "not known: host1 did not answer" in said


@pytest.mark.parametrize("gone", ["host10", ["host10"], "host9, host10"])
def test_who_is_gone_is_not_waited_for(hosts: Stage, gone: object) -> None:
    hosts.answers["host10"] = hosts.answers["host2"]
    hosts.answers["host1"]["template_info"]["peers"] = ["host2", "host10"]
    hosts.off = {"host10"}
    play(hosts, "--limit", "!host10", guest_fleet_gone_hosts=gone)
    ((host, options),) = hosts.asked("guest_clone")
    assert (host, options["unreachable_peers"]) == ("host1", "ignore")
    hosts.playbook("vm_instantiate", "--limit", "!host10", template="debian", count=1, gone=gone)
    assert hosts.asked("guest_clone")[0][1]["unreachable_peers"] == "ignore"


def test_the_hosts_are_not_looked_at_again_for_each_of_them(hosts: Stage) -> None:
    file = hosts.path / "looked"
    looked = "{{ {} if lookup('ansible.builtin.pipe', 'echo >> " + str(file) + "') else {} }}"
    times = []
    for _dummy in range(2):
        file.write_text("", encoding="utf-8")
        play(hosts, __guest_fleet_others=looked)
        times.append(len(file.read_text(encoding="utf-8")))
        hosts.answers["host3"] = hosts.answers["host4"] = hosts.answers["host2"]
    assert times[0] == times[1] > 0


def test_a_host_gets_what_its_own_variables_make_of_the_description(hosts: Stage) -> None:
    hosts.answers["host2"] = hosts.answers["host1"]
    guest = {"memory_mib": 8, "description": "at {{ inventory_hostname }}"}
    play(hosts, guest_fleet_clones="debian:2", guest_fleet_guest=guest)
    asked = sorted((host, options["guest"]["description"]) for host, options in hosts.asked("guest_clone"))
    assert asked == [("host1", "at host1"), ("host2", "at host2")]


def test_a_chosen_host_that_is_left_out_stops_nothing(hosts: Stage) -> None:
    there = {"name": "debian-1", "managed": True, "state": "running", "memory_mib": 8}
    hosts.answers["host1"]["guest_info"]["guests"] = [there]
    chosen = [{"template": "debian", "count": 1, "hosts": ["host1", "host2"]}]
    play(hosts, "--limit", "host1", guest_fleet_clones=chosen)
    assert [host for host, dummy in hosts.asked("guest_clone")] == ["host1"]


def test_a_host_that_fails_after_it_has_told_is_not_taken_for_gone(hosts: Stage) -> None:
    hosts.answers["host2"]["template_info"] = {"failed": True, "msg": "No libvirt."}
    said = play(hosts, check=False)
    assert "host2 has left the play since (see its error above)." in said
    assert "Mend what has stopped host2, and run it again." in said
    assert "guest_fleet_gone_hosts" not in said
    hosts.off = {"host2"}
    assert "guest_fleet_gone_hosts" in play(hosts, check=False)


@pytest.mark.parametrize("all_hosts", ["host1, host2", ["host1", "host2"], ""])
def test_all_hosts_that_may_have_guests_are_asked(hosts: Stage, all_hosts: object) -> None:
    play(hosts, "--limit", "host1", guest_fleet_hosts=all_hosts)
    assert [host for host, dummy in hosts.asked("guest_info")] == ["host1", "host2"]


def test_what_hosts_say_is_no_template(hosts: Stage) -> None:
    """Whoever may define a domain on a host gives it any name. ansible-core before 2.17.7 would run this one here."""
    ran = hosts.path / "ran"
    text = f"{{{{ lookup('ansible.builtin.pipe', 'mkdir {ran}') }}}}"
    tags = dict.fromkeys(("group", "type", "template"), text)
    hosts.answers["host1"]["guest_info"]["guests"] = [
        {"name": text, "managed": False, "state": "running"},
        {"name": "web", "managed": True, "state": "stopped", "tags": tags},
    ]
    said = hosts.playbook("vm_list", output="guests.json")
    assert said.count(text) == 4
    assert text in (row["name"] for row in json.loads((hosts.path / "guests.json").read_text(encoding="utf-8")))
    assert not ran.exists()


def test_in_check_mode_it_is_looked_whether_somebody_answers(hosts: Stage) -> None:
    """That nobody does is not said of what was not looked at."""
    hosts.answers["host1"]["guest_info"]["guests"] = [
        {"name": "web", "managed": True, "state": "running", "address": "127.0.0.1", "address_source": "lease"}
    ]
    said = hosts.playbook("vm_connect", "--check", guest="web")
    (answers,) = re.findall(r"See whether somebody answers there\] \*+ (.*?) TASK", said)
    assert "ok: [host1]" in answers


def test_in_check_mode_hosts_may_be_bare(hosts: Stage) -> None:
    """A task before may be to make hosts of them, and to bring the template. Else both are refused."""
    for answers in hosts.answers.values():
        answers["guest_info"] = {"libvirt": False, "guests": []}
        answers["template_info"] = {"peers": [], "templates": []}
    asked: dict[str, t.Any] = {"template": "debian", "count": 2, "memory_mib": 8}
    said = hosts.playbook("vm_instantiate", "--check", **asked)
    assert "There is no room for 2 clones" in said
    assert "host1 has no libvirt; host2 has no libvirt" in said
    hosts.answers["host1"]["guest_info"] = {"libvirt": True, "guests": []}
    said = hosts.playbook("vm_instantiate", "--check", **asked)
    assert "host1 has no template 'debian'" in said
    assert [host for host, dummy in hosts.asked("guest_clone", check=True)] == ["host1"]
    assert "has no template" in hosts.playbook("vm_instantiate", check=False, **asked)
