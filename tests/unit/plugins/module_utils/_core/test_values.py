# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Strict decoding of what users and surveys write."""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core import values
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError

WORDS = ["", " ", "1_000", "1e3", "٣", "0x10", "1,5", "--1", "+1", "1 2", "nan", "inf", "9" * 5000]
NO_NUMBERS: list[object] = [True, False, None, [], {}, *WORDS]


@pytest.mark.parametrize(("value", "number"), [(512, 512), ("512", 512), (" 7 ", 7), ("-3", -3), ("007", 7)])
def test_integer(value: object, number: int) -> None:
    assert values.integer(value, "x", least=-10, most=1000) == number


@pytest.mark.parametrize("value", [*NO_NUMBERS, 1.0, "1.0", 1001, "1001", -11])
def test_integer_refuses(value: object) -> None:
    with pytest.raises(InputError, match=r"^memory_mib: .* from -10 to 1000\.$"):
        values.integer(value, "memory_mib", least=-10, most=1000)


@given(st.integers())
def test_integer_takes_its_own_digits(number: int) -> None:
    assert values.integer(str(number), "x", least=number, most=number) == number


@pytest.mark.parametrize(("value", "number"), [(2, 2.0), (1.5, 1.5), ("1.5", 1.5), ("2", 2.0)])
def test_decimal(value: object, number: float) -> None:
    assert values.decimal(value, "x", least=0.5, most=2) == number


@pytest.mark.parametrize("value", [*NO_NUMBERS, "1.", ".5", 0.4, "2.01", float("nan"), float("inf"), 10**400])
def test_decimal_refuses(value: object) -> None:
    with pytest.raises(InputError, match=r"^cpus: .* from 0\.5 to 2\.$"):
        values.decimal(value, "cpus", least=0.5, most=2)


LONGEST = "/" + "/".join(["é" * 127 + "x"] * 3 + ["x" * 254])


@pytest.mark.parametrize(
    ("value", "path"),
    [("/srv/a", "/srv/a"), ("//srv//a/", "/srv/a"), ("/", "/"), ("/a b/..c/é", "/a b/..c/é"), (LONGEST, LONGEST)],
)
def test_absolute_path(value: str, path: str) -> None:
    assert values.absolute_path(value, "path") == path


@pytest.mark.parametrize(
    "value",
    ["a", "~/a", "/a/../b", "/a/.", "/a\0", "/a\nb", "/a\x7f", "/a\ud800", "/" + "é" * 128, f"{LONGEST}/x"],
)
def test_absolute_path_refuses(value: str) -> None:
    with pytest.raises(
        InputError, match=r"^images\[0\]\.path: .* Allowed: an absolute path .* 255 between two"
    ) as caught:
        values.absolute_path(value, "images[0].path")
    # It can be written into any log.
    str(caught.value).encode()


def test_absolute_path_is_text() -> None:
    with pytest.raises(InputError, match=r"^path: 7 is not text\. Put it in quotes\."):
        values.absolute_path(7, "path")
    for nothing in (None, ""):
        with pytest.raises(InputError, match=r"^path is missing\. Give an absolute path"):
            values.absolute_path(nothing, "path")


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        *[(value, True) for value in (True, "yes", "On", " true ", 1, "1")],
        *[(value, False) for value in (False, "no", "OFF", 0, "f")],
    ],
)
def test_boolean(value: object, meant: bool) -> None:
    assert values.boolean(value, "x") is meant


@pytest.mark.parametrize("value", [None, "", "maybe", 2, "2", 1.0, [], "truee"])
def test_boolean_refuses(value: object) -> None:
    with pytest.raises(InputError, match=r"^keep: .* true or false\.$"):
        values.boolean(value, "keep")


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *[(0, 0), ("0", 0), ("10", 10), ("10B", 10), ("1K", 1024), ("1KiB", 1024), ("512M", 512 * 2**20)],
        *[("1.5GiB", 3 * 2**29), ("2 T", 2**41), ("1MB", 2**20)],
    ],
)
def test_size_bytes(value: object, number: int) -> None:
    assert values.size_bytes(value, "x") == number


