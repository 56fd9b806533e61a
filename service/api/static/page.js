// The demo page: pick a history, see what is recommended, see what went over the wire.
import { $, h, pretty } from "./dom.js";
import { call, headers, key, Refused } from "./api.js";
import { follow } from "./numbers.js";
import { why } from "./why.js";

const WAIT_MS = 120; // after the last key stroke
const SOURCES = {
  model: "decoded by the model",
  sibling: "shares the beginning of its ID with a decoded item",
  popular: "among the most popular items",
};

const history = []; // items, oldest first
let found = []; // items in the list below the search field
let foundFor = null; // the query they were found for
let active = -1; // which of them the arrow keys are on
let searching = null; // AbortController of the search in flight
let asking = null; // AbortController of the recommendation in flight

// --- picking a history ---------------------------------------------------------------------------

function later(action) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, WAIT_MS);
  };
}

async function search() {
  searching?.abort();
  searching = new AbortController();
  const query = $("search").value.slice(0, 200);
  try {
    const { body } = await call(`/items?limit=8&query=${encodeURIComponent(query)}`, {
      signal: searching.signal,
    });
    foundFor = query;
    if (document.activeElement === $("search")) showFound(body.items);
  } catch (error) {
    report(error);
  }
}

function showFound(items) {
  found = items;
  active = items.length ? 0 : -1;
  $("found").replaceChildren(
    ...items.map((item, index) =>
      h("li", { role: "option", id: `found-${index}`, onpointerdown: (event) => onPointer(event, index) },
        h("span", {}, item.title || item.item_id), sid(item.semantic_id))),
    ...(items.length ? [] : [h("li", { class: "quiet" }, "No title holds these words")]),
  );
  setOpen(true);
  markActive();
}

function setOpen(isOpen) {
  $("found").hidden = !isOpen;
  $("search").setAttribute("aria-expanded", String(isOpen));
  if (!isOpen) $("search").removeAttribute("aria-activedescendant");
}

function markActive() {
  [...$("found").children].forEach((option, index) => {
    option.setAttribute("aria-selected", String(index === active));
    if (index === active) option.scrollIntoView({ block: "nearest" });
  });
  if (active >= 0) $("search").setAttribute("aria-activedescendant", `found-${active}`);
}

function onPointer(event, index) {
  event.preventDefault(); // the field keeps the focus
  pick(index);
}

function pick(index) {
  add(found[index]);
  $("search").value = "";
  foundFor = null;
  setOpen(false);
}

async function pickActive() {
  // Whoever types fast means what stands in the field, not the list of a moment ago.
  const isStale = () => foundFor !== $("search").value.slice(0, 200);
  for (let tries = 0; tries < 3 && isStale(); tries += 1) await search(); // a later key stroke may abort it
  if (isStale()) return;
  if (active >= 0 && !$("found").hidden) pick(active);
}

function onSearchKey(event) {
  if (event.isComposing) return;
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    if ($("found").hidden) return void search();
    if (!found.length) return;
    active = (active + (event.key === "ArrowDown" ? 1 : -1) + found.length) % found.length;
    markActive();
  } else if (event.key === "Enter") {
    event.preventDefault();
    pickActive();
  } else if (event.key === "Escape") {
    setOpen(false);
  } else if (event.key === "Backspace" && !$("search").value && history.length) {
    remove(history.length - 1);
  }
}

function add(item) {
  history.push(item);
  showHistory();
  recommend();
}

function remove(index) {
  history.splice(index, 1);
  showHistory();
  recommend();
  const left = $("history").querySelectorAll("button");
  (left[Math.min(index, left.length - 1)] ?? $("search")).focus();
}

function showHistory() {
  $("history").replaceChildren(...history.map((item, index) =>
    h("li", {},
      h("span", {}, item.title || item.item_id),
      h("button", {
        type: "button", class: "ghost", "aria-label": `Remove ${item.title || item.item_id}`,
        onclick: () => remove(index),
      }, "\u00d7"))));
  $("history-empty").hidden = history.length > 0;
  $("clear").disabled = history.length === 0;
}

