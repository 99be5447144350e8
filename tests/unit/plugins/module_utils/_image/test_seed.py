# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Seeds: what they hold, when they are made again, and when a guest is a new instance."""

from __future__ import annotations

import json
import struct
import typing as t
import uuid

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._host.seeds import yaml_reader
from ansible_collections.cnvm.platform.plugins.module_utils._image import seed
from ansible_collections.cnvm.platform.plugins.module_utils._image.seed import Mark

READ = yaml_reader()


def normal(**words: t.Any) -> seed.Data:
    return seed.normalise(words, "seeds", READ)


def files(instance_id: str = "i-1", **words: t.Any) -> dict[str, str]:
    return seed.contents(normal(**words), instance_id)


def test_an_empty_seed_still_has_what_nocloud_demands() -> None:
    found = files()
    assert sorted(found) == ["meta-data", "user-data"]
    assert yaml.safe_load(found["meta-data"]) == {"instance-id": "i-1"}
    assert found["user-data"].startswith("#cloud-config\n")


def test_mappings_become_what_cloud_init_reads() -> None:
    data = {"packages": ["curl"], "write_files": [{"path": "/x", "content": "a\n\tb: ü😀\u2028\x7f"}]}
    network = {"version": 2, "ethernets": {"nic": {"dhcp4": True}}}
    found = files(
        user_data=data, vendor_data=data, network_config={"network": network}, meta_data={"local-hostname": "w"}
    )
    assert sorted(found) == ["meta-data", "network-config", "user-data", "vendor-data"]
    assert found["user-data"].split("\n")[0] == "#cloud-config"
    assert yaml.safe_load(found["user-data"]) == yaml.safe_load(found["vendor-data"]) == data
    assert yaml.safe_load(found["network-config"]) == network
    assert yaml.safe_load(found["meta-data"]) == {"local-hostname": "w", "instance-id": "i-1"}


def test_what_of_a_network_would_be_ignored_is_told() -> None:
    (told,) = normal(network_config={"network": {"version": 2, "ethernet": {}}}).warnings
    assert told.startswith("seeds: network_config: ethernet: ")


def test_text_is_written_as_it_is() -> None:
    text = "#!/bin/sh\necho 'ü'\n"
    assert files(user_data=text)["user-data"] == text


@pytest.mark.parametrize("reader", [None, READ])
@pytest.mark.parametrize("text", ["local-hostname: w\n", "local-hostname: w", '{"local-hostname": "w"}'])
def test_meta_data_as_text_get_an_instance_id(reader: t.Any, text: str) -> None:
    data = seed.normalise({"meta_data": text}, "x", reader)
    assert data.instance_id == ""
    assert yaml.safe_load(seed.contents(data, "i-1")["meta-data"]) == {"local-hostname": "w", "instance-id": "i-1"}


@pytest.mark.parametrize("reader", [None, READ])
@pytest.mark.parametrize(
    "meta", ["instance-id: mine\nlocal-hostname: w\n", {"instance-id": "mine", "local-hostname": "w"}]
)
def test_an_instance_id_that_the_user_gives(reader: t.Any, meta: t.Any) -> None:
    data = seed.normalise({"meta_data": meta}, "x", reader)
    assert data.instance_id == "mine"
    assert yaml.safe_load(seed.contents(data, "mine")["meta-data"]) == {"local-hostname": "w", "instance-id": "mine"}


def test_a_config_drive() -> None:
    found = files(
        type="configdrive",
        user_data={"packages": []},
        vendor_data="#cloud-config\n{}\n",
        meta_data={"local-hostname": "w", "public-keys": ["k1", "k2"], "x": 1},
        network_config={"links": [], "networks": [], "services": []},
    )
    place = "openstack/latest"
    assert sorted(found) == [
        f"{place}/{name}" for name in ("meta_data.json", "network_data.json", "user_data", "vendor_data.json")
    ]
    assert json.loads(found[f"{place}/meta_data.json"]) == {
        "uuid": "i-1",
        "hostname": "w",
        "name": "w",
        "public_keys": {"key-0": "k1", "key-1": "k2"},
        "x": 1,
    }
    assert json.loads(found[f"{place}/vendor_data.json"]) == {"cloud-init": "#cloud-config\n{}\n"}
    assert normal(type="configdrive", meta_data={"uuid": "mine"}).instance_id == "mine"


