// The page: a history of items, and what the service recommends after it. Text reaches the document
// only through textContent, so no title can become markup.
"use strict";

const $ = (id) => document.getElementById(id);
const history_ = [];
let found = [];
let marked = 0;
let asked = 0;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

async function call(path, body) {
  const headers = { Accept: "application/json" };
  if (body) headers["Content-Type"] = "application/json";
  if ($("key").value) headers["X-API-Key"] = $("key").value;
  const reply = await fetch(path, {
    method: body ? "POST" : "GET",
    headers,
    body: body ? JSON.stringify(body) : undefined,
  });
  const answer = await reply.json();
  if (reply.status === 401 || reply.status === 403) $("key-section").hidden = false;
  if (!reply.ok) throw Object.assign(new Error(answer.error || reply.statusText), { answer });
  return answer;
}

function showFault(error) {
  $("status").textContent = error.message;
  $("status").className = "fault";
  if (error.answer) $("response").textContent = JSON.stringify(error.answer, null, 2);
}

async function search() {
  const mine = ++asked;
  try {
    const answer = await call(`/items?limit=12&query=${encodeURIComponent($("search").value)}`);
    if (mine !== asked) return; // a later key press has asked again
    found = answer.items;
    marked = 0;
    drawFound();
  } catch (error) {
    showFault(error);
  }
}

function drawFound() {
  const rows = found.map((item, place) => {
    const row = element("li", "", item.title);
    row.id = `found-${place}`;
    row.setAttribute("role", "option");
    row.setAttribute("aria-selected", String(place === marked));
    row.addEventListener("click", () => pick(place));
    return row;
  });
  $("found").replaceChildren(...rows);
  $("search").setAttribute("aria-activedescendant", rows.length ? `found-${marked}` : "");
}

function pick(place) {
  if (!found[place]) return;
  history_.push(found[place]);
  $("search").value = "";
  search();
  refresh();
}

function drawHistory() {
  const rows = history_.map((item, place) => {
    const row = element("li");
    const remove = element("button", "remove", "\u00d7");
    remove.setAttribute("aria-label", `Remove ${item.title}`);
    remove.addEventListener("click", () => {
      history_.splice(place, 1);
      refresh();
    });
    row.append(element("span", "title", item.title), remove);
    return row;
  });
  $("history").replaceChildren(...rows);
  $("history-empty").hidden = history_.length > 0;
}

function drawItems(items) {
  const rows = items.map((item) => {
    const row = element("li");
    const title = element("span", "title", item.title);
    title.append(element("span", "sid", item.semantic_id));
    const chance = item.probability === null ? "" : `${(100 * item.probability).toPrecision(2)} %`;
    row.append(
      element("span", "rank", String(item.rank)),
      title,
      element("span", "chance", chance),
      element("span", `source ${item.source}`, item.source),
    );
    return row;
  });
  $("items").replaceChildren(...rows);
}

let waiting = 0;
async function refresh() {
  drawHistory();
  const mine = ++waiting;
  const body = {
    history: history_.map((item) => item.item_id),
    k: Number($("k").value) || 10,
    exclude_seen: $("exclude-seen").checked,
  };
  $("request").textContent = JSON.stringify(body, null, 2);
  try {
    const answer = await call("/recommend", body);
    if (mine !== waiting) return;
    drawItems(answer.items);
    const model = answer.items.filter((item) => item.source === "model").length;
    const notes = [`${answer.items.length} items, ${model} written by the model, in ${answer.timings.total} ms`];
    if (answer.short) notes.push("fewer than asked: no more are allowed");
    if (answer.degraded) notes.push("degraded: Redis is away, items come from memory");
    $("status").textContent = notes.join("; ");
    $("status").className = "quiet";
    $("response").textContent = JSON.stringify(answer, null, 2);
  } catch (error) {
    if (mine === waiting) showFault(error);
  }
}

$("search").addEventListener("input", search);
$("search").addEventListener("keydown", (event) => {
  const moves = { ArrowDown: 1, ArrowUp: -1 };
  if (event.key in moves && found.length) {
    marked = (marked + moves[event.key] + found.length) % found.length;
    drawFound();
    $(`found-${marked}`).scrollIntoView({ block: "nearest" });
    event.preventDefault();
  } else if (event.key === "Enter") {
    pick(marked);
    event.preventDefault();
  }
});
$("clear").addEventListener("click", () => {
  history_.length = 0;
  refresh();
});
$("k").addEventListener("change", refresh);
$("exclude-seen").addEventListener("change", refresh);
$("key").addEventListener("change", () => {
  search();
  refresh();
});
search();
refresh();
