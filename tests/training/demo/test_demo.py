"""The demo's checks find what is wrong, and a service that does not start is one clear message."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from training.demo.__main__ import _need_free
from training.demo.checks import CHECKS, run_checks
from training.demo.service_process import DemoError, Reply, ServiceProcess
from training.demo.show import show_users
from training.demo.users import Shop, User

NUM_ITEMS = 250
IDS = [f"i{n}" for n in range(NUM_ITEMS)]
SHOP = Shop(
    titles={item_id: f"Title of {item_id}" for item_id in IDS},
    # Everybody's next item is the one after the last; the popular ones are at the other end.
    users=tuple(User(f"u{n}", (IDS[n], IDS[n + 1]), IDS[n + 2]) for n in range(200)),
    popular=tuple(reversed(IDS)),
)


class RightService:
    """Answers everything as the real service promises: the items that follow the history's last one."""

    def get(self, path: str) -> Reply:
        if path.startswith("/items/"):
            title = SHOP.titles.get(path.removeprefix("/items/"))
            return Reply(200, {"title": title}) if title else Reply(404, {"error": "no such item"})
        if path == "/info":
            return Reply(200, {"num_items": NUM_ITEMS, "bundle_id": "b", "engine": "e"})
        return Reply(200, "gtirec_requests_total 1")

    def post(self, path: str, body: Any) -> Reply:
        if not self._is_valid(body):
            return Reply(422, {"error": "a sentence"})
        known = [item_id for item_id in body["history"] if item_id in SHOP.titles]
        start = IDS.index(known[-1]) + 1 if known else 0
        ranking = IDS[start:] + IDS[:start] if known else list(SHOP.popular)
        left_out = {*body.get("exclude_items", []), *(known if body.get("exclude_seen") else [])}
        picked = [item_id for item_id in ranking if item_id not in left_out][: body["k"]]
        items = [self._item(item_id, rank, bool(known)) for rank, item_id in enumerate(picked, start=1)]
        unknown = [item_id for item_id in body["history"] if item_id not in SHOP.titles]
        return Reply(200, {"items": items, "unknown_items": unknown, "short": False, "degraded": False})

    @staticmethod
    def _is_valid(body: Any) -> bool:
        if not isinstance(body, dict) or set(body) - {"history", "k", "exclude_items", "exclude_seen"}:
            return False
        is_text = all(isinstance(item_id, str) for item_id in body.get("history", []))
        return is_text and 1 <= body.get("k", 10) <= 200

    @staticmethod
    def _item(item_id: str, rank: int, is_model: bool) -> dict[str, Any]:
        return {
            "item_id": item_id,
            "rank": rank,
            "title": SHOP.titles[item_id],
            "logprob": -float(rank) if is_model else None,
            "probability": 0.5**rank if is_model else None,
            "source": "model" if is_model else "popular",
        }


class WrongService(RightService):
    """The right service with one thing spoiled in every successful recommendation."""

    def __init__(self, spoil: Callable[[dict[str, Any]], None]) -> None:
        self._spoil = spoil

    def post(self, path: str, body: Any) -> Reply:
        reply = super().post(path, body)
        if reply.status == 200:
            self._spoil(reply.body)
        return reply


def _rotate_away_from_the_target(answer: dict[str, Any]) -> None:
    for item in answer["items"]:
        item["item_id"] = IDS[(IDS.index(item["item_id"]) + 100) % NUM_ITEMS]
        item["title"] = SHOP.titles[item["item_id"]]


SPOILED: dict[str, Callable[[dict[str, Any]], None]] = {
    "an item too few": lambda answer: answer["items"].pop(),
    "an item twice": lambda answer: answer["items"].__setitem__(1, answer["items"][0]),
    "an invented item": lambda answer: answer["items"][0].update(item_id="invented"),
    "a wrong title": lambda answer: answer["items"][0].update(title="Another"),
    "not best first": lambda answer: answer["items"][0].update(logprob=-99.0),
    "answered without Redis": lambda answer: answer.update(degraded=True),
    "nothing from the model": lambda answer: [item.update(source="popular") for item in answer["items"]],
    "no better than chance": _rotate_away_from_the_target,
}


def test_a_right_service_passes_every_check() -> None:
    results = list(run_checks(RightService(), SHOP))
    assert len(results) == len(CHECKS)
    assert [found for _, is_ok, found in results if not is_ok] == []


@pytest.mark.parametrize("what", SPOILED)
def test_a_wrong_answer_fails_a_check(what: str) -> None:
    assert not all(is_ok for _, is_ok, _ in run_checks(WrongService(SPOILED[what]), SHOP))


def test_users_are_picked_by_place_alone() -> None:
    assert [user.user_id for user in SHOP.evenly_spread(4)] == ["u25", "u75", "u125", "u175"]
    assert len(SHOP.evenly_spread(1000)) == len(SHOP.users)


def test_users_are_shown_as_titles() -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    show_users(RightService(), SHOP, console)
    text = console.export_text()
    assert text.count("recommended, with the model's probability") == 3
    assert "1. 0.500  Title of i35   <- bought next" in text


def test_a_service_that_ends_is_reported_with_its_log(tmp_path: Path) -> None:
    service = ServiceProcess(tmp_path / "no-bundle", port=0, work_dir=tmp_path)
    service.start()
    try:
        with pytest.raises(DemoError, match=r"exit code 2\n(.|\n)*service\.log(.|\n)*no-bundle"):
            service.wait_until_ready(60)
    finally:
        service.stop()


def test_a_taken_port_is_said_before_anything_is_trained() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(DemoError, match=f"port {taken.getsockname()[1]} is taken"):
            _need_free(taken.getsockname()[1])