// --- recommending --------------------------------------------------------------------------------

function request() {
  const body = { history: history.map((item) => item.item_id), k: Number($("k").value) || 10 };
  if ($("beam-width").value) body.beam_width = Number($("beam-width").value);
  if ($("exclude-seen").checked) body.exclude_seen = true;
  const filter = readFilter();
  if (filter) body.filter = filter;
  return body;
}

/** The filter field as JSON; null, with a sentence beside the field, where it is none. */
function readFilter() {
  const text = $("filter").value.trim();
  let filter = null;
  let problem = "";
  try {
    if (text) filter = JSON.parse(text);
  } catch {
    problem = 'Not JSON yet; write it like {"colour": "red", "price": {"lt": 50}}.';
  }
  $("filter-problem").textContent = problem;
  $("filter-problem").hidden = !problem;
  return filter;
}

function filterBy(name, value) {
  $("filter").value = JSON.stringify({ ...readFilter(), [name]: value });
  recommend();
}

async function recommend() {
  asking?.abort();
  asking = new AbortController();
  const body = request();
  $("request").textContent = pretty(body);
  $("results").setAttribute("aria-busy", "true");
  try {
    const answer = await call("/recommend", { method: "POST", body, signal: asking.signal });
    $("response").textContent = pretty(answer.body);
    $("code").textContent = "200";
    $("took").textContent = `${answer.ms.toFixed(0)} ms`;
    say(notes(answer.body), false);
    showItems(answer.body.items, explainer(body));
  } catch (error) {
    if (error.name === "AbortError") return;
    $("code").textContent = error.status ?? "";
    $("response").textContent = error.body ? pretty(error.body) : "";
    $("took").textContent = "";
    report(error);
  }
  $("results").removeAttribute("aria-busy");
}

function notes(answer) {
  const sentences = [];
  if (answer.unknown_items.length) sentences.push(`Not in the catalogue: ${answer.unknown_items.join(", ")}.`);
  if (answer.short) sentences.push("Fewer items exist than were asked for.");
  if (answer.degraded) sentences.push("Something is away; these are the best items that can be had without it.");
  return sentences.join(" ");
}

/** Asks for the explanations of an answer, once for all its items. */
function explainer(body) {
  const titles = new Map(history.map((item) => [item.item_id, item.title || item.item_id]));
  let asked = null;
  return async (itemId) => {
    asked ??= call("/recommend", { method: "POST", body: { ...body, explain: true } });
    try {
      const item = (await asked).body.items.find((one) => one.item_id === itemId);
      if (!item) throw new Error("the answer has changed since; ask again");
      return { explanation: item.explanation, titles: (id) => titles.get(id) ?? id };
    } catch (error) {
      asked = null;
      throw error;
    }
  };
}

function showItems(items, explain) {
  const best = Math.max(0, ...items.map((item) => item.probability ?? 0));
  $("items").replaceChildren(...items.map((item) => card(item, best, explain)));
}

/** Facts of an item that can be filtered by; pressing one keeps only items like it. */
function facts(metadata) {
  return Object.entries(metadata)
    .filter(([, value]) => ["string", "number", "boolean"].includes(typeof value) && String(value).length <= 40)
    .slice(0, 4)
    .map(([name, value]) => h("button", {
      type: "button", class: "fact", title: `Only items with ${name} = ${value}`,
      onclick: () => filterBy(name, value),
    }, `${name}: ${value}`));
}

