"""Three users as a person wants to see them: titles they bought, titles that are recommended."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from training.demo.service_process import DemoError, Http
from training.demo.users import Shop, User

NUM_SHOWN = 3
K = 5
NEWEST = 6


def show_users(service: Http, shop: Shop, console: Console) -> None:
    """Ask the service for users picked by their place in the list, and print question and answer."""
    for user in shop.evenly_spread(NUM_SHOWN):
        reply = service.post("/recommend", {"history": user.history, "k": K})
        if reply.status != 200:
            raise DemoError(f"/recommend answered {reply.status}: {reply.body}")
        for line in _lines(user, shop, reply.body["items"]):
            console.print(line, soft_wrap=True)


def _lines(user: User, shop: Shop, items: list[dict]) -> list[Text]:
    lines = [Text(user.user_id, "bold"), Text("  bought, oldest first", "dim")]
    if len(user.history) > NEWEST:
        lines.append(Text(f"    ... {len(user.history) - NEWEST} items before", "dim"))
    lines += [Text(f"    {shop.titles[item_id]}") for item_id in user.history[-NEWEST:]]
    lines.append(Text("  recommended, with the model's probability", "dim"))
    for item in items:
        is_target = item["item_id"] == user.target
        probability = "     " if item["probability"] is None else f"{item['probability']:.3f}"
        note = "   <- bought next" if is_target else ""
        line = f"    {item['rank']}. {probability}  {item['title']}{note}"
        lines.append(Text(line, "green" if is_target else ""))
    if user.target not in {item["item_id"] for item in items}:
        lines.append(Text(f"  bought next: {shop.titles[user.target]}", "dim"))
    return [*lines, Text("")]
