"""`jielong serve`: load the models, listen, drain on SIGTERM."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from jielong.config import ServeConfig
from jielong.errors import UserError
from jielong.feedback.stage import store_of
from jielong.generate.engine import Engine
from jielong.model.native import hint
from jielong.run import Run
from jielong.serve.app import make_app
from jielong.serve.detect import detection_of
from jielong.serve.forgetter import Forgetter
from jielong.serve.guard import LOOPBACK
from jielong.serve.improve import Trainer
from jielong.serve.keys import Keys
from jielong.serve.models import Served
from jielong.serve.reward import opener

DRAIN = 20  # seconds that answers in progress get when the server is told to stop


def pick_model(run: Run, name: str = "") -> Path:
    """The artifact to talk with: the named one, else the one that the run serves. Raises UserError when there is none."""
    return run.need(name or run.serving()).path


def load_models(config: ServeConfig, run: Run) -> list[Served]:
    """One engine for each --model: NAME=RUN, NAME=RUN:ARTIFACT, or the name of an artifact of --run. Without any, what the run
    serves, and beside it what it served before, to compare with."""
    served: dict[str, Served] = {}
    for entry in config.model or ("", *filter(None, [run.served_before()])):
        name, equals, place = entry.partition("=")
        if equals and not (name and place):
            raise UserError(f"--model {entry!r} must read NAME=RUN or NAME=RUN:ARTIFACT.")
        folder, artifact = run, name
        if equals:
            path, _, artifact = place.partition(":")
            folder = Run(path)
        picked = pick_model(folder, artifact)
        engine = load_engine(config, picked)
        engine.name = name or picked.name
        if engine.name in served:
            raise UserError(f"Two models are named {engine.name!r}; name them apart: --model NAME=RUN.")
        served[engine.name] = Served(engine, folder.path)
    return list(served.values())


def load_engine(config: ServeConfig, folder: Path) -> Engine:
    """The engine of an artifact, with the server's settings."""
    return Engine.load(
        folder,
        config.threads,
        precision=config.precision,
        device=config.device,
        rows=config.rows,
        prefix_bytes=config.prefix_mb << 20,
        lookup=config.lookup,
    )


def renewer(config: ServeConfig, run: Run, served: list[Served]) -> Callable[[str], Served | None]:
    """A function that loads what the run serves now, where that is not the named model as it was loaded: a promotion changes the
    name, a forgetting puts another model under the same one."""
    held = {s.engine.name: s.engine.hash for s in served}

    def renewed(now: str) -> Served | None:
        name = run.serving()
        found = run.artifact(name)
        if name == now and (found is None or found.hash == held.get(name)):
            return None
        new = Served(load_engine(config, run.need(name).path), run.path)
        held[name] = new.engine.hash
        return new

    return renewed


def free_port(host: str, port: int | None) -> socket.socket:
    """A bound socket. Raises UserError when the named port, or 50 from 8000 on, are in use, or the host is none."""
    for candidate in [port] if port is not None else range(8000, 8050):
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, candidate))
            return sock
        except socket.gaierror as error:
            sock.close()
            raise UserError(f"--host {host} is no address of this machine.") from error
        except OSError:
            sock.close()
    if port is not None:
        raise UserError(f"Port {port} is in use; leave --port out to take a free one, or stop the other program.")
    raise UserError("The ports 8000 to 8049 are all in use; name another one with --port.")


def run(config: ServeConfig, run: Run) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises UserError for a missing key, a wrong host or port, or a missing model."""
    import uvicorn

    keys = None
    if config.host not in LOOPBACK or config.require_key:
        keys = Keys(config.keys)
        if not keys:
            raise UserError(
                f"--host {config.host} lets others in, so it needs a key: make one with `jielong key --keys {config.keys}`."
                if config.host not in LOOPBACK
                else f"There is no key in {config.keys}; make one with `jielong key --keys {config.keys}`."
            )
    if config.port is not None and not 0 <= config.port < 65536:
        raise UserError("--port must lie between 0 and 65535.")
    if config.rows < 1 or config.waiting < 0 or config.prefix_mb < 0 or config.lookup < 0 or config.connections < 1:
        raise UserError("--rows and --connections must be at least 1; --waiting, --prefix-mb and --lookup at least 0.")
    if told := hint():
        print(told, file=sys.stderr)
    served = load_models(config, run)
    own = Run(served[0].run or run.path)
    feedback = config.feedback != "off"

    app = make_app(
        served,
        keys,
        config.origin,
        config.waiting,
        (lambda: store_of(config.feedback, own)) if feedback else None,
        Trainer(own, config.feedback, config.improve) if feedback else None,
        None if config.model else renewer(config, own, served),
        opener(config.reward, own, config.precision),
        detection_of(config.watermark, config.ledger, served, own),
        None if config.model else own,
        config.threads,
        None if config.model else Forgetter(own, config.feedback if feedback else ""),
    )
    sock = free_port(config.host, config.port)
    host = f"[{config.host}]" if ":" in config.host else config.host
    url = f"http://{host}:{sock.getsockname()[1]}"
    print(f"Open {url}  (Ctrl-C stops)", flush=True)
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform in ("darwin", "win32")
    if config.open and display and config.host in LOOPBACK:
        import webbrowser

        threading.Timer(0.5, webbrowser.open, [url]).start()
    settings = uvicorn.Config(
        app,
        log_level="warning",
        timeout_graceful_shutdown=DRAIN,
        timeout_keep_alive=30,
        limit_concurrency=config.connections,
    )
    sock.listen(512)
    uvicorn.Server(settings).run(sockets=[sock])
