# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes docs/reference from the plugins' own documentation; with --check, says which pages are not up to date."""

from __future__ import annotations

import ast
import re
import sys
import typing as t
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs/reference"
HEADER = """<!--
Copyright (c) 2026, the cnvm.platform authors
GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
SPDX-License-Identifier: GPL-3.0-or-later
Made by './dev docs' from the modules; not written by hand.
-->
"""
# Fragments of Ansible itself that a page leads to instead of repeating them.
_ANSIBLE = {
    "constructed": "[constructed](https://docs.ansible.com/ansible/latest/collections/ansible/builtin/constructed_inventory.html)"
    " (`strict`, `compose`, `groups`, `keyed_groups`, …)",
    "inventory_cache": "[those of the inventory's cache](https://docs.ansible.com/ansible/latest/plugins/cache.html)"
    " (`cache`, `cache_plugin`, `cache_timeout`, `cache_connection`, `cache_prefix`)",
}
# What the markup of module documentation becomes.
_CODE = re.compile(r"\b(?:C|O|V|RV|E)\(([^()]*(?:\([^()]*\)[^()]*)*)\)")
_MARKUP = (
    (re.compile(r"\bM\(cnvm\.platform\.([a-z_]+)\)"), r"[\1](\1.md)"),
    (re.compile(r"\bP\(cnvm\.platform\.([a-z_]+)#role\)"), r"[role \1](../../roles/\1/README.md)"),
    (re.compile(r"\bM\(([^)]*)\)"), r"`\1`"),
    (re.compile(r"\bP\(([^)#]*)#\w+\)"), r"`\1`"),
    (re.compile(r"\bB\(([^)]*)\)"), r"**\1**"),
    (re.compile(r"\bI\(([^)]*)\)"), r"*\1*"),
    (re.compile(r"\bL\(([^,)]*), *([^)]*)\)"), r"[\1](\2)"),
    (re.compile(r"\bU\(([^)]*)\)"), r"<\1>"),
)


def text(value: object) -> str:
    """One paragraph for a string or a list of them, in Markdown."""
    parts = value if isinstance(value, list) else [value]
    made = " ".join(str(part).strip() for part in parts)
    made = _CODE.sub(lambda found: f"`{found.group(1)}`", made)
    for pattern, replacement in _MARKUP:
        made = pattern.sub(replacement, made)
    return made.replace("\n", " ")


def cell(value: object) -> str:
    """The same for a table."""
    return text(value).replace("|", "\\|")


def options(found: t.Mapping[str, t.Any], prefix: str = "") -> t.Iterator[str]:
    """Rows of the table of options, those inside of others after them."""
    for name, option in found.items():
        kind = option.get("type", "str") + (f" of {option['elements']}" if option.get("elements") else "")
        facts = [kind]
        if option.get("required"):
            facts.append("**required**")
        if option.get("choices"):
            facts.append("one of " + ", ".join(f"`{one}`" for one in option["choices"]))
        if "default" in option:
            default = option["default"]
            facts.append(f"default `{str(default).lower() if isinstance(default, bool) else default}`")
        yield f"| `{prefix}{name}` | {cell('; '.join(facts))} | {cell(option.get('description', ''))} |"
        yield from options(option.get("suboptions") or {}, f"{prefix}{name}.")


def values(found: t.Mapping[str, t.Any], prefix: str = "") -> t.Iterator[str]:
    """Rows of the table of return values."""
    for name, value in found.items():
        kind = value.get("type", "") + (f" of {value['elements']}" if value.get("elements") else "")
        when = value.get("returned", "")
        yield f"| `{prefix}{name}` | {kind} | {cell(value.get('description', ''))} | {cell(when)} |"
        yield from values(value.get("contains") or {}, f"{prefix}{name}.")


def strings(path: Path) -> dict[str, str]:
    """The documentation strings of a module, or of the class of a fragment."""
    found = {}
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for node in [*body, *(one for part in body if isinstance(part, ast.ClassDef) for one in part.body)]:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.targets[0], ast.Name)
        ):
            found[node.targets[0].id] = str(node.value.value)
    return found


def page(path: Path) -> tuple[str, str]:
    """(Markdown, one line) of a module, or of an inventory plugin."""
    parts = strings(path)
    about = yaml.safe_load(parts["DOCUMENTATION"])
    theirs = []
    for fragment in about.get("extends_documentation_fragment", []):
        if fragment in _ANSIBLE:
            theirs.append(_ANSIBLE[fragment])
            continue
        file = path.parent.parent / "doc_fragments" / f"{fragment.rpartition('.')[2]}.py"
        shared = yaml.safe_load(strings(file)["DOCUMENTATION"])
        about["attributes"] = {**shared.get("attributes", {}), **about.get("attributes", {})}
        about["options"] = {**about.get("options", {}), **shared["options"]}
    lines = [f"# {path.stem}", "", f"{text(about['short_description'])}.", ""]
    for paragraph in about["description"] if isinstance(about["description"], list) else [about["description"]]:
        lines += [text(paragraph), ""]
    if about.get("requirements"):
        lines += ["Needs:", "", *(f"- {text(one)}" for one in about["requirements"]), ""]
    if about.get("options"):
        lines += ["## Options", "", "| option | | meaning |", "|---|---|---|", *options(about["options"]), ""]
    if theirs:
        lines += [f"And the options of {' and '.join(theirs)}.", ""]
    if about.get("notes"):
        lines += ["## Notes", "", *(f"- {text(one)}" for one in about["notes"]), ""]
    if about.get("attributes"):
        lines += ["## Attributes", "", "| attribute | support | |", "|---|---|---|"]
        lines += [f"| {name} | {one.get('support', '')} | {cell(one.get('details') or one.get('description', ''))} |"
                  for name, one in about["attributes"].items()]  # fmt: skip
        lines.append("")
    lines += ["## Examples", "", "```yaml", parts["EXAMPLES"].strip(), "```", ""]
    returned = yaml.safe_load(parts.get("RETURN", "")) or {}
    if returned:
        lines += ["## Returns", "", "| value | | meaning | returned |", "|---|---|---|---|", *values(returned), ""]
    return HEADER + "\n".join(lines), text(about["short_description"])


def pages() -> dict[Path, str]:
    """All pages with what they must be."""
    made = {}
    index = ["# Modules", "", "| module | what for |", "|---|---|"]
    for path in sorted((ROOT / "plugins/modules").glob("*.py")):
        made[PAGES / f"{path.stem}.md"], line = page(path)
        index.append(f"| [{path.stem}]({path.stem}.md) | {line} |")
    index += ["", "# Inventory plugins", "", "| plugin | what for |", "|---|---|"]
    for path in sorted((ROOT / "plugins/inventory").glob("*.py")):
        made[PAGES / f"{path.stem}.md"], line = page(path)
        index.append(f"| [{path.stem}]({path.stem}.md) | {line} |")
    index += ["", "`ansible-doc cnvm.platform.container` says the same. Roles have a README each."]
    made[PAGES / "README.md"] = HEADER + "\n".join(index) + "\n"
    return made


def main() -> int:
    wanted = pages()
    stale = [path for path in PAGES.glob("*.md") if path not in wanted]
    differing = [
        path for path, content in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != content
    ]
    if "--check" in sys.argv:
        for path in [*stale, *differing]:
            print(f"{path.relative_to(ROOT)} is not up to date. Run ./dev docs.")
        return int(bool(stale or differing))
    PAGES.mkdir(parents=True, exist_ok=True)
    for path in stale:
        path.unlink()
    for path in differing:
        path.write_text(wanted[path], encoding="utf-8")
        print(f"Written: {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
