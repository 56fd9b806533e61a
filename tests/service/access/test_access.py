"""Keys, scopes, rotation and rates: the parts, and over HTTP with keys made by the command line."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import redis

from service.access import ApiKey, Caller, Rates, ring
from service.access.keys import new_key, split
from service.catalogue.keys import API_KEYS
from service.errors import RateLimited


def test_a_key_keeps_only_a_hash_and_accepts_only_its_secret():
    key, text = new_key("shop", ("read",))
    key_id, secret = split(text) or ("", "")
    assert key_id == key.key_id and secret not in key.model_dump_json()
    assert key.accepts(secret, time.time())
    assert not key.accepts(secret[:-1] + ("a" if secret[-1] != "a" else "b"), time.time())
    assert split(text + "x") is None and split("gtirec_1") is None


def test_expiry_and_rotation():
    key, text = new_key("shop", ("read",), expires_in_s=100)
    _, old = split(text) or ("", "")
    rotated, text = key.rotated(keep_old_s=10)
    _, new = split(text) or ("", "")
    now = time.time()
    assert rotated.accepts(old, now) and rotated.accepts(new, now)
    assert not rotated.accepts(old, now + 20) and rotated.accepts(new, now + 20)
    assert not rotated.accepts(new, now + 200)
    again, _ = rotated.rotated(keep_old_s=10)
    assert not again.accepts(old, now)  # only the last secret before has a grace


def test_rates_refill_and_bound_bursts():
    now = [0.0]
    rates = Rates(10.0, clock=lambda: now[0])
    ann, bob = Caller("ann", frozenset()), Caller("bob", frozenset(), rate_per_s=1.0)
    for _ in range(20):
        rates.take(ann)
    with pytest.raises(RateLimited, match="10 requests a second") as refused:
        rates.take(ann)
    assert refused.value.retry_after_s == pytest.approx(0.1)
    rates.take(bob, num_requests=256)  # dearer than the bucket: passes once, and is paid off
    now[0] += 100
    with pytest.raises(RateLimited):
        rates.take(bob)
    for _ in range(20):
        rates.take(ann)
    with pytest.raises(RateLimited):
        rates.take(ann)
    unbounded = Rates(None)
    for _ in range(1000):
        unbounded.take(ann)


def command(url: str, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "service", "keys", *arguments, "--redis-url", url],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return (done.stdout if code == 0 else done.stderr).strip()


async def status(running, method: str, path: str, key: str | None, **body) -> int:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    response = await running.client.request(method, path, headers=headers, **body)
    return response.status_code


VIEW = {"json": {"user_id": "ann", "item_id": "item-1", "type": "view"}}


@pytest.mark.anyio
async def test_keys_of_the_command_line_open_what_their_scopes_say(start_app, clean_redis, monkeypatch):
    monkeypatch.setattr(ring, "REFRESH_S", 0.05)
    url = clean_redis.url
    reader = command(url, "create", "--name", "shop")
    writer = command(url, "create", "--name", "tracker", "--scope", "write", "--scope", "read")
    with redis.Redis.from_url(url) as client:
        stored = client.hvals(API_KEYS)
        secret = reader.split("_", 2)[2].encode()  # it may hold underscores itself
        assert len(stored) == 2 and not any(secret in value for value in stored)
    async with start_app(host="0.0.0.0", require_key=True) as running:
        assert await status(running, "GET", "/info", None) == 401
        assert await status(running, "GET", "/info", "gtirec_00000000_" + "a" * 43) == 403
        assert await status(running, "GET", "/info", reader) == 200
        assert await status(running, "POST", "/events", reader, **VIEW) == 403
        assert await status(running, "POST", "/events", writer, **VIEW) == 200
        key_id = writer.split("_")[1]
        assert key_id in command(url, "list")
        fresh = command(url, "rotate", key_id, "--keep-old-hours", "1")
        command(url, "revoke", reader.split("_")[1])
        assert "there is no key" in command(url, "revoke", reader.split("_")[1], code=2)
        await running.until(lambda: running.services.callers.ring.get(reader.split("_")[1]) is None)
        assert await status(running, "GET", "/info", reader) == 403
        for key in (writer, fresh):
            assert await status(running, "POST", "/events", key, **VIEW) == 200
        clean_redis.kill()  # who was let in stays in
        assert await status(running, "GET", "/info", fresh) == 200


@pytest.mark.anyio
async def test_rate_of_a_key_is_429_with_retry_after(start_app, clean_redis):
    key = command(clean_redis.url, "create", "--name", "slow", "--rate", "1")
    async with start_app() as running:
        await running.until(lambda: running.services.callers.ring.is_known)
        headers = {"x-api-key": key}
        answers = [await running.client.get("/info", headers=headers) for _ in range(4)]
        assert [answer.status_code for answer in answers][:3] == [200, 200, 429]
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert answers[-1].json()["error_type"] == "rate_limited"
        assert await status(running, "GET", "/info", None) == 200  # others are not slowed down


@pytest.mark.anyio
async def test_a_damaged_key_opens_nothing_and_harms_nobody(start_app, clean_redis):
    good = command(clean_redis.url, "create", "--name", "shop")
    with redis.Redis.from_url(clean_redis.url) as client:
        client.hset(API_KEYS, "deadbeef", "{}")
    async with start_app() as running:
        await running.until(lambda: running.services.callers.ring.is_known)
        assert await status(running, "GET", "/info", "gtirec_deadbeef_" + "a" * 43) == 403
        assert await status(running, "GET", "/info", good) == 200
        assert await status(running, "GET", "/info", "a gateway's own token") == 200  # none of ours


def test_wrong_scope_is_a_sentence(clean_redis):
    assert "--scope must be read, write, preview or admin" in command(
        clean_redis.url, "create", "--name", "x", "--scope", "root", code=2
    )


def test_a_stored_key_survives_its_own_format():
    key, _ = new_key("shop", ("read", "admin"), rate_per_s=3.0)
    assert ApiKey.model_validate_json(key.model_dump_json()) == key