function card(item, best, explain) {
  const share = best && item.probability !== null ? Math.max(item.probability / best, 0.005) : 0;
  const fill = h("span", { class: "fill" });
  fill.style.width = `${100 * share}%`;
  const name = item.title || item.item_id;
  return h("li", {},
    h("span", { class: "rank", "aria-hidden": "true" }, String(item.rank)),
    h("div", { class: "what" },
      h("strong", {}, name),
      h("div", { class: "facts" },
        sid(item.semantic_id),
        h("span", { class: `source ${item.source}`, title: SOURCES[item.source] }, item.source),
        ...facts(item.metadata)),
      why(item, () => explain(item.item_id))),
    h("div", { class: "score", title: item.logprob === null ? "" : `logprob ${item.logprob.toFixed(3)}` },
      h("span", {}, percent(item.probability)),
      h("span", { class: "track", "aria-hidden": "true" }, fill)),
    h("button", {
      type: "button", class: "ghost add", "aria-label": `Add ${name} to the history`, title: "Add to the history",
      onclick: () => add({ item_id: item.item_id, title: item.title }),
    }, "+"));
}

function percent(probability) {
  if (probability === null) return "\u2013";
  const value = 100 * probability;
  return value < 0.001 ? "< 0.001 %" : `${value.toPrecision(value < 1 ? 2 : 3)} %`;
}

function sid(text) {
  const tokens = text.match(/<[^>]*>/g) ?? [];
  const spelled = tokens.map((token, level) =>
    h("span", { class: `level-${level % 4}` }, token.slice(1, -1).replace("_", "\u2009")));
  return h("code", { class: "sid", title: `semantic ID ${text}` }, ...spelled);
}

// --- the service itself --------------------------------------------------------------------------

function say(sentence, isError) {
  $("message").textContent = sentence;
  $("message").hidden = !sentence;
  $("message").classList.toggle("error", isError);
}

function report(error) {
  if (error.name === "AbortError") return;
  if (error instanceof Refused && (error.status === 401 || error.status === 403)) {
    $("key-form").hidden = false;
    $("key").focus();
  }
  say(error instanceof Refused ? capital(error.message) : "The service cannot be reached.", true);
}

function capital(sentence) {
  return sentence.charAt(0).toUpperCase() + sentence.slice(1);
}

async function showStatus() {
  let isReady = false;
  try {
    const readiness = await fetch("/readyz").then((response) => response.json());
    isReady = readiness.ready;
    $("status").textContent = isReady ? "ready" : "not ready";
    $("status").title = isReady ? readiness.engine : readiness.reasons.join("; ");
  } catch {
    $("status").textContent = "unreachable";
  }
  const wasReady = $("status").classList.contains("ready");
  $("status").classList.toggle("ready", isReady);
  if (isReady && !wasReady) await showInfo();
  setTimeout(showStatus, isReady ? 10000 : 1000);
}

async function showInfo() {
  try {
    const { body } = await call("/info");
    $("served").textContent =
      `${body.bundle_name} \u00b7 ${body.num_items.toLocaleString("en")} items \u00b7 ${body.engine}`;
    $("k").max = body.limits.max_k;
    $("beam-width").max = body.limits.max_beam_width;
  } catch (error) {
    report(error);
    return;
  }
  recommend();
}

async function copyCurl() {
  const given = Object.keys(headers()).length ? " -H 'Authorization: Bearer KEY'" : "";
  const json = JSON.stringify(request()).replaceAll("'", "'\\''");
  const command = `curl -s ${location.origin}/recommend${given} -H 'Content-Type: application/json' -d '${json}'`;
  try {
    await navigator.clipboard.writeText(command);
    $("copy").textContent = "Copied";
  } catch {
    $("copy").textContent = "The browser forbids copying";
  }
  setTimeout(() => ($("copy").textContent = "Copy as curl"), 1500);
}

$("search").addEventListener("input", later(search));
$("search").addEventListener("focus", search);
$("search").addEventListener("blur", () => setOpen(false));
$("search").addEventListener("keydown", onSearchKey);
$("clear").addEventListener("click", () => {
  history.length = 0;
  showHistory();
  recommend();
  $("search").focus();
});
for (const id of ["k", "beam-width", "exclude-seen", "filter"]) $(id).addEventListener("input", later(recommend));
$("copy").addEventListener("click", copyCurl);
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set($("key").value);
  $("key-form").hidden = true;
  say("", false);
  showInfo();
});
follow($("live"));
showHistory();
showStatus();
