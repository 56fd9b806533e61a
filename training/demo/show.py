"""Three users as a person wants to see them: titles they bought, titles that are recommended."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from training.demo.service_process import DemoError, ServiceProcess
from training.demo.users import Shop, User

NUM_SHOWN = 3
K = 5
NEWEST = 8


def show_users(service: ServiceProcess, shop: Shop, console: Console) -> None:
    """Ask the service for users picked by their place in the list, and print question and answer."""
    for user in shop.evenly_spread(NUM_SHOWN):
        reply = service.post("/recommend", {"history": user.history, "k": K})
        if reply.status != 200:
            raise DemoError(f"/recommend answered {reply.status}: {reply.body}")
        console.print(_table(user, shop, reply.body["items"]))


def _table(user: User, shop: Shop, items: list[dict]) -> Table:
    table = Table(title=user.user_id, title_justify="left", min_width=72)
    table.add_column("bought, oldest first", ratio=1)
    table.add_column("recommended next", ratio=1)
    table.add_column("p", justify="right")
    bought = [shop.titles[item_id] for item_id in user.history[-NEWEST:]]
    if len(user.history) > NEWEST:
        bought.insert(0, f"... and {len(user.history) - NEWEST} before")
    for row in range(max(len(bought), len(items))):
        item = items[row] if row < len(items) else None
        title, probability = "", ""
        if item:
            is_target = item["item_id"] == user.target
            title = f"{item['rank']}. {item['title']}" + (" <- bought next" if is_target else "")
            probability = "" if item["probability"] is None else f"{item['probability']:.3f}"
        table.add_row(bought[row] if row < len(bought) else "", title, probability)
    if user.target not in {item["item_id"] for item in items}:
        table.caption = f"bought next: {shop.titles[user.target]}"
        table.caption_justify = "left"
    return table
