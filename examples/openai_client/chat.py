"""The official `openai` package talks to a cluster: its models are behind `/v1`."""

from openai import OpenAI
from openai.types.shared_params import ResponseFormatJSONSchema

import covey


def main(session: covey.Session) -> None:
    # Other programs have the address and the key from `covey token --address` and `covey token --admin`, or a key of their
    # own from `covey key add NAME --models`.
    client = OpenAI(base_url=f"http://{session.address}/v1", api_key=session.token)
    # Chat, token by token.
    question = "amber is 42, river is 7, stone is 19\nWhat is river?"
    answer = ""
    for chunk in client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": question}], stream=True):
        answer += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    print(f"{question!r} -> {answer!r}")
    assert answer == "7"
    print("models:", ", ".join(model.id for model in client.models.list()))

    # An answer of a given form: the engine allows no other tokens.
    schema: dict[str, object] = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    form: ResponseFormatJSONSchema = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    person = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Name: Ada. Age: 36. Give JSON."}],
        response_format=form,
    )
    print(person.choices[0].message.content)
    assert person.choices[0].message.content == '{"name": "Ada", "age": 36}'

    # The same by the Responses API.
    response = client.responses.create(model="tiny", input="Repeat: sun moon star")
    print(response.output_text)
    assert response.output_text == "sun moon star"


if __name__ == "__main__":
    with covey.init() as session:
        main(session)