@pytest.mark.parametrize("value", [*NO_NUMBERS, -1, "-1", 1.5, "1P", "M", "1 m", "1Mi B", 2**63, "9" * 300 + "T"])
def test_size_bytes_refuses(value: object) -> None:
    with pytest.raises(InputError, match=r"^size: .* with K, M, G or T"):
        values.size_bytes(value, "size")


def test_size_bytes_bounds() -> None:
    assert values.size_bytes("4K", "x", least=4096, most=4096) == 4096
    with pytest.raises(InputError):
        values.size_bytes(4095, "x", least=4096)
    with pytest.raises(InputError):
        values.size_bytes(4097, "x", most=4096)


def test_choice() -> None:
    assert values.choice("runc", "runtime", ("runc", "crun")) == "runc"


@pytest.mark.parametrize("value", ["kata", "", None, True, ["runc"], "RUNC"])
def test_choice_refuses(value: object) -> None:
    with pytest.raises(InputError, match=r"^runtime: .* Allowed: runc, crun\.$"):
        values.choice(value, "runtime", ("runc", "crun"))


@pytest.mark.parametrize(("value", "meant"), [(None, "on"), ("", "on"), ("off", "off"), (False, "off")])
def test_choice_of_nothing_is_the_default(value: object, meant: str) -> None:
    assert values.choice(value, "state", ("on", "off"), "on") == meant


@pytest.mark.parametrize("value", [False, 0, [], {}])
def test_what_yaml_made_of_a_word_is_no_default(value: object) -> None:
    with pytest.raises(InputError, match=r"^state: .* Allowed: running, stopped\.$"):
        values.choice(value, "state", ("running", "stopped"), "running")


@pytest.mark.parametrize(("value", "meant"), [(None, []), ("", []), ([""], []), ([], []), (["a", 1], ["a", 1])])
def test_listed(value: object, meant: list[t.Any]) -> None:
    assert values.listed(value, "x") == meant


@pytest.mark.parametrize("value", ["secret", {"password": "secret"}, 7, True])
@pytest.mark.parametrize("decode", [values.listed, lambda value, option: values.known_keys(value, option, ("a",))])
def test_what_has_another_shape_is_not_shown(decode: t.Callable[..., object], value: object) -> None:
    with pytest.raises(InputError, match=r"^disks(: unknown key 'password'\.| is not a (list|mapping)\.)") as caught:
        decode(value, "disks")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "meant"),
    [(None, []), ("", []), ([""], []), ("a, b,", ["a", "b"]), (["a", " b ", ""], ["a", "b"]), ([7], [7])],
)
def test_word_list(value: object, meant: list[t.Any]) -> None:
    assert values.word_list(value, "x") == meant


def test_plain_text() -> None:
    assert [values.plain_text(value, "x") for value in (None, "", " a ")] == ["", "", " a "]
    for value in (7, 1.1, False, ["a"]):
        with pytest.raises(InputError, match=r"^x: .* is not text\. Put it in quotes\. .* '\| string'\.$"):
            values.plain_text(value, "x")


def test_known_keys() -> None:
    item = {"b": 1}
    assert values.known_keys(item, "ports[0]", ("b", "a")) is item


@pytest.mark.parametrize("item", [{"host": 1, "hots": 2}, {1: 2}, {None: 0}, [], "host", None])
def test_known_keys_refuses(item: t.Any) -> None:
    with pytest.raises(InputError, match=r"^ports\[0\](:| is not a mapping\.) .* ?Allowed keys: guest, host\.$"):
        values.known_keys(item, "ports[0]", ("host", "guest"))


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("memroy_mib", "Did you mean memory_mib? "),
        ("memory", "Did you mean memory_mib? "),
        ("x", ""),
        (7, ""),
        ("", ""),
    ],
)
def test_known_keys_tells_the_nearest(key: object, nearest: str) -> None:
    with pytest.raises(InputError) as caught:
        values.known_keys({key: 1}, "guests", ("memory_mib", "max_memory_mib", "vcpus"))
    assert caught.value.hint == f"{nearest}Allowed keys: max_memory_mib, memory_mib, vcpus."


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *[(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (100 * 1024, "100 KiB")],
        *[(2**20, "1.0 MiB"), (5 * 2**30, "5.0 GiB"), (2**42, "4096 GiB")],
    ],
)
def test_human_bytes(number: float, text: str) -> None:
    assert values.human_bytes(number) == text
