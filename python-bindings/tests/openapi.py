"""A2A 1.0 over HTTP+JSON as an OpenAPI document, for schemathesis."""

TEXT = {"type": "string"}
ID = {"type": "string", "minLength": 1, "maxLength": 40, "pattern": "^[A-Za-z0-9-]+$"}
TEXT_ID = {"type": "string", "minLength": 1}
# ProtoJSON takes null for a default everywhere.
ANY = {"type": ["object", "null"]}
MAY = {"type": ["string", "null"]}


def one_of(name, schema):
    about = {"filename": MAY, "mediaType": MAY, "metadata": ANY}
    return {"type": "object", "properties": {name: schema, **about}, "required": [name]}


PART = {
    "oneOf": [
        one_of("text", TEXT),
        one_of("raw", {"type": "string", "pattern": "^[A-Za-z0-9+/_=-]*$"}),
        one_of("url", {"type": "string", "minLength": 1}),
        one_of("data", {}),
    ]
}
MESSAGE = {
    "type": "object",
    "properties": {
        "messageId": ID,
        "role": {"enum": ["ROLE_USER"]},
        "parts": {"type": "array", "items": PART, "minItems": 1, "maxItems": 4},
        "contextId": MAY,
        "metadata": ANY,
        "extensions": {"type": ["array", "null"], "items": TEXT},
    },
    "required": ["messageId", "role", "parts"],
}
HOOK = {
    "type": "object",
    "properties": {"id": ID, "url": TEXT, "token": ID, "authentication": ANY},
    "required": ["url"],
}
SEND = {
    "type": "object",
    "properties": {
        "message": MESSAGE,
        "configuration": {
            "type": ["object", "null"],
            "properties": {
                "historyLength": {"type": ["integer", "null"], "minimum": 0},
                "returnImmediately": {"type": ["boolean", "null"]},
                "acceptedOutputModes": {"type": ["array", "null"], "items": TEXT},
            },
            },
        "metadata": ANY,
    },
    "required": ["message"],
}
STATE = {"enum": [f"TASK_STATE_{s}" for s in ("SUBMITTED", "WORKING", "COMPLETED", "FAILED", "CANCELED", "INPUT_REQUIRED", "REJECTED", "AUTH_REQUIRED")]}
TASK = {
    "type": "object",
    "properties": {
        "id": TEXT,
        "contextId": TEXT,
        "status": {"type": "object", "properties": {"state": STATE, "timestamp": TEXT}, "required": ["state"]},
        "artifacts": {"type": "array", "items": {"type": "object", "required": ["artifactId", "parts"]}},
        "history": {"type": "array", "items": {"type": "object", "required": ["messageId", "role"]}},
    },
    "required": ["id", "contextId", "status"],
}
ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {"code": {"type": "integer"}, "status": TEXT, "message": TEXT, "details": {"type": "array"}},
            "required": ["code", "status", "message"],
        }
    },
    "required": ["error"],
}


def answers(schema, status="200"):
    json = lambda schema: {"application/json": {"schema": schema}, "application/a2a+json": {"schema": schema}}  # noqa: E731
    return {status: {"description": "done", "content": json(schema)}, "4XX": {"description": "refused", "content": json(ERROR)}}


def operation(name, answer, parameters=(), body=None):
    said = {"operationId": name, "responses": answers(answer), "parameters": list(parameters)}
    if body:
        said["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return said


def path(name, schema=ID):
    return {"name": name, "in": "path", "required": True, "schema": schema}


def query(name, schema):
    return {"name": name, "in": "query", "schema": schema}


LENGTH = query("historyLength", {"type": "integer", "minimum": 0})
HOOKS = "/tasks/{task}/pushNotificationConfigs"
DOCUMENT = {
    "openapi": "3.1.0",
    "info": {"title": "A2A over HTTP+JSON", "version": "1.0"},
    "paths": {
        "/message:send": {"post": operation("send", {"type": "object", "properties": {"task": TASK}, "required": ["task"]}, body=SEND)},
        "/tasks/{task}": {"get": operation("get", TASK, [path("task"), LENGTH])},
        "/tasks": {
            "get": operation(
                "list",
                {
                    "type": "object",
                    "properties": {"tasks": {"type": "array", "items": TASK}, "nextPageToken": TEXT, "pageSize": {"type": "integer"}, "totalSize": {"type": "integer"}},
                    "required": ["tasks", "nextPageToken", "pageSize", "totalSize"],
                },
                [
                    query("contextId", TEXT),
                    query("status", STATE),
                    query("pageSize", {"type": "integer", "minimum": 1, "maximum": 100}),
                    query("pageToken", TEXT),
                    query("includeArtifacts", {"type": "boolean"}),
                    LENGTH,
                ],
            )
        },
        "/tasks/{task}:cancel": {"post": operation("cancel", TASK, [path("task")], body={"type": "object"})},
        HOOKS: {
            "post": operation("createHook", HOOK, [path("task")], body=HOOK),
            "get": operation("listHooks", {"type": "object", "required": ["configs"]}, [path("task")]),
        },
        HOOKS + "/{hook}": {
            "get": operation("getHook", HOOK, [path("task"), path("hook", TEXT_ID)]),
            "delete": operation("deleteHook", {"type": "object"}, [path("task"), path("hook", TEXT_ID)]),
        },
        "/extendedAgentCard": {"get": operation("card", {"type": "object", "required": ["name", "skills"]})},
    },
}
