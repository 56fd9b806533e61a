"""`make demo CHECK=1`: does the running service answer as promised? Asked over HTTP only."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from training.demo.service_process import Http
from training.demo.users import Shop, User

K = 10
NUM_USERS = 200
# The demo's tastes are planted, so the model must find them: HR@10 on unseen rows at least this many
# times that of the ten most popular items, and at least this much in itself.
MIN_TIMES_POPULARITY = 4.0
MIN_HIT_RATE = 0.40


class CheckFailed(Exception):
    """An answer was not what it must be; the message shows both."""


Check = Callable[[Http, Shop], str]


def run_checks(service: Http, shop: Shop) -> Iterator[tuple[str, bool, str]]:
    """Run every check, failed ones included.

    Yields:
        The check's sentence, whether it holds, and what was found.
    """
    for check in CHECKS:
        sentence = (check.__doc__ or "").strip().splitlines()[0]
        try:
            yield sentence, True, check(service, shop)
        except (CheckFailed, OSError) as error:
            yield sentence, False, str(error)


def _need(condition: bool, found: object) -> None:
    if not condition:
        raise CheckFailed(str(found))


def _recommend(service: Http, **request: object) -> dict:
    reply = service.post("/recommend", request)
    _need(reply.status == 200, f"status {reply.status}: {reply.body}")
    return reply.body


def _check_one_answer(answer: dict, user: User, shop: Shop) -> None:
    items = answer["items"]
    ids = [item["item_id"] for item in items]
    _need(len(items) == K and not answer["short"], f"{user.user_id}: {len(items)} items, not {K}")
    _need(len(set(ids)) == K, f"{user.user_id}: an item twice in {ids}")
    _need(not answer["unknown_items"], f"{user.user_id}: unknown {answer['unknown_items']}")
    _need(not answer["degraded"], f"{user.user_id}: answered without Redis")
    _need([item["rank"] for item in items] == list(range(1, K + 1)), f"{user.user_id}: ranks are wrong")
    for item in items:
        title = shop.titles.get(item["item_id"])
        _need(
            title == item["title"], f"{user.user_id}: {item['item_id']} is {title!r}, not {item['title']!r}"
        )
    logprobs = [item["logprob"] for item in items if item["source"] == "model"]
    _need(len(logprobs) == K, f"{user.user_id}: only {len(logprobs)} of {K} come from the model")
    _need(logprobs == sorted(logprobs, reverse=True), f"{user.user_id}: not best first: {logprobs}")


def model_beats_popularity(service: Http, shop: Shop) -> str:
    """answers are items of the catalogue, best first, and hit more than a bestseller list does"""
    users = shop.evenly_spread(NUM_USERS)
    hits = popular_hits = 0
    for user in users:
        answer = _recommend(service, history=user.history, k=K)
        _check_one_answer(answer, user, shop)
        hits += user.target in {item["item_id"] for item in answer["items"]}
        popular_hits += user.target in shop.popular[:K]
    hit_rate, popular_rate = hits / len(users), popular_hits / len(users)
    found = f"HR@{K} {hit_rate:.3f} on {len(users)} unseen rows, the most popular items {popular_rate:.3f}"
    _need(hit_rate >= max(MIN_HIT_RATE, MIN_TIMES_POPULARITY * popular_rate), found)
    return found


def same_request_same_answer(service: Http, shop: Shop) -> str:
    """the same request gets the same items again"""
    history = shop.users[0].history
    first, second = (_recommend(service, history=history, k=K)["items"] for _ in range(2))
    ids = [[item["item_id"] for item in items] for items in (first, second)]
    _need(ids[0] == ids[1], ids)
    return f"{K} items, twice"


def excluded_items_stay_out(service: Http, shop: Shop) -> str:
    """excluded items do not come, and the answer is still full"""
    history = shop.users[0].history
    best = [item["item_id"] for item in _recommend(service, history=history, k=3)["items"]]
    answer = _recommend(service, history=history, k=K, exclude_items=best, exclude_seen=True)
    ids = {item["item_id"] for item in answer["items"]}
    _need(len(ids) == K and not ids & {*best, *history}, f"excluded {best}, got {sorted(ids)}")
    return f"{len(best)} excluded, {K} others came"


def strangers_get_the_popular_list(service: Http, shop: Shop) -> str:
    """an empty or wholly unknown history gets the popular list, labelled; unknown items are listed"""
    for history in ([], ["no-such-item"]):
        answer = _recommend(service, history=history, k=K)
        sources = {item["source"] for item in answer["items"]}
        _need(sources == {"popular"} and len(answer["items"]) == K, answer)
        _need(answer["unknown_items"] == history, answer["unknown_items"])
    mixed = _recommend(service, history=["no-such-item", *shop.users[0].history], k=K)
    _need(mixed["unknown_items"] == ["no-such-item"], mixed["unknown_items"])
    _need(mixed["items"][0]["source"] == "model", mixed["items"][0])
    return "empty, unknown and mixed histories"


def k_is_kept(service: Http, shop: Shop) -> str:
    """exactly k items come, from 1 to 200; any other k is refused with a sentence"""
    for k in (1, 7, 200):
        answer = _recommend(service, history=shop.users[0].history, k=k)
        num_items = len({item["item_id"] for item in answer["items"]})
        _need(num_items == min(k, len(shop.titles)), f"{num_items} items for k = {k}")
    for wrong in ({"k": 0}, {"k": 201}, {"histroy": []}, {"history": [7]}, []):
        reply = service.post("/recommend", wrong)
        _need(reply.status == 422 and bool(reply.body.get("error")), f"{wrong}: {reply.status} {reply.body}")
    return "k = 1, 7, 200; five malformed requests got 422"


def items_can_be_read(service: Http, shop: Shop) -> str:
    """an item can be asked for, and a missing one is 404"""
    item_id, title = next(iter(shop.titles.items()))
    found, missing = service.get(f"/items/{item_id}"), service.get("/items/no-such-item")
    _need(found.status == 200 and found.body["title"] == title, found)
    _need(missing.status == 404, missing)
    return title


def operations_answer(service: Http, shop: Shop) -> str:
    """the page, the API's documentation, the probes, the facts and the metrics are there"""
    for path in ("/", "/docs", "/openapi.json", "/livez", "/readyz", "/info", "/metrics"):
        reply = service.get(path)
        _need(reply.status == 200, f"{path}: {reply.status} {str(reply.body)[:200]}")
    info = service.get("/info").body
    _need(info["num_items"] == len(shop.titles), f"{info['num_items']} items served, not {len(shop.titles)}")
    _need("gtirec_" in service.get("/metrics").body, "no metric of ours in /metrics")
    return f"bundle {info['bundle_id']}, engine {info['engine']}"


CHECKS: tuple[Check, ...] = (
    operations_answer,
    model_beats_popularity,
    same_request_same_answer,
    excluded_items_stay_out,
    strangers_get_the_popular_list,
    k_is_kept,
    items_can_be_read,
)
