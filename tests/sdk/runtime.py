"""A small sandbox runtime: the HTTP API that the SDK `k8s-agent-sandbox` calls, on loopback, for tests only.

It runs whatever it is told to and asks nobody who they are, as the real runtime does: that is the gate's work.

Started with a folder for files and a file for the request log. Prints `ready PORT`, then serves until it is killed.
The log holds one JSON object per request, written before the request is handled, so that "the runtime saw nothing" can
be checked without asking the runtime.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, UploadFile
from fastapi.responses import FileResponse
from pydantic import BaseModel


class Command(BaseModel):
    """The body of `POST /execute`."""

    command: str
    timeout_seconds: float | None = None


class RequestLog:
    """ASGI middleware that appends each request, as it arrived, to a file."""

    def __init__(self, app: Any, path: Path) -> None:
        self.app = app
        self.path = path

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            query = scope["query_string"]
            entry = {
                "method": scope["method"],
                "target": (scope["raw_path"] + (b"?" + query if query else b"")).decode("latin-1"),
                "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]],
            }
            with self.path.open("a", encoding="utf-8") as log:
                log.write(json.dumps(entry) + "\n")
        await self.app(scope, receive, send)


async def run_command(command: Command, folder: Path) -> dict[str, Any]:
    """Runs a shell command in `folder`; past its time limit it is killed with everything it started."""
    process = await asyncio.create_subprocess_exec(
        "/bin/sh",
        "-c",
        command.command,
        cwd=folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        stdout, stderr = await asyncio.wait_for(process.communicate(), command.timeout_seconds)
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        return {"stdout": "", "stderr": "timed out", "exit_code": 124, "timed_out": True}
    return {
        "stdout": stdout.decode(errors="replace"),
        "stderr": stderr.decode(errors="replace"),
        "exit_code": process.returncode,
    }


def inside(folder: Path, name: str) -> Path:
    """The path that `name` has in `folder`; a name that leads out of it is refused."""
    path = (folder / name.lstrip("/")).resolve()
    if not path.is_relative_to(folder):
        raise HTTPException(403, "the path leads out of the folder")
    return path


def describe(path: Path) -> dict[str, Any]:
    """One entry of a listing."""
    about = path.stat()
    kind = "directory" if path.is_dir() else "file"
    return {"name": path.name, "size": about.st_size, "type": kind, "mod_time": about.st_mtime}


def build(folder: Path, log: Path) -> Any:
    """The runtime's ASGI application."""
    app = FastAPI(openapi_url=None)

    @app.post("/execute")
    async def execute(command: Command) -> dict[str, Any]:
        return await run_command(command, folder)

    @app.post("/upload")
    def upload(file: UploadFile) -> dict[str, str]:
        path = inside(folder, file.filename or "")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stored:
            shutil.copyfileobj(file.file, stored)
        return {"message": f"stored {file.filename}"}

    @app.get("/download/{name:path}")
    def download(name: str) -> FileResponse:
        path = inside(folder, name)
        if not path.is_file():
            raise HTTPException(404, "no such file")
        return FileResponse(path, media_type="application/octet-stream")

    @app.get("/list/{name:path}")
    def listing(name: str) -> list[dict[str, Any]]:
        path = inside(folder, name)
        if not path.is_dir():
            raise HTTPException(404, "no such folder")
        return [describe(entry) for entry in sorted(path.iterdir())]

    @app.get("/exists/{name:path}")
    def exists(name: str) -> dict[str, Any]:
        return {"path": name, "exists": inside(folder, name).exists()}

    return RequestLog(app, log)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    arguments = parser.parse_args()

    # Bound here, so that the port can't be taken between choosing and using it.
    listener = socket.create_server(("127.0.0.1", arguments.port))
    app = build(arguments.folder.resolve(strict=True), arguments.log)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    print(f"ready {listener.getsockname()[1]}", flush=True)
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
