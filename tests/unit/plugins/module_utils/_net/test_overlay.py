# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""overlay.json of each host: all compute the same, nobody's address changes, nobody is forgotten."""

from __future__ import annotations

import base64
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._net import overlay
from ansible_collections.cnvm.platform.plugins.module_utils._net.overlay import Member, Settings

SETTINGS = Settings(gateway="10.100.101.254")
OPTIONS: dict[str, t.Any] = {
    "subnet": "10.100.101.0/24",
    "tunnel_subnet": "10.100.100.0/24",
    "gateway": None,
    "encryption": "wireguard",
    "mtu": 0,
    "vni": 4242,
    "vxlan_port": 4789,
    "masquerade": True,
}


def key(number: int) -> str:
    return base64.b64encode(bytes([number]) * 32).decode()


def member(number: int, **changes: t.Any) -> Member:
    fresh = Member(name=f"host{number}", underlay=f"192.0.2.{number}", underlay_mtu=1500, public_key=key(number))
    return fresh._replace(**changes)


def joined(members: t.Sequence[Member], settings: Settings = SETTINGS, removed: t.Sequence[str] = ()) -> list[Member]:
    """The members after a run: each has its overlay.json."""
    going = list(removed)
    return [each._replace(document=overlay.document_for(each.name, settings, members, going)) for each in members]


def places(members: t.Sequence[Member]) -> dict[str, tuple[str, str]]:
    found = {}
    for each in members:
        assert each.document
        for entry in (each.document["self"], *each.document["peers"]):
            found[entry["name"]] = (entry["tunnel"], entry["address"])
    return found


def test_the_document_says_what_the_others_read() -> None:
    document = overlay.document_for("host1", SETTINGS, [member(1), member(2)])
    assert document == {
        "schema": 1,
        "subnet": "10.100.101.0/24",
        "gateway": "10.100.101.254",
        "gateway_mac": document["gateway_mac"],
        "bridge": "cnvm0",
        "mtu": 1370,
        "encryption": "wireguard",
        "tunnel_subnet": "10.100.100.0/24",
        "vni": 4242,
        "vxlan_port": 4789,
        "masquerade": True,
        "self": {
            "name": "host1",
            "tunnel": "10.100.100.1",
            "underlay": "192.0.2.1",
            "address": "10.100.101.1",
            "endpoint": "192.0.2.1:51820",
            "public_key": key(1),
            "revision": 1,
        },
        "peers": [
            {
                "name": "host2",
                "tunnel": "10.100.100.2",
                "underlay": "192.0.2.2",
                "address": "10.100.101.2",
                "endpoint": "192.0.2.2:51820",
                "public_key": key(2),
                "revision": 1,
            }
        ],
        "removed": {},
    }
    assert overlay.document_for("host2", SETTINGS, [member(1), member(2)])["gateway_mac"] == document["gateway_mac"]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12, unique=True), st.data())
def test_adding_hosts_moves_no_address_and_all_agree(numbers: list[int], data: st.DataObject) -> None:
    split = data.draw(st.integers(1, len(numbers)))
    first = joined([member(number) for number in numbers[:split]])
    everybody = data.draw(st.permutations([*first, *(member(number) for number in numbers[split:])]))
    second = joined(everybody)
    after = places(second)
    assert {name: after[name] for name in places(first)} == places(first)
    for each in second:
        assert places([each]) == after
    for which in (0, 1):
        assert len({place[which] for place in after.values()}) == len(numbers)
    assert joined(second) == second


def test_a_host_left_out_by_a_limit_stays() -> None:
    everybody = joined([member(1), member(2), member(3)])
    assert joined(everybody[:2])[0].document == everybody[0].document
    # A new host in a play without host3 learns of it from the others.
    later = joined([everybody[0], member(4)])
    assert later[1].document
    assert [peer["name"] for peer in later[1].document["peers"]] == ["host1", "host2", "host3"]
    assert later[1].document["self"]["address"] == "10.100.101.4"


def test_a_removed_host_goes_and_its_address_is_free_again() -> None:
    everybody = joined([member(1), member(2), member(3)])
    rest = joined([everybody[0], everybody[2]], removed=["host2"])
    assert list(places(rest)) == ["host1", "host3"]
    again = joined([*rest, member(5)])
    assert places(again)["host5"] == ("10.100.100.2", "10.100.101.2")
    with pytest.raises(InputError, match="removed: host1 is a member"):
        overlay.document_for("host1", SETTINGS, everybody, ["host1"])


