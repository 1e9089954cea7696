"""An MCP server on stdin and stdout, without a library, so that it starts at once."""

import json
import sys
from typing import Any


def tool(name: str) -> dict[str, Any]:
    """A tool without arguments."""
    return {"name": name, "description": name, "inputSchema": {"type": "object", "properties": {}}}


def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    """The response to a request, as a part of JSON-RPC's."""
    match method, params.get("name"):
        case "initialize", _:
            about = {"name": "files", "version": "1"}
            return {"result": {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": about}}
        case "tools/list", _ if "unlisted" in sys.argv:
            return {"error": {"code": -32603, "message": "The index is broken."}}
        case "tools/list", _:
            return {"result": {"tools": [tool("read"), tool("refuse"), tool("die")]}}
        case "tools/call", "read":
            return {"result": {"content": [{"type": "text", "text": "tea"}]}}
        case "tools/call", "refuse":
            return {"result": {"content": [{"type": "text", "text": "no such file"}], "isError": True}}
        case "tools/call", "die":
            sys.exit()
        case _:
            return {"error": {"code": -32601, "message": "Method not found"}}


for line in sys.stdin:
    request = json.loads(line)
    if "id" in request:
        response = answer(request["method"], request.get("params") or {})
        print(json.dumps({"jsonrpc": "2.0", "id": request["id"]} | response), flush=True)
