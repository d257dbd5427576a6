"""Every public name has a docstring, and no text that a user reads has a phrase that must be read twice.

The texts are docstrings, string literals, comments of the configuration files, README.md and docs/.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fibec_ray

PACKAGE = Path(fibec_ray.__file__).parent
ROOT = PACKAGE.parent
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in [
        ROOT / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "configs").rglob("*.yaml")),
    ]
}

RIDDLES = (
    r"of which", r"is said", r"one's own", r"somebody's own", r"comes? to (?:what|alone|the same)", r"what is no",
    r"but for", r"of theirs", r"who has", r"for it is", r"shall",
    r"stands? in the way", r"nobody", r"lies (?:beside|where|on)", r"is told",
    r"that which", r"what it is", r"means? nothing", r"says nothing", r"asked for it", r"are not counted",
    r"is no run directory", r"(?<!`)whose \w+ of", r"(?-i:([a-z]{2,}) \1)",
)  # fmt: skip
"""Phrases that read like a riddle. Write the subject first, then an active verb."""
RIDDLE = re.compile(rf"\b(?:{'|'.join(RIDDLES)})\b", re.IGNORECASE)

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def folder_of(module: str) -> str:
    """cli/main.py -> cli; tensors.py -> tensors.py."""
    return module.split("/")[0]


FOLDERS = sorted({folder_of(module) for module in MODULES})


# --- docstrings


def public(node: Documented, name: str = "") -> Iterator[tuple[str, Documented, str]]:
    """(full name, node, class it is in) of a module or class, and of everything public in it."""
    yield name, node, ""
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            full = f"{name}.{child.name}" if name else child.name
            if isinstance(child, ast.ClassDef):
                yield from public(child, full)
            else:
                yield full, child, node.name if isinstance(node, ast.ClassDef) else ""


CLASSES = {node.name: node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def bases(name: str) -> Iterator[str]:
    """Names of the classes of ours that a class derives from, near ones first."""
    for base in CLASSES[name].bases if name in CLASSES else ():
        word = base.value if isinstance(base, ast.Subscript) else base
        below = word.attr if isinstance(word, ast.Attribute) else getattr(word, "id", "")
        if below in CLASSES:
            yield below
            yield from bases(below)


def members(name: str) -> set[str]:
    """Public methods and attributes of a class and of its bases."""
    found = {node.name for node in CLASSES[name].body if isinstance(node, ast.FunctionDef)}
    found |= {node.attr for node in ast.walk(CLASSES[name]) if isinstance(node, ast.Attribute) and _is_own(node)}
    fields = (node.target for node in CLASSES[name].body if isinstance(node, ast.AnnAssign))
    found |= {field.id for field in fields if isinstance(field, ast.Name)}
    found |= {word for base in bases(name) for word in members(base)}
    return {word for word in found if not word.startswith("_")}


def _is_own(node: ast.Attribute) -> bool:
    """True for `self.name = ...`."""
    return isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self"


PROTOCOLS = {
    name: {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
    for name, node in CLASSES.items()
    if any(ast.unparse(base) == "Protocol" for base in node.bases)
}


def contracts(name: str) -> Iterator[str]:
    """Classes of ours whose methods a class has: those it derives from, and protocols that it implements in full."""
    for one in (name, *bases(name)) if name in CLASSES else ():
        if one != name:
            yield one
        for protocol, needed in PROTOCOLS.items():
            if needed and needed <= members(one):
                yield protocol
                yield from bases(protocol)


LIBRARY_METHODS = {"forward", "backward", "setup_context", "write", "writelines", "flush", "add_argument", "error"}
"""Methods that torch, argparse and files call, and describe in their own documentation."""


def inherits_docstring(method: Documented, owner: str) -> bool:
    """True for a method that a base class, a protocol or a library describes."""
    name = getattr(method, "name", "")
    described = (
        isinstance(other, ast.FunctionDef) and other.name == name and ast.get_docstring(other)
        for base in contracts(owner)
        for other in CLASSES[base].body
    )
    return bool(owner) and (name in LIBRARY_METHODS or any(described))


def undocumented(tree: ast.Module) -> list[str]:
    return [
        name or "the module"
        for name, node, owner in public(tree)
        if ast.get_docstring(node) is None and not _is_accessor(node) and not inherits_docstring(node, owner)
    ]


def _is_accessor(node: Documented) -> bool:
    """Setters and overloads share the docstring of the first definition."""
    decorators = getattr(node, "decorator_list", [])
    return any(ast.unparse(one).endswith((".setter", "overload")) for one in decorators)


def test_undocumented_names_are_found() -> None:
    source = '''"""A module."""
class Base:
    """A class."""
    def hook(self): """Documented."""
    def other(self): ...
class Derived(Base):
    """A class."""
    def hook(self): ...
    def _private(self): ...
def function(): ...
'''
    assert undocumented(ast.parse(source)) == ["Base.other", "Derived.hook", "function"]  # Base is no class of ours


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_public_name_has_a_docstring(folder: str) -> None:
    found = [
        f"{module}: {name}" for module in MODULES if folder_of(module) == folder for name in undocumented(TREES[module])
    ]
    assert found == []


def first_paragraph(docstring: str) -> str:
    return docstring.strip().split("\n\n")[0]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_first_sentence_of_a_docstring_ends(folder: str) -> None:
    """Tools show the first paragraph by itself: it ends with a mark, or leads to an example."""
    found = []
    for module in (module for module in MODULES if folder_of(module) == folder):
        for name, node, _ in public(TREES[module]):
            docstring = ast.get_docstring(node)
            if docstring is not None and not first_paragraph(docstring).endswith((".", ":", "?", "!", "...")):
                found.append(f"{module}: {name}: {first_paragraph(docstring)}")
    assert found == []


# --- phrases


def riddles(text: str) -> list[str]:
    """The phrases found, with some words around them."""
    line = " ".join(text.split())
    return [line[max(0, found.start() - 40) : found.end() + 40] for found in RIDDLE.finditer(line)]


def test_riddles_are_found() -> None:
    assert riddles("It holds tables,\none of\nwhich is empty") == ["It holds tables, one of which is empty"]
    assert riddles("the sum of of all") == ["the sum of of all"]
    assert riddles("shallow; who hashes; what items; nobodyhome") == []


def prose(tree: ast.Module) -> Iterator[str]:
    """String literals with a space in them, docstrings included; the constant parts of f-strings joined by '{}'."""
    inside = set[int]()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(value) for value in node.values}
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_and_messages_have_no_riddles(folder: str) -> None:
    modules = [module for module in MODULES if folder_of(module) == folder]
    found = [
        f"{module}: ...{words}..." for module in modules for text in prose(TREES[module]) for words in riddles(text)
    ]
    assert found == []


@pytest.mark.parametrize("page", PAGES)
def test_pages_and_configurations_have_no_riddles(page: str) -> None:
    """Code is left out: its strings are examples."""
    text = PAGES[page].read_text(encoding="utf-8")
    assert riddles(re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)) == []