@pytest.mark.parametrize("reader", [None, READ])
@pytest.mark.parametrize(
    ("name", "meta"),
    [
        ("guest", None),
        ("guest", "x: 1\n"),
        ("guest", "---\nx: 1"),
        ("guest", {"x": 1}),
        ("guest", {"hostname": None, "local-hostname": ""}),
        ("guest", "hostname:\nx: 1\n"),
        ("own", "local-hostname: own\n"),
        ("own", "hostname: own\n"),
        ("own", "'local_hostname': \"own\"  # mine\nhostname: b\n"),
        ("own", '{"hostname": "own"}'),
        ("own", {"local-hostname": "own"}),
        ("own", {"local_hostname": "own"}),
        ("own", {"hostname": "own"}),
    ],
)
def test_the_name_stands_where_nocloud_reads_it(name: str, meta: t.Any, reader: t.Any) -> None:
    data = seed.normalise({"meta_data": meta}, "x", reader, "guest")
    assert yaml.safe_load(seed.contents(data, "i-1")["meta-data"])["local-hostname"] == name


@pytest.mark.parametrize(
    ("name", "meta"),
    [
        ("guest", None),
        ("guest", "x: 1\n"),
        ("own", "local_hostname: own\n"),
        ("own", {"local-hostname": "own"}),
        ("own", {"local-hostname": "b", "hostname": "own"}),
    ],
)
def test_the_name_stands_where_a_config_drive_has_it(name: str, meta: t.Any) -> None:
    data = seed.normalise({"type": "configdrive", "meta_data": meta}, "x", READ, "guest")
    found = json.loads(seed.contents(data, "i-1")["openstack/latest/meta_data.json"])
    assert (found["hostname"], found["name"]) == (name, name)


def test_nobody_is_named_where_there_is_no_name() -> None:
    assert yaml.safe_load(files(meta_data={"x": 1})["meta-data"]) == {"x": 1, "instance-id": "i-1"}


@pytest.mark.parametrize("keys", [None, "k1", ["k1", "k2"], {"a": "k1", "b": ["k2"]}])
def test_public_keys_in_all_forms_of_cloud_init(keys: t.Any) -> None:
    assert yaml.safe_load(files(meta_data={"public-keys": keys})["meta-data"])["public-keys"] == keys


def test_another_reader_of_user_data() -> None:
    text = "[amiconfig]\nplugins=cernvm\n"
    assert files(type="configdrive", user_data=text, check_user_data=False)["openstack/latest/user_data"] == text


@pytest.mark.parametrize(
    "words",
    [
        {"type": "floppy"},
        {"user_data": 7},
        {"user_data": ["a"]},
        {"user_data": "#cloud-config\na: [\n"},
        {"user_data": "text"},
        {"vendor_data": "text"},
        {"user_data": "#!/bin/sh\0"},
        {"meta_data": "- a\n"},
        {"meta_data": {"instance-id": 7}},
        {"meta_data": {"instance-id": "a b"}},
        {"meta_data": {"instance-id": "a" * 101}},
        {"meta_data": {"x": float("nan")}},
        {"meta_data": {"local-hostname": 7}},
        {"meta_data": "hostname: 7\n"},
        {"meta_data": {"local_hostname": ["w"]}, "type": "configdrive"},
        {"meta_data": {"public-keys": 7}},
        {"meta_data": {"public-keys": ["k1", 7]}},
        {"meta_data": {"public_keys": {"a": {"b": "k1"}}}, "type": "configdrive"},
        {"network_config": {"version": 9}},
        {"network_config": "nothing"},
        {"type": "configdrive", "network_config": {"version": 2}},
        {"type": "configdrive", "network_config": "- a\n"},
        {"user_data": "#cloud-config\n# " + "a" * seed.MOST_BYTES},
        {"user_data": {"final_message": "a" * seed.MOST_BYTES}},
        {"user_data": "#!/bin/sh\n\ud800"},
        {"sue_data": {}},
        {"check_user_data": "perhaps"},
    ],
)
def test_what_is_refused(words: dict[str, t.Any]) -> None:
    with pytest.raises(InputError):
        normal(**words)


JSON: st.SearchStrategy[t.Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=9), inner, max_size=4)),
    max_leaves=20,
)


@given(JSON)
def test_what_is_written_is_what_yaml_reads(value: t.Any) -> None:
    assert yaml.safe_load(seed.as_yaml(value)) == value


# -- The mark


