"""Drives openai-python through the gateway: one JSON line per case."""

import json
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import openai
from openai.lib.streaming.chat import ChatCompletionStreamState

base_url, cases = sys.argv[1], sys.argv[2:]
client = openai.OpenAI(base_url=base_url, api_key="sk-test")
weather = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


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


def again(model):
    """Asks twice, and says what becomes of the second."""
    client.chat.completions.create(**ask(model))
    return failing(lambda: client.chat.completions.create(**ask(model)))


def models():
    return {"ids": [m.id for m in client.models.list()]}


def chat():
    r = client.chat.completions.create(**ask("sim"))
    return {"content": r.choices[0].message.content, "finish": r.choices[0].finish_reason, "usage": r.usage.completion_tokens}


def tool(model, **more):
    """Asks for a call of a tool in one piece."""
    r = client.chat.completions.create(**ask(model, tools=weather), **more)
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


def turn(kind, question):
    """Asks once for an answer that the cache keeps, and says what came of it."""
    create = client.chat.completions.with_raw_response.create
    body = {**ask("kept", temperature=0, tools=weather), "messages": [{"role": "user", "content": question}]}
    if kind.startswith("only"):
        body["extra_headers"] = {"Cache-Control": "only-if-cached"}
    try:
        if kind == "embed":
            raw = client.embeddings.with_raw_response.create(model="kept", input=question)
            r = raw.parse()
            return {"cache": raw.headers.get("x-spillway-cache", ""), "vector": r.data[0].embedding, "usage": r.usage.total_tokens}
        if kind in ("one", "only"):
            raw = create(**body)
            r = raw.parse()
            return {"cache": raw.headers.get("x-spillway-cache", ""), "answer": r.to_dict(mode="json"), **view(r)}
        if kind == "usage":
            body["stream_options"] = {"include_usage": True}
        raw = create(**body, stream=True)
        chunks, state = [], ChatCompletionStreamState()
        for chunk in raw.parse():
            chunks.append(chunk.to_dict(mode="json"))
            state.handle_chunk(chunk)
        return {"cache": raw.headers.get("x-spillway-cache", ""), "chunks": chunks, **view(state.get_final_completion())}
    except openai.APIStatusError as err:
        return {"status": err.status_code, "code": err.code}


def view(answer):
    """What applications read of an answer."""
    message = answer.choices[0].message
    return {
        "content": message.content or "",
        "finish": answer.choices[0].finish_reason,
        "usage": answer.usage.total_tokens if answer.usage else None,
        "unknown": answer.vendor_answer,
        "reasoning": message.reasoning_content,
        "tools": [
            {"id": c.id, "name": c.function.name, "arguments": json.loads(c.function.arguments)}
            for c in message.tool_calls or []
        ]
        or None,
    }


def kept(question, first, *groups):
    """Takes the turns of a case in order, those joined by + at the same time.

    Between them is a moment, in which a generation ends whose client left at the terminal event.
    Its answer may still be on its way into the cache: what joins it is asked again.
    """
    with ThreadPoolExecutor() as pool:

        def take(group):
            return list(pool.map(lambda kind: turn(kind, question), group.split("+")))

        out = {"turns": take(first), "repeats": 0}
        for group in groups:
            time.sleep(0.05)
            turns = take(group)
            while turns[0].get("cache") == "coalesced" and out["repeats"] < 500:
                out["repeats"] += 1
                time.sleep(0.01)
                turns = take(group)
            out["turns"] += turns
    return out


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
    "limited": lambda: again("limited"),
    "spent": lambda: again("spent"),
    "cut": lambda: stream(ask("cut")),
    "wait": lambda: stream(ask("wait")),
    "leave": lambda: stream(ask("sim", max_tokens=4000), leave_after=3, extra_headers={"X-Engine-Output-Tokens": "4000"}),
}

for name in cases:
    try:
        first, *rest = name.split(" ")
        result = kept(*rest) if first == "kept" else run[name]()
    except Exception:  # the driver reports, the test judges
        result = {"failure": traceback.format_exc()}
    print(json.dumps({"case": name, **result}), flush=True)