def test_removed_hosts_may_be_a_text() -> None:
    """Ansible makes a list of it, and leaves the blanks."""
    everybody = joined([member(1), member(2), member(3), member(4)])
    rest = joined([everybody[0], everybody[3]], removed=["host2", " host3"])
    assert list(places(rest)) == ["host1", "host4"]
    assert joined(everybody, removed=[""]) == everybody


def test_no_host_gets_the_address_of_a_container() -> None:
    found = joined([member(1, taken=("10.100.101.1", "10.100.101.2")), member(2)])
    assert places(found) == {"host1": ("10.100.100.1", "10.100.101.3"), "host2": ("10.100.100.2", "10.100.101.4")}
    with pytest.raises(InputError, match=r"address: 10.100.101.2 of the host host2 is not allowed"):
        joined([member(1, taken=("10.100.101.2",)), member(2, address="10.100.101.2")])


def test_a_wish_comes_first() -> None:
    before = joined([member(1), member(2)])
    found = joined([before[0], before[1]._replace(address="10.100.101.1", tunnel="10.100.100.9")])
    assert places(found) == {"host1": ("10.100.100.1", "10.100.101.2"), "host2": ("10.100.100.9", "10.100.101.1")}


@pytest.mark.parametrize("address", ["10.100.101.254", "10.100.101.0", "10.100.101.255", "10.0.0.1"])
def test_a_wish_that_cannot_be_is_refused(address: str) -> None:
    with pytest.raises(InputError, match=f"address: {address} of the host host1"):
        joined([member(1, address=address)])


def test_two_wishes_for_one_address_are_refused() -> None:
    with pytest.raises(InputError, match=r"host1 and host2 both have 10\.100\.101\.9"):
        joined([member(1, address="10.100.101.9"), member(2, address="10.100.101.9")])


def test_a_full_subnet_says_so() -> None:
    small = Settings(subnet="10.1.0.0/29", gateway="10.1.0.6")
    assert places(joined([member(n) for n in range(1, 6)], small))["host5"][1] == "10.1.0.5"
    with pytest.raises(InputError, match=r"no address is left in 10.1.0.0/29 for the host host6"):
        joined([member(n) for n in range(1, 7)], small)


def test_the_mtu_fits_the_smallest_link_and_those_left_out() -> None:
    everybody = joined([member(1, underlay_mtu=9000), member(2, underlay_mtu=1400), member(3, underlay_mtu=9000)])
    assert {each.document["mtu"] for each in everybody if each.document} == {1270}
    assert joined([everybody[0], everybody[2]]) == [everybody[0], everybody[2]]
    apart = joined([everybody[0], everybody[2]], removed=["host2"])
    assert apart[0].document
    assert apart[0].document["mtu"] == 8870
    with pytest.raises(InputError, match="mtu: 1300 is too large") as error:
        joined(everybody, SETTINGS._replace(mtu=1300))
    assert "up to 1270" in error.value.hint
    with pytest.raises(InputError, match="leaves only 470 bytes"):
        joined([member(1, underlay_mtu=600)])


def test_without_encryption_the_hosts_talk_directly() -> None:
    document = overlay.document_for("host1", SETTINGS._replace(encryption="none"), [member(1), member(2)])
    assert document["self"] == {
        "name": "host1",
        "tunnel": "192.0.2.1",
        "underlay": "192.0.2.1",
        "address": "10.100.101.1",
        "revision": 1,
    }
    assert document["mtu"] == 1450
    assert not overlay.encrypted(document)


def test_encryption_changes_everywhere_or_nowhere() -> None:
    everybody = joined([member(1), member(2), member(3)])
    plain = SETTINGS._replace(encryption="none")
    with pytest.raises(Refused, match="host3 would be left out"):
        joined(everybody[:2], plain)
    assert places(joined(everybody, plain))["host3"] == ("192.0.2.3", "10.100.101.3")
    assert places(joined(joined(everybody, plain))) == places(everybody)


@pytest.mark.parametrize("change", [{"vni": 99}, {"vxlan_port": 8472}, {"tunnel_subnet": "10.9.0.0/24"}, {"mtu": 1300}])
def test_what_all_must_have_alike_changes_everywhere_or_nowhere(change: dict[str, t.Any]) -> None:
    everybody = joined([member(1), member(2), member(3)])
    settings = SETTINGS._replace(**change)
    ((key, value),) = change.items()
    with pytest.raises(Refused, match=f"{key}: it cannot become {value} on some hosts only; host2, host3 would be"):
        joined(everybody[:1], settings)
    for each in (*joined(everybody, settings), *joined(everybody[:1], settings, ["host2", "host3"])):
        assert each.document
        assert each.document[key] == value


