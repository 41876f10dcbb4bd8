"""Schemas of questions: what fits them, and what is no schema."""

import pydantic
import pytest

from covey._context import Context
from covey._fits import check_schema, misfit


@pytest.mark.parametrize("schema, right, wrong", [
    ({"multipleOf": 0.5}, [1, 1.5, -2, 0], [1.3, 0.25]),
    ({"multipleOf": 0.1}, [0.3, 0.7, 12.1], [0.35]),
    ({"type": "integer", "multipleOf": 3}, [9], [10]),
    ({"type": ["string", "null"]}, ["x", None], [1]),
])  # fmt: skip
def test_what_fits(schema, right, wrong):
    check_schema(schema)
    assert [misfit(value, schema) for value in right] == [None] * len(right)
    assert None not in [misfit(value, schema) for value in wrong]


@pytest.mark.parametrize("schema, told", [
    ("int", "the schema is a JSON schema"),
    ([], "the schema is a JSON schema"),
    ({"type": "nonsense"}, "`type` of the schema is one of object, .* not 'nonsense'"),
    ({"type": int}, "`type` of the schema"),
    ({"properties": {"n": {"type": "int"}}}, "`type` of the schema.n is one of"),
    ({"properties": {"n": "integer"}}, "the schema.n is a JSON schema"),
    ({"properties": ["n"]}, "`properties` of the schema is a dict"),
    ({"items": {"type": "str"}}, "`type` of `items` of the schema"),
    ({"anyOf": [{}, {"type": "none"}]}, r"`type` of the schema.anyOf\[1\]"),
    ({"minimum": "1"}, "`minimum` of the schema is a number"),
    ({"multipleOf": 0}, "`multipleOf` of the schema is a number above 0"),
    ({"pattern": "("}, "`pattern` of the schema is a regular expression"),
    ({"required": "name"}, "`required` of the schema is a list"),
])  # fmt: skip
def test_what_is_no_schema_is_refused_by_its_place(schema, told):
    with pytest.raises((TypeError, ValueError), match=told):
        check_schema(schema)


class Order(pydantic.BaseModel):
    class Line(pydantic.BaseModel):
        what: str
        pieces: int = pydantic.Field(ge=1, multiple_of=2)

    lines: list[Line]
    note: str | None = None
    kind: dict[str, float | bool]


def test_schemas_of_models_are_schemas():
    schema = Order.model_json_schema()
    check_schema(schema)
    order = {"lines": [{"what": "pens", "pieces": 4}], "kind": {"a": 1.5}}
    assert misfit(order, schema) is None
    order["lines"][0]["pieces"] = 3
    assert "multiple of 2" in misfit(order, schema)


@pytest.mark.parametrize("options", ["red", [1, 2], ["red", None]])
def test_options_are_texts(options):
    with pytest.raises(TypeError, match="options is a list of texts"):
        Context.ask(None, "which?", options=options)
