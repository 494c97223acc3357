"""Drives openai-python through the gateway: one JSON line per case."""

import json
import sys
import traceback

import openai

base_url, cases = sys.argv[1], sys.argv[2:]
client = openai.OpenAI(base_url=base_url, api_key="sk-test")


def ask(model, **more):
    return {"model": model, "messages": [{"role": "user", "content": "Say something."}], "max_tokens": 12, **more}


def stream(body, leave_after=None, **options):
    """Reads a stream to its end and says what came, and whether it was raised."""
    out = {"chunks": 0, "content": "", "finish": None, "usage": None, "raised": None}
    try:
        with client.chat.completions.create(**body, stream=True, **options) as answer:
            for chunk in answer:
                out["chunks"] += 1
                if chunk.choices:
                    out["content"] += chunk.choices[0].delta.content or ""
                    out["finish"] = chunk.choices[0].finish_reason or out["finish"]
                if chunk.usage:
                    out["usage"] = chunk.usage.completion_tokens
                if leave_after and out["chunks"] >= leave_after:
                    break
    except Exception as err:  # every kind counts as raised; the test judges it
        out["raised"] = {"name": type(err).__name__, "message": str(err), "code": getattr(err, "code", None)}
    return out


def failing(call):
    try:
        call()
        return {"status": 200}
    except openai.APIStatusError as err:
        return {"status": err.status_code, "code": err.code, "message": err.message, "name": type(err).__name__}


def models():
    return {"ids": [m.id for m in client.models.list()]}


def chat():
    r = client.chat.completions.create(**ask("sim"))
    return {"content": r.choices[0].message.content, "finish": r.choices[0].finish_reason, "usage": r.usage.completion_tokens}


def tool(model, **more):
    """Asks for a call of a tool in one piece."""
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
    r = client.chat.completions.create(**ask(model, tools=tools), **more)
    m = r.choices[0].message
    call = m.tool_calls[0].function
    return {
        "tool": call.name,
        "arguments": call.arguments,
        "reasoning": m.reasoning_content,
        "unknown": r.vendor_answer,
        "finish": r.choices[0].finish_reason,
        "usage": r.usage.completion_tokens,
    }


def embeddings():
    return {"length": len(client.embeddings.create(model="sim", input="hello").data[0].embedding)}


run = {
    "models": models,
    "chat": chat,
    "stream": lambda: stream(ask("sim", stream_options={"include_usage": True})),
    "extra": lambda: tool("tools", extra_body={"vendor_field": {"deep": [1, 2.50, "x"]}}),
    "rebuilt": lambda: tool("chunks"),
    "embeddings": embeddings,
    "unknown": lambda: failing(lambda: client.chat.completions.create(**ask("nobody"))),
    "bad": lambda: failing(lambda: client.chat.completions.create(**ask("bad"))),
    "busy": lambda: failing(lambda: client.chat.completions.create(**ask("busy"))),
    "cut": lambda: stream(ask("cut")),
    "wait": lambda: stream(ask("wait")),
    "leave": lambda: stream(ask("sim", max_tokens=4000), leave_after=3, extra_headers={"X-Engine-Output-Tokens": "4000"}),
}

for name in cases:
    try:
        result = run[name]()
    except Exception:  # the driver reports, the test judges
        result = {"failure": traceback.format_exc()}
    print(json.dumps({"case": name, **result}), flush=True)
