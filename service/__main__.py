"""Command line of the service.

python -m service --bundle runs/demo/bundle          serve it (the word `serve` may be left out)
python -m service catalogue load --bundle DIR        bring its items into Redis beforehand
python -m service catalogue prune                    delete catalogues of bundles no longer in use
python -m service batch --input FILE --output DIR    recommendations for many users, into Parquet files
python -m service embed --input FILE --output DIR    vectors and codes of many items, into Parquet files
python -m service bundle verify --bundle DIR         hash every file, print the bundle's identifier
python -m service keys create|list|revoke|rotate     API keys; kept as hashes in Redis
python -m service export-events --output DIR         what users did, as training's input files
python -m service settings                           print every GTIREC_ variable as a Markdown table
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError

from service.errors import GtirecError
from service.settings import Settings, settings_table

USAGE_EXIT_CODE = 2
# Commands that open no port need no API key, whatever the container's GTIREC_HOST says.
NOT_LISTENING = "127.0.0.1"

app = typer.Typer(
    no_args_is_help=False, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
catalogue_app = typer.Typer(no_args_is_help=True, help="The items in Redis.")
bundle_app = typer.Typer(no_args_is_help=True, help="What a training run exported.")
keys_app = typer.Typer(no_args_is_help=True, help="API keys.")
app.add_typer(keys_app, name="keys")
app.add_typer(catalogue_app, name="catalogue")
app.add_typer(bundle_app, name="bundle")

BundleOption = Annotated[Path | None, typer.Option("--bundle", help="Directory of the bundle.")]
RedisOption = Annotated[str | None, typer.Option("--redis-url", help="Redis to use.")]
WorkersOption = Annotated[int, typer.Option(min=1, help="Processes that compute; more than one run on Ray.")]
CpusOption = Annotated[float, typer.Option(help="Of the Ray cluster, per worker.")]
GpusOption = Annotated[float, typer.Option(help="Of the Ray cluster, per worker.")]


@app.command()
def serve(
    bundle: BundleOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    engine: Annotated[str | None, typer.Option(help="auto, vllm_pooling, vllm_logits or torch.")] = None,
    redis_url: RedisOption = None,
    data_dir: Annotated[Path | None, typer.Option(help="Directory for the private Redis server.")] = None,
    log_format: Annotated[str | None, typer.Option(help="json or text.")] = None,
) -> None:
    """Serve a bundle over HTTP. Every option can also be set as GTIREC_... in the environment."""
    settings = _settings(
        bundle=bundle,
        host=host,
        port=port,
        engine=engine,
        redis_url=redis_url,
        data_dir=data_dir,
        log_format=log_format,
    )
    from service.observability import logs

    logs.configure(settings.log_level, settings.log_format)
    from service.server import Server

    try:
        server = Server(settings)
    except GtirecError as error:
        _refuse(str(error))
    server.run()
    raise typer.Exit(server.exit_code if server.started else server.exit_code or 1)


@catalogue_app.command()
def load(bundle: BundleOption = None, redis_url: RedisOption = None) -> None:
    """Bring a bundle's items into Redis and make them the active catalogue. Safe to repeat."""
    settings = _settings(bundle=bundle, redis_url=redis_url, host=NOT_LISTENING)
    from service.catalogue import commands

    _run(lambda: asyncio.run(commands.load(settings)))


@catalogue_app.command()
def prune(redis_url: RedisOption = None) -> None:
    """Delete every catalogue but the active and the previous one."""
    settings = _settings(redis_url=redis_url, host=NOT_LISTENING)
    from service.catalogue import commands

    _run(lambda: asyncio.run(commands.prune(settings)))


@app.command()
def batch(
    source: Annotated[Path, typer.Option("--input", help="Histories: .parquet, .jsonl or .csv.")],
    output: Annotated[Path, typer.Option(help="Directory of the answers; the same one goes on.")],
    bundle: BundleOption = None,
    engine: Annotated[str | None, typer.Option(help="auto, vllm_pooling, vllm_logits or torch.")] = None,
    k: Annotated[int, typer.Option(help="Items per user.")] = 10,
    beam_width: Annotated[
        int, typer.Option(help="Beams kept per level; 0: as POST /recommend where it names none.")
    ] = 0,
    exclude_seen: Annotated[bool, typer.Option(help="Leave out what the history holds.")] = True,
    filter: Annotated[str | None, typer.Option(help="A filter as JSON, as in POST /recommend.")] = None,
    rows_per_part: Annotated[int, typer.Option(help="Users per file.")] = 10_000,
    workers: WorkersOption = 1,
    cpus: CpusOption = 2.0,
    gpus: GpusOption = 0.0,
) -> None:
    """Recommend for every user of a file. A killed job goes on where it was."""
    settings = _settings(bundle=bundle, engine=engine, host=NOT_LISTENING)
    from service.batch import command, job

    def run() -> None:
        asked = job.parse_settings(
            kind="recommend",
            k=k,
            beam_width=beam_width,
            exclude_seen=exclude_seen,
            filter=job.parse_filter(filter),
            rows_per_part=rows_per_part,
        )
        command.run(settings, source, output, asked, num_workers=workers, cpus=cpus, gpus=gpus)

    _run(run)


