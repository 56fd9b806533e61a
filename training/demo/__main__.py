"""The demo, from nothing to recommendations: `make demo`, or by hand

    python -m training.demo --port 8000            # and keep serving
    python -m training.demo --port 8000 --check    # verify the answers, stop, exit 0 or 1

Training is skipped where it is done already; Redis is the service's own (embedded).
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from training.demo.checks import run_checks
from training.demo.service_process import DemoError, ServiceProcess
from training.demo.show import show_users
from training.demo.users import Shop

RECIPE = Path("training/recipes/demo.toml")
RUN_DIR = Path("runs/demo")
READY_TIMEOUT_S = 300.0


def demo(
    port: Annotated[int, typer.Option(help="Port of the service.")] = 8000,
    check: Annotated[bool, typer.Option("--check", help="Verify the answers, then stop.")] = False,
) -> None:
    """Train on the demo catalogue, serve the result, and show what it recommends."""
    console = Console()
    _need_free(port)
    began = time.monotonic()
    _train()
    shop = Shop.load(RUN_DIR / "items")
    service = ServiceProcess(RUN_DIR / "bundle", port=port, work_dir=RUN_DIR)
    try:
        service.start()
        with console.status("the service is loading the model ..."):
            service.wait_until_ready(READY_TIMEOUT_S)
        console.print(
            f"\nThree test users, picked by place in the list; answers from {service.url}/recommend\n",
            soft_wrap=True,
        )
        show_users(service, shop, console)
        num_failed = _check(service, shop, console) if check else 0
        console.print(
            f"from the start of training to here: {time.monotonic() - began:.0f} s", highlight=False
        )
        if not check:
            _keep_serving(service, shop, console)
    finally:
        exit_code = service.stop()
    if check and exit_code != 0:
        num_failed += 1
        console.print(f"FAILED  the service ended with exit code {exit_code}; see {service.log_path}")
    if check:
        print("demo check: passed" if not num_failed else f"demo check: {num_failed} failed", flush=True)
    raise typer.Exit(1 if num_failed else 0)


def _need_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise DemoError(f"port {port} is taken ({error}); choose another: make demo PORT=8001") from error


def _train() -> None:
    if not RECIPE.is_file():
        raise DemoError(f"{RECIPE} is not here; start the demo in the repository's root")
    command = [sys.executable, "-m", "training", "all", "--config", str(RECIPE)]
    if code := subprocess.run(command, check=False).returncode:
        raise DemoError(f"training ended with exit code {code}; the same command goes on where it was")


def _check(service: ServiceProcess, shop: Shop, console: Console) -> int:
    num_failed = 0
    for sentence, is_ok, found in run_checks(service, shop):
        num_failed += not is_ok
        word = "ok    " if is_ok else "FAILED"
        console.print(f"{word}  {sentence}: {found}", markup=False, highlight=False, soft_wrap=True)
    return num_failed


def _keep_serving(service: ServiceProcess, shop: Shop, console: Console) -> None:
    request = json.dumps({"history": list(shop.users[0].history[-3:]), "k": 5})
    console.print(
        f"\nServing at {service.url}  (page: /, API: /docs, log: {service.log_path}).  Ctrl-C stops it.\n"
        f"  curl -s {service.url}/recommend -H 'Content-Type: application/json' -d '{request}'\n",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    try:
        while True:
            service.raise_if_ended()
            time.sleep(0.5)
    except KeyboardInterrupt:
        console.print("stopping the service ...")


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line; what goes wrong ends in one sentence and exit code 1."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        typer.run(demo)
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