def descriptor(data: seed.Data, decision: seed.Decision, sectors: int = 200) -> bytes:
    raw = bytearray(b" " * 2048)
    raw[:7] = b"\1CD001\1"
    for at, text in (
        (40, seed.LABELS[data.kind]),
        (883, seed.mark_of(decision.digest, decision.instance_id).decode()),
    ):
        raw[at : at + len(text)] = text.encode()
    assert len(raw) == 2048
    struct.pack_into("<I", raw, 80, sectors)
    return bytes(raw)


def test_a_mark_is_read_back() -> None:
    data = normal(user_data={"packages": ["curl"]})
    decision = seed.decide(data, "keep", "/x", None)
    found = seed.read_mark(descriptor(data, decision), 200 * 2048)
    assert found == Mark("nocloud", decision.digest, decision.instance_id, True)
    cut = seed.read_mark(descriptor(data, decision), 200 * 2048 - 1)
    assert cut is not None
    assert not cut.whole
    assert seed.decide(data, "keep", "/x", cut).write


@pytest.mark.parametrize("raw", [b"", bytes(2048), b"\1CD001\1" + b" " * 2041, b"\1CD001\1" + b" " * 100])
def test_other_files_have_no_mark(raw: bytes) -> None:
    assert seed.read_mark(raw, 10**6) is None


def mark_of(data: seed.Data, decision: seed.Decision) -> Mark:
    return Mark(data.kind, decision.digest, decision.instance_id)


A, B = {"user_data": {"packages": ["a"]}}, {"user_data": {"packages": ["b"]}}


@pytest.mark.parametrize("policy", seed.POLICIES)
def test_a_second_run_changes_nothing(policy: str) -> None:
    first = seed.decide(normal(**A), policy, "/x", None)
    assert (first.write, first.new_instance) == (True, True)
    assert uuid.UUID(first.instance_id)
    for again in seed.POLICIES:
        second = seed.decide(normal(**A), again, "/x", mark_of(normal(**A), first))
        assert (second.write, second.new_instance, second.instance_id) == (False, False, first.instance_id)


def test_two_guests_with_the_same_data_are_two() -> None:
    ids = {seed.decide(normal(**A), "keep", place, None).instance_id for place in ("/x", "/y")}
    assert len(ids) == 2


def test_changed_data_under_both_policies() -> None:
    first = seed.decide(normal(**A), "new_instance", "/x", None)
    mark = mark_of(normal(**A), first)
    kept = seed.decide(normal(**B), "keep", "/x", mark)
    assert (kept.write, kept.new_instance, kept.instance_id) == (True, False, first.instance_id)
    new = seed.decide(normal(**B), "new_instance", "/x", mark)
    assert (new.write, new.new_instance) == (True, True)
    assert new.instance_id != first.instance_id


def test_going_back_to_earlier_data_is_a_new_instance_too() -> None:
    seen: list[str] = []
    mark = None
    for words in (A, B, A, B):
        data = normal(**words)
        decision = seed.decide(data, "new_instance", "/x", mark)
        seen.append(decision.instance_id)
        mark = mark_of(data, decision)
    assert len(set(seen)) == 4


def test_the_users_instance_id_goes_over_the_policy() -> None:
    data = normal(meta_data={"instance-id": "mine"}, **A)
    first = seed.decide(data, "new_instance", "/x", None)
    assert first.instance_id == "mine"
    changed = seed.decide(normal(meta_data={"instance-id": "mine"}, **B), "new_instance", "/x", mark_of(data, first))
    assert (changed.write, changed.new_instance) == (True, False)
    other = seed.decide(normal(meta_data={"instance-id": "other"}, **A), "keep", "/x", mark_of(data, first))
    assert (other.write, other.new_instance, other.instance_id) == (True, True, "other")


def test_another_type_is_another_seed() -> None:
    first = seed.decide(normal(), "keep", "/x", None)
    assert seed.decide(normal(type="configdrive"), "keep", "/x", mark_of(normal(), first)).write


def test_the_order_of_keys_does_not_matter() -> None:
    one = normal(user_data={"packages": ["a"], "hostname": "b"})
    other = normal(user_data={"hostname": "b", "packages": ["a"]})
    assert seed.digest_of(one) == seed.digest_of(other)


@pytest.mark.parametrize(
    "words",
    [
        {"user_data": {"packages": ["b"]}},
        {**A, "vendor_data": {"packages": []}},
        {**A, "meta_data": {"local-hostname": "x"}},
        {**A, "network_config": {"version": 2}},
        {**A, "type": "configdrive"},
    ],
)
def test_every_part_counts(words: dict[str, t.Any]) -> None:
    assert seed.digest_of(normal(**words)) != seed.digest_of(normal(**A))
