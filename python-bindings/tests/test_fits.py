"""Schemas of questions: what fits them, and what is no schema."""

import jsonschema
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


SCHEMAS = [
    {"enum": [1, 0]}, {"const": 1}, {"const": [True, {"a": 1}]}, {"enum": ["a", None, 1.0]},
    {"type": "array", "prefixItems": [{"type": "integer"}], "items": False}, {"prefixItems": [{"type": "string"}, True]},
    {"oneOf": [{"type": "integer"}, {"type": "number"}]}, {"not": {"type": "string"}}, {"uniqueItems": True},
    {"patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
    {"properties": {"xa": {"type": "string"}}, "patternProperties": {"a$": {"minLength": 2}}},
    {"if": {"type": "integer"}, "then": {"minimum": 10}, "else": {"type": "string"}}, {"if": {"type": "integer"}, "then": {"minimum": 10}},
    {"minProperties": 1, "maxProperties": 1}, {"contains": {"const": 1}}, {"contains": {"type": "integer"}, "minContains": 0, "maxContains": 1},
    {"dependentRequired": {"a": ["b"]}}, {"propertyNames": {"maxLength": 1}}, {"anyOf": [{"minimum": 3}, {"type": "string"}]},
    {"allOf": [{"type": "integer"}, {"not": {"const": 1}}]}, {"$defs": {"n": {"type": "integer"}}, "items": {"$ref": "#/$defs/n"}},
    {"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n", "minimum": 2},
    {"type": "integer"}, {"required": ["a"], "additionalProperties": False, "properties": {"a": True}},
]  # fmt: skip
VALUES = [
    None, True, False, 0, 1, 1.0, 3, 10, 12.5, "", "a", "xa", "aa", [], [1], [1, 1], [True, 1], [1, 2, "a"], ["a"], ["a", "a"], [[1], [1.0]],
    {}, {"a": 1}, {"a": 1, "b": 2}, {"xa": 1}, {"xa": "s"}, {"b": "x"}, [True, {"a": 1}], [True, {"a": True}], [{"a": 1}, {"a": True}],
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_what_fits_is_what_the_standards_own_validator_says(schema):
    check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert [misfit(value, schema) is None for value in VALUES] == [validator.is_valid(value) for value in VALUES]


def test_words_that_are_not_looked_at_are_refused():
    with pytest.raises(ValueError, match="`unevaluatedProperties` of the schema.a is not looked at"):
        check_schema({"properties": {"a": {"unevaluatedProperties": False}}})


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
