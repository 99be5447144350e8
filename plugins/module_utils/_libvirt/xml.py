# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""libvirt's XML: built from nested data, written in one stable form, read without the features that do harm.

A node is a tuple: ``("tag", …)``. What follows the tag is, in any order and number: a dictionary of attributes, text or
a whole number (the element's text), further nodes or elements (children), lists of these, and None, which is left out.
So is an attribute whose value is None; true and false are written as ``yes`` and ``no``::

    ("ip", {"address": "192.0.2.1", "prefix": 24}, ("dhcp", ("range", {"start": "192.0.2.10", "end": "192.0.2.99"})))

A tag with a namespace is written ``{urn:…}tag``. Paths are ElementTree's: ``devices/disk[@device='cdrom']/source``.
"""

from __future__ import annotations

import re
import typing as t
from xml.etree import ElementTree
from xml.parsers import expat

from .._core.errors import InputError

Element = ElementTree.Element
# ("tag", part, part, …); as precise as a type that contains itself can be on Python 3.9.
Node = t.Union[tuple[t.Any, ...], Element]
Scalar = t.Union[str, int, bool]

GUEST_NAMESPACE = "urn:cnvm.platform:guest:1"
QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
DNSMASQ_NAMESPACE = "http://libvirt.org/schemas/network/dnsmasq/1.0"
_PREFIXES = {
    GUEST_NAMESPACE: "cnvm",
    QEMU_NAMESPACE: "qemu",
    DNSMASQ_NAMESPACE: "dnsmasq",
    # What others write into the metadata of a guest: elements do not remember how their namespace was called.
    "http://libosinfo.org/xmlns/libvirt/domain/1.0": "libosinfo",
    "http://openstack.org/xmlns/libvirt/nova/1.1": "nova",
    "http://ovirt.org/vm/1.0": "ovirt-vm",
    "http://ovirt.org/vm/tune/1.0": "ovirt-tune",
}

_TAG = re.compile(r"(\{[^{}\s]+\})?[A-Za-z_][A-Za-z0-9_.-]*\Z", re.ASCII)
# What XML 1.0 cannot hold, escaped or not.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# A domain with hundreds of devices has some 300 KB; the capabilities of a large host 1 MB.
MOST_BYTES = 16 * 2**20
MOST_DEPTH = 100


# -- Building


def build(node: Node) -> Element:
    """The element that ``node`` describes. InputError when a text has characters that XML cannot hold."""
    if isinstance(node, Element):
        return node
    element = Element(_tag(node[0]))
    _fill(element, node[1:])
    return element


def _fill(element: Element, parts: t.Iterable[t.Any]) -> None:
    for part in parts:
        if part is None:
            continue
        if isinstance(part, t.Mapping):
            for name, value in part.items():
                if value is not None:
                    element.set(_tag(name), scalar(value, f"{element.tag}/@{name}"))
        elif isinstance(part, (str, int)):
            element.text = (element.text or "") + scalar(part, element.tag)
        elif isinstance(part, (Element, tuple)):
            element.append(build(part))
        elif isinstance(part, t.Iterable):
            _fill(element, part)
        else:
            raise TypeError(f"{element.tag}: {part!r} is no part of an element")


def _tag(name: object) -> str:
    # Tags are words of the code. One that came from data is a mistake of ours, not of the user.
    if not isinstance(name, str) or not _TAG.match(name):
        raise ValueError(f"{name!r} is no name of an element")
    return name


def scalar(value: Scalar, where: str) -> str:
    """A value as libvirt writes it: ``yes`` and ``no``, decimal digits, or the text itself when XML can hold it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    found = _NOT_XML.search(value)
    if found:
        raise InputError(
            f"{where}: the text has the character {found.group()!r}, which XML cannot hold.",
            hint="Leave control characters out.",
        )
    return value


def document(node: Node) -> str:
    """``node`` as text: indented by two, attributes and children in the order in which they were given.

    The same content is always the same text. A namespace is declared where it is used first, as libvirt does in its
    metadata, not at the root.
    """
    lines: list[str] = []
    _write(build(node), lines, "", {})
    return "\n".join(lines) + "\n"


def _write(element: Element, lines: list[str], indent: str, known: t.Mapping[str, str]) -> None:
    prefixes = dict(known)
    tag = _prefixed(element.tag, prefixes)
    words = [f'{_prefixed(name, prefixes)}="{_escape(value)}"' for name, value in element.attrib.items()]
    words += [f'xmlns:{prefixes[uri]}="{_escape(uri)}"' for uri in prefixes if uri not in known]
    start = " ".join([f"{indent}<{tag}", *words])
    text = _escape(element.text or "")
    if not len(element):
        lines.append(f"{start}>{text}</{tag}>" if text else f"{start}/>")
        return
    # Beside elements libvirt has no text but the white space that is only there for the eye.
    lines.append(f"{start}>{_escape((element.text or '').strip())}")
    for child in element:
        _write(child, lines, f"{indent}  ", prefixes)
    lines.append(f"{indent}</{tag}>")


def _prefixed(name: str, prefixes: dict[str, str]) -> str:
    uri, brace, local = name.rpartition("}")
    if not brace:
        return name
    uri = uri[1:]
    if uri not in prefixes:
        prefixes[uri] = _PREFIXES.get(uri, f"n{len(prefixes)}")
    return f"{prefixes[uri]}:{local}"


def readable(tag: str) -> str:
    """A tag as libvirt's own documentation writes it: ``qemu:commandline``."""
    uri, _brace, local = tag.rpartition("}")
    prefix = _PREFIXES.get(uri[1:])
    return f"{prefix}:{local}" if prefix else tag


_ESCAPED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\n": "&#10;", "\r": "&#13;", "\t": "&#9;"}
_ESCAPE = str.maketrans(_ESCAPED)


def _escape(text: str) -> str:
    """For text and attributes alike: line feeds and tabs as numbers, or a reader would take them for spaces."""
    return text.translate(_ESCAPE)


# -- Reading


def parse(text: t.Union[str, bytes], what: str = "XML", root: str = "") -> Element:
    """The root element of ``text``; ``root``: the tag that it must have.

    InputError, in which ``what`` says whose text it was, when it is not well formed, or has a document type: entities
    could read files and fill the memory, and libvirt writes none. White space between elements is left out.
    """
    builder = ElementTree.TreeBuilder()
    reader = expat.ParserCreate(None, "}")
    depth = 0

    def qualified(name: str) -> str:
        return "{" + name if "}" in name else name

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MOST_DEPTH:
            raise InputError(f"{what}: elements are nested deeper than {MOST_DEPTH}.")
        builder.start(qualified(tag), {qualified(name): value for name, value in attributes.items()})

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(qualified(tag))

    def refuse(*_args: object) -> t.NoReturn:
        raise InputError(f"{what}: a document type is not allowed.", hint="Leave <!DOCTYPE …> out.")

    reader.StartElementHandler = start
    reader.EndElementHandler = end
    reader.CharacterDataHandler = builder.data
    reader.StartDoctypeDeclHandler = refuse
    reader.EntityDeclHandler = refuse
    reader.buffer_text = True
    try:
        data = text.encode("utf-8") if isinstance(text, str) else text
        if len(data) > MOST_BYTES:
            raise InputError(f"{what}: {len(data)} bytes are too many.", hint=f"At most {MOST_BYTES}.")
        reader.Parse(data if isinstance(text, bytes) else text, True)
    except (expat.ExpatError, UnicodeError, ValueError) as error:
        raise InputError(f"{what} is not well formed: {error}.") from error
    element = builder.close()
    if root and element.tag != root:
        raise InputError(f"{what} is a <{element.tag}>, not a <{root}>.")
    return _without_space(element)


def _without_space(element: Element) -> Element:
    for each in element.iter():
        each.tail = None
        if len(each) and not (each.text or "").strip():
            each.text = None
    return element


def text_of(element: t.Optional[Element], path: str = "", default: str = "") -> str:
    """The text of the element at ``path`` below ``element`` (itself for an empty path), without space around it."""
    found = _at(element, path)
    return default if found is None or found.text is None else found.text.strip()


def attribute(element: t.Optional[Element], path: str, name: str, default: str = "") -> str:
    """The attribute ``name`` of the element at ``path`` below ``element`` (itself for an empty path)."""
    found = _at(element, path)
    return default if found is None else found.get(name, default)


def number(value: str, default: int = 0) -> int:
    """A whole number as libvirt writes it; ``default`` for what is none."""
    return int(value) if re.match(r"-?[0-9]+\Z", value, re.ASCII) else default


def all_at(element: t.Optional[Element], path: str) -> list[Element]:
    """All elements at ``path``; none where ``element`` is None."""
    return [] if element is None else element.findall(path)


def words(element: Element) -> str:
    """An element as people read it: ``host name=web ip=192.0.2.9 (lease expiry=1)``."""
    own = [element.tag, *(f"{key}={value}" for key, value in element.attrib.items()), text_of(element)]
    below = ", ".join(map(words, element))
    return " ".join(word for word in [*own, f"({below})" if below else ""] if word)


def _at(element: t.Optional[Element], path: str) -> t.Optional[Element]:
    return element if element is None or not path else element.find(path)
