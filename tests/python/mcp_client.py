"""What the official MCP client sees of an MCP server: its tools, a result, a tool's error, an unknown tool.

mcp_client.py COMMAND ARGUMENT...: the server to start. Prints one JSON object.
"""

import asyncio
import json
import sys

from mcp import ClientSession, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client


async def call(session, name, arguments):
    try:
        result = await session.call_tool(name, arguments)
    except MCPError as error:
        return {"refused": error.code, "message": error.message}
    kept = result.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {
        "error": kept.get("isError", False),
        "text": [block["text"] for block in kept["content"]],
        "structured": kept.get("structuredContent"),
    }


async def main(command, arguments):
    server = StdioServerParameters(command=command, args=arguments)
    async with stdio_client(server) as (reader, writer), ClientSession(reader, writer) as session:
        hello = await session.initialize()
        listed = await session.list_tools()
        tools = {
            tool.name: tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in listed.tools
        }
        print(
            json.dumps(
                {
                    "server": hello.model_dump(mode="json", by_alias=True)["serverInfo"]["name"],
                    "tools": tools,
                    "echo": await call(session, "probe__echo", {"a": 1}),
                    "list": await call(session, "fs__list", {"path": "work"}),
                    "wrong": await call(session, "calc__eval", {"expression": "1/0"}),
                    "unknown": await call(session, "nobody__nothing", {}),
                    "at_once": await asyncio.gather(
                        *(call(session, "calc__eval", {"expression": f"{n}*{n}"}) for n in range(20))
                    ),
                }
            )
        )


asyncio.run(main(sys.argv[1], sys.argv[2:]))
