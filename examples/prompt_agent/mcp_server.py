"""A server of the Model Context Protocol, by standard input and output: any such server can be a tool."""

from mcp.server.fastmcp import FastMCP

server = FastMCP("library")


@server.tool()
def search(query: str) -> str:
    """Finds pages."""
    return f"three pages about {query}"


if __name__ == "__main__":
    server.run("stdio")
