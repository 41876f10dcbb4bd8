"""The stub of the native module (`_bridge.pyi`) is compared with the module that was built: names and parameters."""

import ast
import inspect

import pytest
from conftest import ROOT

from covey import _bridge

STUB = ROOT / "python-bindings/python/covey/_bridge.pyi"
NO_DEFAULT = "no default"


def stub_parameters(function):
    """Parameters of a function of the stub: name, and its default as text. A trailing underscore stands for a word that Python keeps."""
    args = function.args
    assert not (args.vararg or args.kwarg or args.kwonlyargs or args.posonlyargs), function.name
    defaults = [NO_DEFAULT] * (len(args.args) - len(args.defaults)) + [ast.unparse(default) for default in args.defaults]
    return [(arg.arg.rstrip("_"), default) for arg, default in zip(args.args, defaults, strict=True) if arg.arg not in ("self", "cls")]


def built_parameters(signature):
    """The same of `__text_signature__`, which may hold names that Python keeps (`pass`)."""
    found = [part.strip() for part in signature.strip("()").split(",") if part.strip() and part.strip() != "$self"]
    return [(name, default or NO_DEFAULT) for name, _, default in (part.partition("=") for part in found)]


def is_property(function):
    return any(isinstance(mark, ast.Name) and mark.id == "property" for mark in function.decorator_list)


def is_type_check_only(cls):
    return any(isinstance(mark, ast.Name) and mark.id == "type_check_only" for mark in cls.decorator_list)


class StubModule:
    """What the stub declares."""

    def __init__(self, text):
        body = ast.parse(text).body
        self.functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
        self.constants = {node.target.id for node in body if isinstance(node, ast.AnnAssign)}
        classes = [node for node in body if isinstance(node, ast.ClassDef)]
        self.classes = {node.name: node for node in classes if not is_type_check_only(node)}
        self.unnamed = {node.name: node for node in classes if is_type_check_only(node)}


@pytest.fixture(scope="module")
def stub():
    return StubModule(STUB.read_text())


def check_class(declared, built):
    methods = {node.name: node for node in declared.body if isinstance(node, ast.FunctionDef)}
    public = {name for name in vars(built) if not name.startswith("_")}
    assert {name for name in methods if not name.startswith("_")} == public, declared.name
    for name, method in methods.items():
        where = f"{declared.name}.{name}"
        if name == "__new__":
            assert stub_parameters(method) == built_parameters(built.__text_signature__), where
        elif is_property(method):
            assert inspect.isgetsetdescriptor(vars(built)[name]), where
        else:
            assert stub_parameters(method) == built_parameters(vars(built)[name].__text_signature__), where
    # A class that Python cannot make has no constructor in the stub either.
    assert ("__new__" in methods) == (built.__text_signature__ is not None), declared.name


def test_the_stub_has_the_names_of_the_module(stub):
    built = {name for name in vars(_bridge) if not name.startswith("__") or name == "__version__"}
    assert stub.constants | set(stub.functions) | set(stub.classes) == built - {"__all__"}
    assert all(isinstance(getattr(_bridge, name), (int, str)) for name in stub.constants)


def test_functions_take_what_the_stub_says(stub):
    for name, function in stub.functions.items():
        assert stub_parameters(function) == built_parameters(getattr(_bridge, name).__text_signature__), name


def test_classes_are_as_the_stub_says(stub):
    for name, declared in stub.classes.items():
        if name != "BridgeError":
            check_class(declared, getattr(_bridge, name))
    assert issubclass(_bridge.BridgeError, Exception)


def test_what_the_module_does_not_name_is_as_the_stub_says(stub, cluster):
    import covey

    session = covey.current()
    printed = session.client.printed(session.id)
    check_class(stub.unnamed.pop("Printed"), type(printed))
    printed.close()
    assert not stub.unnamed


def test_a_stub_that_is_wrong_is_found(stub):
    text = STUB.read_text()
    for right, wrong in (("def upto(self, bytes: int)", "def upto(self, count: int)"), ("def drain(", "def drains("), ("timeout: float | None = None", "timeout: float | None = 1")):
        assert right in text
        changed = StubModule(text.replace(right, wrong))
        with pytest.raises(AssertionError):
            for name, declared in changed.classes.items():
                if name != "BridgeError":
                    check_class(declared, getattr(_bridge, name))
