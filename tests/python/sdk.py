"""What the official clients see of a model server: a tool call, its result, the answer, what it used.

sdk.py URL: URL is the base URL of the OpenAI wire, with /v1. Prints one JSON object by client.
"""

import json
import sys

import anthropic
import openai

TASK = "What is 6*7?"
NAME = "calc__eval"
DESCRIPTION = "Computes."
SCHEMA = {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}
RESULT = '{"value":42}'


def of_openai(url):
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    tools = [{"type": "function", "function": {"name": NAME, "description": DESCRIPTION, "parameters": SCHEMA}}]
    messages = [{"role": "user", "content": TASK}]
    # The client's own accumulation of the pieces, which checks what they are.
    with client.chat.completions.stream(
        model="m", messages=messages, tools=tools, stream_options={"include_usage": True}
    ) as stream:
        kinds = {event.type for event in stream}
        first = stream.get_final_completion()
    message = first.choices[0].message
    messages.append(message.model_dump(exclude_none=True, include={"role", "content", "tool_calls"}))
    messages[-1]["tool_calls"] = [
        {"id": c.id, "type": "function", "function": {"name": c.function.name, "arguments": c.function.arguments}}
        for c in message.tool_calls
    ]
    messages += [{"role": "tool", "tool_call_id": c.id, "content": RESULT} for c in message.tool_calls]
    second = client.chat.completions.create(
        model="m", messages=messages, tools=tools, stream=True, stream_options={"include_usage": True}
    )
    pieces, finish, usage = [], None, None
    for chunk in second:
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            finish = choice.finish_reason or finish
        usage = chunk.usage or usage
    whole = client.chat.completions.create(model="m", messages=messages, tools=tools)
    return {
        "said": message.content,
        "calls": [[c.id, c.function.name, json.loads(c.function.arguments)] for c in message.tool_calls],
        "streamed": "tool_calls.function.arguments.delta" in kinds and "content.delta" in kinds,
        "finish": [first.choices[0].finish_reason, finish],
        "usage": [
            first.usage.prompt_tokens,
            first.usage.prompt_tokens_details.cached_tokens,
            first.usage.completion_tokens,
        ],
        "answer": "".join(pieces),
        "pieces": len([p for p in pieces if p]) > 1,
        "answer_usage": [usage.prompt_tokens, usage.completion_tokens],
        "whole": whole.choices[0].message.content,
        "refusal": refusal(lambda: client.chat.completions.create(model="m", messages=messages * 3), openai),
    }


def of_anthropic(url):
    client = anthropic.Anthropic(base_url=url.removesuffix("/v1"), api_key="none", max_retries=0)
    tools = [{"name": NAME, "description": DESCRIPTION, "input_schema": SCHEMA}]
    messages = [{"role": "user", "content": TASK}]
    with client.messages.stream(model="m", max_tokens=100, messages=messages, tools=tools) as stream:
        kinds = {event.type for event in stream}
        first = stream.get_final_message()
    calls = [block for block in first.content if block.type == "tool_use"]
    messages.append({"role": "assistant", "content": [b.model_dump(exclude_none=True) for b in first.content]})
    for block in messages[-1]["content"]:
        for key in list(block):
            if key not in ("type", "text", "id", "name", "input"):
                del block[key]
    results = [{"type": "tool_result", "tool_use_id": c.id, "content": RESULT} for c in calls]
    messages.append({"role": "user", "content": results})
    pieces = []
    with client.messages.stream(model="m", max_tokens=100, messages=messages, tools=tools) as stream:
        pieces.extend(stream.text_stream)
        second = stream.get_final_message()
    whole = client.messages.create(model="m", max_tokens=100, messages=messages, tools=tools)
    used = first.usage
    return {
        "said": "".join(b.text for b in first.content if b.type == "text"),
        "calls": [[c.id, c.name, c.input] for c in calls],
        "streamed": "input_json" in kinds and "text" in kinds,
        "finish": [first.stop_reason, second.stop_reason],
        "usage": [used.input_tokens + used.cache_read_input_tokens, used.cache_read_input_tokens, used.output_tokens],
        "answer": "".join(pieces),
        "pieces": len(pieces) > 1,
        "answer_usage": [second.usage.input_tokens + second.usage.cache_read_input_tokens, second.usage.output_tokens],
        "whole": whole.content[0].text,
        "refusal": refusal(
            lambda: client.messages.create(model="m", max_tokens=100, messages=messages * 3), anthropic
        ),
    }


def refusal(ask, library):
    """How a request that the server refuses is told."""
    try:
        ask()
    except library.BadRequestError as error:
        return [error.status_code, "script_exhausted" in str(error)]
    return None


URL = sys.argv[1]
print(json.dumps({"openai": of_openai(URL), "anthropic": of_anthropic(URL)}))
