"""A server of the official SDK with one tool, over standard input and output: what `bench mcp` is held against."""

from mcp.server.mcpserver import MCPServer

server = MCPServer("echo")


@server.tool()
def echo(message: str) -> dict[str, str]:
    return {"message": message}


server.run()