def test_a_new_host_with_a_smaller_link_needs_all_hosts() -> None:
    everybody = joined([member(1), member(2)])
    with pytest.raises(Refused, match="mtu: it cannot become 1270 on some hosts only; host2 would be left out"):
        joined([everybody[0], member(3, underlay_mtu=1400)])


def test_a_removed_host_does_not_come_back_with_one_that_was_down() -> None:
    down, *up, gone = joined([member(1), member(2), member(3), member(4)])
    rest = joined(up, removed=["host4"])
    assert list(places(joined([down, *rest]))) == ["host1", "host2", "host3"]
    # It does when it is in a play itself, also for those that were left out then.
    again = joined([rest[0], gone])
    assert sorted(places(again)) == ["host1", "host2", "host3", "host4"]
    assert sorted(places(joined([rest[1], again[0]]))) == ["host1", "host2", "host3", "host4"]


def test_the_newest_word_on_a_host_counts() -> None:
    down, up, dummy = joined([member(1), member(2), member(3)])
    moved = joined([up, member(3, underlay="192.0.2.33", public_key=key(33))])
    assert places(moved)["host3"] == places([down])["host3"]
    for pair in ([down, moved[0]], [moved[0], down]):
        for each in joined(pair):
            assert each.document
            (seen,) = [peer for peer in each.document["peers"] if peer["name"] == "host3"]
            assert (seen["endpoint"], seen["public_key"]) == ("192.0.2.33:51820", key(33))


def test_a_host_that_was_away_does_not_take_its_old_address_from_another() -> None:
    away, *rest = joined([member(1), member(2)])
    rest = joined([*joined(rest, removed=["host1"]), member(3)])
    assert places(rest)["host3"] == ("10.100.100.1", "10.100.101.1")
    assert places(joined([away, *rest])) == {
        "host1": ("10.100.100.3", "10.100.101.3"),
        "host2": ("10.100.100.2", "10.100.101.2"),
        "host3": ("10.100.100.1", "10.100.101.1"),
    }


def test_a_host_that_was_renamed_is_the_same_host() -> None:
    one, two, three = joined([member(1), member(2), member(3)])
    renamed = joined([one._replace(name="web"), two])
    expected = {"web": places([one])["host1"], **{name: places([one])[name] for name in ("host2", "host3")}}
    assert places(renamed) == expected
    assert joined(renamed) == renamed
    # One that was left out meanwhile learns of it, and brings the old name back to nobody.
    assert places(joined([three, renamed[1]])) == expected
    # They change names.
    swapped = places(joined([one._replace(name="host2"), two._replace(name="host1")]))
    assert swapped["host1"] == expected["host2"]
    assert swapped["host2"] == expected["web"]


def test_a_host_that_could_not_write_or_was_made_anew_keeps_its_address() -> None:
    one, dummy, three = joined([member(1), member(2), member(3)])
    known = joined([one, three._replace(name="web")], removed=["host2"])
    for web in (three._replace(name="web"), member(3, name="web", public_key=key(33))):
        assert places(joined([known[0], web]))["web"] == ("10.100.100.3", "10.100.101.3")


@given(st.data())
def test_whoever_takes_part_in_whichever_play_the_last_word_counts(data: st.DataObject) -> None:
    hosts = {number: member(number) for number in range(1, 6)}
    for each in joined(list(hosts.values())):
        hosts[int(each.name[-1])] = each
    removed: set[int] = set()
    for _play in range(data.draw(st.integers(1, 6))):
        # Number 1 is in each play, so that each play knows of those before.
        numbers = [1, *data.draw(st.lists(st.integers(2, 5), unique=True))]
        leaving = data.draw(st.sets(st.integers(2, 5))) - set(numbers)
        removed = (removed | leaving) - set(numbers)
        order = data.draw(st.permutations(numbers))
        port = data.draw(st.integers(1, 3))
        play = joined([hosts[number]._replace(port=port) for number in order], removed=[f"host{n}" for n in leaving])
        for each in play:
            hosts[int(each.name[-1])] = each
        for each in play:
            assert set(places([each])) == {f"host{number}" for number in hosts if number not in removed}
            assert places([each]) == places(play)
            assert each.document
            for peer in each.document["peers"]:
                known = hosts[int(peer["name"][-1])].document
                assert known
                assert peer == known["self"]
        assert joined(play) == play


