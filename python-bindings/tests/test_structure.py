"""How the modules of the package hang together: no import cycles, and no global that another module assigns."""

import ast
import pathlib

import pytest
from conftest import ROOT

PACKAGE = ROOT / "python-bindings/python/covey"


def module_name(file):
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files_of_modules():
    return {module_name(file): file for file in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyi")])}


def is_type_checking(node):
    test = node.test
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING")


def runs(tree):
    """Nodes of a module that run: all but what stands under `if TYPE_CHECKING`."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and is_type_checking(node):
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


class Module:
    """One module, read: what it imports of the package, and by which names it knows other modules."""

    def __init__(self, name, source, is_package, known):
        self.name, self.known = name, known
        self.package = name if is_package else name.rpartition(".")[0]
        self.tree = ast.parse(source)
        self.imports = set()
        self.aliases = {}
        """Names that stand for other modules."""
        for node in runs(self.tree):
            if isinstance(node, ast.ImportFrom):
                self._import_from(node)
            elif isinstance(node, ast.Import):
                self._import(node)

    def _import_from(self, node):
        base = node.module or ""
        if node.level:
            package = ".".join(self.package.split(".")[: len(self.package.split(".")) - node.level + 1])
            base = f"{package}.{base}" if base else package
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            if inner in self.known:
                self.imports.add(inner)
                self.aliases[alias.asname or alias.name] = inner
            elif base in self.known:
                self.imports.add(base)

    def _import(self, node):
        for alias in node.names:
            if alias.name in self.known:
                self.imports.add(alias.name)
                self.aliases[alias.asname or alias.name] = alias.name

    def assigned_elsewhere(self):
        """Assignments to an attribute of another module: `_session.current = …`."""
        for node in sorted(runs(self.tree), key=lambda node: getattr(node, "lineno", 0)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, (ast.AugAssign, ast.AnnAssign)) else []
            for target in targets:
                for part in ast.walk(target):
                    if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id in self.aliases:
                        yield f"{self.name}:{part.lineno}: {part.value.id}.{part.attr}"


def read_package():
    files = files_of_modules()
    return [Module(name, file.read_text(), file.name == "__init__.py", set(files)) for name, file in files.items()]


@pytest.fixture(scope="module")
def modules():
    return read_package()


def read_text(name, source, *known):
    return Module(name, source, False, {name, *known})


def test_no_modules_import_each_other(modules):
    """Also by imports inside of functions, which hide a cycle and do not end it; imports for type checkers do not run."""
    assert find_cycles({module.name: module.imports for module in modules}) == []


def test_no_module_assigns_a_global_of_another(modules):
    """What one module has to tell another is told to an object of that one, by a method (`_current.here`)."""
    assert [place for module in modules for place in module.assigned_elsewhere()] == []


def test_the_native_module_and_the_process_are_looked_at(modules):
    imports = {module.name: module.imports for module in modules}
    assert "covey._bridge" in imports["covey._host.link"] and "covey._host.scheduler" in imports["covey._host.process"]
    # What runs in drivers does not load what runs actors.
    assert not any(name.startswith("covey._host") for module in modules if not module.name.startswith("covey._host") for name in module.imports)


def test_a_cycle_is_found_wherever_it_is_imported():
    one = read_text("covey._one", "def late():\n    from . import _two\n", "covey._two")
    two = read_text("covey._two", "from typing import TYPE_CHECKING\nfrom ._three import name\nif TYPE_CHECKING:\n    import covey._one\n", "covey._one", "covey._three")
    three = read_text("covey._three", "import covey._one as first\nname = 1\n", "covey._one")
    edges = {module.name: module.imports for module in (one, two, three)}
    assert edges == {"covey._one": {"covey._two"}, "covey._two": {"covey._three"}, "covey._three": {"covey._one"}}
    assert find_cycles(edges) == [["covey._one", "covey._three", "covey._two"]]
    assert find_cycles({**edges, "covey._three": set()}) == []


def test_an_assignment_to_a_global_of_another_module_is_found():
    source = "from . import _two\nimport covey._two as it\n_two.host = 1\nit.count += 1\nown = _two.host\nown.name = 2\n"
    assert list(read_text("covey._one", source, "covey._two").assigned_elsewhere()) == ["covey._one:3: _two.host", "covey._one:4: it.count"]


def find_cycles(edges):
    """Groups of modules that reach each other (Tarjan's strongly connected components of more than one module, or of one that imports itself)."""
    index, low, stack, found = {}, {}, [], []

    def visit(name):
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1 or name in edges[name]:
                found.append(sorted(group))

    for name in edges:
        if name not in index:
            visit(name)
    return found