@app.command()
def embed(
    source: Annotated[Path, typer.Option("--input", help="Items: .jsonl or .parquet.")],
    output: Annotated[Path, typer.Option(help="Directory of the vectors; the same one goes on.")],
    bundle: BundleOption = None,
    rows_per_part: Annotated[int, typer.Option(help="Items per file.")] = 10_000,
    workers: WorkersOption = 1,
    cpus: CpusOption = 2.0,
    gpus: GpusOption = 0.0,
) -> None:
    """Embed every item of a file with the bundle's encoder, and name the nearest codes."""
    settings = _settings(bundle=bundle, host=NOT_LISTENING)
    from service.batch import command, job

    def run() -> None:
        asked = job.parse_settings(kind="embed", rows_per_part=rows_per_part)
        command.run(settings, source, output, asked, num_workers=workers, cpus=cpus, gpus=gpus)

    _run(run)


@bundle_app.command()
def verify(bundle: BundleOption = None) -> None:
    """Check a bundle as the service would: every hash, shape and order, and GTIREC_BUNDLE_ID if it is set."""
    settings = _settings(bundle=bundle, host=NOT_LISTENING)
    from service.bundle import load_bundle

    _run(lambda: typer.echo(load_bundle(settings.bundle, expected_id=settings.bundle_id).bundle_id))


KeyIdArgument = Annotated[str, typer.Argument(metavar="ID", help="As `keys list` shows it.")]
DataDirOption = Annotated[Path | None, typer.Option("--data-dir", help="Directory of the private Redis.")]


@keys_app.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="Whose key it is, for people.")],
    scope: Annotated[list[str], typer.Option(help="read, write, preview or admin; repeatable.")] = ["read"],  # noqa: B006
    expires_days: Annotated[float | None, typer.Option(min=0, help="Days until it stops working.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Requests a second it may send.")] = None,
    redis_url: RedisOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make a key and print it; it is never shown again."""
    settings = _settings(redis_url=redis_url, data_dir=data_dir, host=NOT_LISTENING)
    from service.access import commands

    _run(
        lambda: asyncio.run(
            commands.create(settings, name, scope, expires_days=expires_days, rate_per_s=rate)
        )
    )


@keys_app.command("list")
def list_keys(redis_url: RedisOption = None, data_dir: DataDirOption = None) -> None:
    """Show all keys, without their secrets."""
    settings = _settings(redis_url=redis_url, data_dir=data_dir, host=NOT_LISTENING)
    from service.access import commands

    _run(lambda: asyncio.run(commands.list_keys(settings)))


@keys_app.command("revoke")
def revoke_key(key_id: KeyIdArgument, redis_url: RedisOption = None, data_dir: DataDirOption = None) -> None:
    """Make a key invalid, within seconds everywhere."""
    settings = _settings(redis_url=redis_url, data_dir=data_dir, host=NOT_LISTENING)
    from service.access import commands

    _run(lambda: asyncio.run(commands.revoke(settings, key_id)))


@keys_app.command("rotate")
def rotate_key(
    key_id: KeyIdArgument,
    keep_old_hours: Annotated[float, typer.Option(min=0, help="Hours the old secret still works.")] = 24.0,
    redis_url: RedisOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Give a key a new secret and print it."""
    settings = _settings(redis_url=redis_url, data_dir=data_dir, host=NOT_LISTENING)
    from service.access import commands

    _run(lambda: asyncio.run(commands.rotate(settings, key_id, keep_old_hours=keep_old_hours)))


@app.command("export-events")
def export_events(
    output: Annotated[Path, typer.Option(help="Directory for items.jsonl and interactions.csv.")],
    bundle: BundleOption = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Kind of event to write; may be repeated. All of the history.")
    ] = None,
    redis_url: RedisOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Write what users did as training's own input files (items.source = "own")."""
    settings = _settings(bundle=bundle, redis_url=redis_url, data_dir=data_dir, host=NOT_LISTENING)
    from service.events import HISTORY_KINDS
    from service.events.export import export

    _run(lambda: asyncio.run(export(settings, output, kind or HISTORY_KINDS)))


@app.command("settings")
def print_settings() -> None:
    """Print the table of settings."""
    typer.echo(settings_table(), nl=False)


def _settings(**given: Any) -> Settings:
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        _refuse("\n".join(_setting_problem(problem) for problem in error.errors()))


def _setting_problem(problem: Any) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    return f"GTIREC_{str(problem['loc'][0]).upper()}: {message} (got {problem['input']!r})"


def _run(command: Any) -> None:
    try:
        command()
    except GtirecError as error:
        _refuse(str(error))


def _refuse(sentence: str) -> NoReturn:
    typer.echo(f"gti-rec: {sentence}", err=True)
    raise typer.Exit(USAGE_EXIT_CODE)


def main() -> None:
    """Entry point; options without a command mean `serve`."""
    arguments = sys.argv[1:]
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("--help", "-h")):
        arguments = ["serve", *arguments]
    app(args=arguments, prog_name="python -m service")


# vLLM starts its processes by spawning, which imports this file again.
if __name__ == "__main__":
    main()