def test_only_new_addresses_are_asked_for_and_only_when_hosts_are_left_out() -> None:
    everybody = joined([member(1), member(2), member(3)])
    before = everybody[0].document
    found = joined([everybody[0], member(4)])[0].document
    assert found
    assert [peer["name"] for peer in overlay.newcomers(before, found, ["host1", "host4"])] == ["host4"]
    assert overlay.newcomers(before, found, ["host1", "host2", "host3", "host4"]) == []
    assert overlay.newcomers(found, found, ["host1", "host4"]) == []
    assert overlay.newcomers(None, found, ["host1", "host4"]) == []
    # One that has another name now has its address all the same.
    found = joined([everybody[0], everybody[1]._replace(name="other")])[0].document
    assert found
    assert [peer["name"] for peer in found["peers"]] == ["host3", "other"]
    assert overlay.newcomers(before, found, ["host1", "other"]) == []


@pytest.mark.parametrize(
    "settings", [Settings(subnet="10.7.0.0/24", gateway="10.7.0.254"), Settings(gateway="10.100.101.1")]
)
def test_a_living_overlay_is_not_renumbered(settings: Settings) -> None:
    with pytest.raises(Refused, match="its containers would lose their network"):
        joined(joined([member(1)]), settings)


def test_the_hosts_own_network_must_lie_outside() -> None:
    with pytest.raises(InputError, match=r"10.100.101.7, at which host1 is reached, lies in 10.100.101.0/24"):
        joined([member(1, underlay="10.100.101.7")])


def test_a_host_that_is_not_a_member_or_is_one_twice_is_refused() -> None:
    with pytest.raises(InputError, match="members: the host host9 itself is missing"):
        overlay.document_for("host9", SETTINGS, [member(1)])
    for twice in (member(1), member(2)._replace(name="HOST1")):
        with pytest.raises(InputError, match="named twice"):
            overlay.document_for("host1", SETTINGS, [member(1), twice])


def test_settings_have_a_gateway_and_take_text() -> None:
    assert overlay.settings_from({**OPTIONS, "mtu": "1300", "masquerade": "no"}) == SETTINGS._replace(
        mtu=1300, masquerade=False
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("subnet", "10.100.101.1/24"),
        ("subnet", "10.100.101.0"),
        ("subnet", "10.100.101.0/30"),
        ("subnet", "10.0.0.0/7"),
        ("subnet", "fd00::/64"),
        ("subnet", 10),
        ("tunnel_subnet", "10.100.0.0/16"),
        ("gateway", "10.100.101.255"),
        ("gateway", "10.100.102.1"),
        ("gateway", "here"),
        ("encryption", "ipsec"),
        ("mtu", 100),
        ("mtu", "1_300"),
        ("vni", 0),
        ("vxlan_port", 65536),
        ("masquerade", "perhaps"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(InputError) as error:
        overlay.settings_from({**OPTIONS, option: value})
    assert error.value.message.startswith(f"{option}: ")


GOOD = {"name": "host1", "underlay": "192.0.2.1", "underlay_mtu": 1500, "public_key": key(1), "overlay": None}


def test_a_member_is_read_back() -> None:
    assert overlay.member_from(GOOD, "members[0]") == member(1)
    full = {**GOOD, "port": "51821", "tunnel_address": "10.100.100.3", "address": "", "taken": ["10.100.101.9"]}
    assert overlay.member_from(full, "members[0]") == member(
        1, port=51821, tunnel="10.100.100.3", taken=("10.100.101.9",)
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "a/b"},
        {"name": 7},
        {"underlay": "127.0.0.1"},
        {"underlay": "0.0.0.0"},
        {"underlay": None},
        {"underlay_mtu": 100},
        {"public_key": "short"},
        {"public_key": base64.b64encode(b"x" * 31).decode()},
        {"port": 0, "underlay_mtu": True},
        {"secret": 1},
    ],
)
def test_a_wrong_member_is_refused_by_name(wrong: dict[str, t.Any]) -> None:
    with pytest.raises(InputError, match=r"members\[3\]"):
        overlay.member_from({**GOOD, **wrong}, "members[3]")


def test_wireguard_is_told_of_every_peer_and_nothing_else() -> None:
    everybody = joined([member(1), member(2, port=4000), member(3)])
    assert everybody[0].document
    assert overlay.wireguard_conf(everybody[0].document, "PRIVATE") == (
        "[Interface]\nPrivateKey = PRIVATE\nListenPort = 51820\n"
        f"\n[Peer]\nPublicKey = {key(2)}\nEndpoint = 192.0.2.2:4000\nAllowedIPs = 10.100.100.2/32\n"
        "PersistentKeepalive = 25\n"
        f"\n[Peer]\nPublicKey = {key(3)}\nEndpoint = 192.0.2.3:51820\nAllowedIPs = 10.100.100.3/32\n"
        "PersistentKeepalive = 25\n"
    )
