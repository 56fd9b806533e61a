"""Batch jobs: the service's answers, in parts that a kill cannot spoil."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from service.__main__ import app
from service.batch.inputs import read_histories
from service.batch.job import INPUT_FILE, Job, JobSettings, parse_filter, parse_settings
from service.batch.worker import Worker
from service.errors import BadFilter, BatchError
from tests.service.engine.conftest import tiny_bundle  # noqa: F401

NUM_USERS = 25
SETTINGS = JobSettings(k=4, beam_width=8, rows_per_part=10)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """25 users; one knows nothing, one asks for an item that is not there."""
    histories = [[f"item-{(user * 3 + n) % 40}" for n in range(1 + user % 4)] for user in range(NUM_USERS)]
    histories[3], histories[4] = [], ["item-1", "gone"]
    frame = pl.DataFrame({"user_id": [f"user-{user}" for user in range(NUM_USERS)], "history": histories})
    frame.write_parquet(tmp_path / "histories.parquet")
    return tmp_path / "histories.parquet"


@pytest.fixture
def make_worker(small_bundle: Any, fake_engine: Any) -> Iterator[Callable[[Job], Worker]]:
    """Workers on the fake engine, closed at the end."""
    workers: list[Worker] = []

    def make(job: Job) -> Worker:
        workers.append(Worker(job, small_bundle, lambda: fake_engine))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


def begin(source: Path, directory: Path, settings: JobSettings = SETTINGS, bundle_id: str = "b") -> Job:
    return Job.open(source, directory, settings, bundle_id)


def test_every_user_is_answered_as_the_service_answers(
    source: Path, tmp_path: Path, make_worker: Callable[[Job], Worker]
) -> None:
    job = begin(source, tmp_path / "out")
    worker = make_worker(job)
    assert [worker.answer(number) for number in job.open_parts()] == [10, 10, 5]
    answers = pl.read_parquet(tmp_path / "out/part-*.parquet")
    assert answers["user_id"].to_list() == [f"user-{user}" for user in range(NUM_USERS)]
    assert answers["item_ids"].list.len().to_list() == [4] * NUM_USERS
    histories = pl.read_parquet(source)["history"].to_list()
    for history, row in zip(histories, answers.iter_rows(named=True), strict=True):
        assert not set(history) & set(row["item_ids"])
        assert all(
            (logprob is not None) == (s == "model")
            for logprob, s in zip(row["logprobs"], row["sources"], strict=True)
        )
    assert answers["sources"][3].to_list() == ["popular"] * 4
    assert answers["unknown_items"][4].to_list() == ["gone"]


def test_a_second_start_does_only_what_is_left(
    source: Path, tmp_path: Path, make_worker: Callable[[Job], Worker], fake_engine: Any
) -> None:
    job = begin(source, tmp_path / "out")
    make_worker(job).answer(1)
    asked_before = len(fake_engine.requests)
    again = begin(source, tmp_path / "out")
    assert again.open_parts() == [0, 2]
    assert Job.resume(tmp_path / "out") == again
    worker = make_worker(again)
    for number in again.open_parts():
        worker.answer(number)
    assert not again.open_parts()
    assert len(fake_engine.requests) - asked_before == NUM_USERS - 10 - 1  # one has no history


def test_an_engine_that_dies_leaves_no_part(
    source: Path, tmp_path: Path, make_worker: Callable[[Job], Worker], fake_engine: Any
) -> None:
    job = begin(source, tmp_path / "out")
    worker = make_worker(job)
    fake_engine.kill()
    with pytest.raises(BatchError, match="start the same command again"):
        worker.answer(0)
    assert job.open_parts() == [0, 1, 2]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [INPUT_FILE, "job.json"]


def test_a_wrong_filter_is_refused(
    source: Path, tmp_path: Path, make_worker: Callable[[Job], Worker]
) -> None:
    settings = SETTINGS.model_copy(update={"filter": {"no such": 1}})
    with pytest.raises(BadFilter):
        make_worker(begin(source, tmp_path / "out", settings)).answer(0)


@pytest.mark.parametrize(
    ("settings", "bundle_id", "changed"),
    [(SETTINGS.model_copy(update={"k": 5}), "b", "settings"), (SETTINGS, "c", "bundle_id")],
)
def test_another_job_in_the_same_place_is_refused(
    source: Path, tmp_path: Path, settings: JobSettings, bundle_id: str, changed: str
) -> None:
    begin(source, tmp_path / "out")
    with pytest.raises(BatchError, match=f"another {changed}"):
        begin(source, tmp_path / "out", settings, bundle_id)
    pl.read_parquet(source).head(3).write_parquet(source)
    with pytest.raises(BatchError, match="another input_sha256"):
        begin(source, tmp_path / "out")


def test_histories_come_in_three_forms(source: Path, tmp_path: Path) -> None:
    wanted = {"a": ["x", "y"], "b": ["z"]}
    lines = [json.dumps({"user_id": user, "history": history}) for user, history in wanted.items()]
    (tmp_path / "h.jsonl").write_text("\n".join(lines))
    (tmp_path / "h.csv").write_text("user_id,item_id,timestamp,event\na,y,9,view\nb,z,4,view\na,x,3,view\n")
    for name in ("h.jsonl", "h.csv"):
        frame = read_histories(tmp_path / name)
        assert dict(zip(frame["user_id"], frame["history"].to_list(), strict=True)) == wanted


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("h.txt", "", "none of .parquet, .jsonl and .csv"),
        ("h.jsonl", '{"user_id": "a"}', "cannot be read"),
        ("h.jsonl", '{"user_id": "a", "history": ["x"]}\n' * 2, "more than once"),
        ("h.jsonl", '{"user_id": null, "history": ["x"]}', "without user_id"),
        ("h.csv", "user_id,item_id,timestamp\n", "no user"),
    ],
)
def test_bad_input_gets_a_sentence(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(BatchError, match=message):
        read_histories(tmp_path / name)


def test_bad_settings_get_a_sentence() -> None:
    with pytest.raises(BatchError, match="--rows-per-part"):
        parse_settings(kind="recommend", rows_per_part=0)
    with pytest.raises(BatchError, match="no JSON"):
        parse_filter("{")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_the_command_with_a_real_engine(request: pytest.FixtureRequest, tmp_path: Path, workers: int) -> None:
    if workers > 1:
        pytest.importorskip("ray", reason="more than one worker runs on Ray: pip install 'ray[data]'")
    bundle = request.getfixturevalue("tiny_bundle")("qwen3").bundle
    items = bundle.items["item_id"].to_list()
    frame = pl.DataFrame(
        {"user_id": list(map(str, range(30))), "history": [items[n : n + 3] for n in range(30)]}
    )
    frame.write_parquet(tmp_path / "h.parquet")
    arguments = ["batch", "--bundle", str(bundle.path), "--engine", "torch", "--workers", str(workers)]
    arguments += ["--cpus", "0.5", "--rows-per-part", "8", "--input", str(tmp_path / "h.parquet")]
    done = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    (tmp_path / "out/part-000002.parquet").unlink()
    again = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "out")])
    assert json.loads(again.stdout.splitlines()[-1])["answered_now"] == 8
    assert pl.read_parquet(tmp_path / "out/part-*.parquet")["user_id"].to_list() == frame["user_id"].to_list()
