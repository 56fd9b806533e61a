// The demo page: pick a history, see what is recommended, see what went over the wire.
import { $, h, pretty } from "./dom.js";
import { call, headers, key, Refused } from "./api.js";
import { card } from "./cards.js";
import { compare, showChoice } from "./compare.js";
import { follow, showExperiment } from "./numbers.js";
import { later, searchWith } from "./search.js";

const history = []; // items, oldest first
let experiment = null; // the running one, as /info tells it
let asking = null; // AbortController of the recommendation in flight

// --- the history -------------------------------------------------------------------------------------

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
  const variants = experiment && $("compare").checked ? ["a", "b"] : [undefined];
  const bodies = variants.map((variant) => (variant ? { ...body, variant } : body));
  $("request").textContent = bodies.map(pretty).join("\n");
  $("results").setAttribute("aria-busy", "true");
  try {
    const { signal } = asking;
    const answers = await Promise.all(bodies.map((one) => call("/recommend", { method: "POST", body: one, signal })));
    $("response").textContent = answers.map((answer) => pretty(answer.body)).join("\n");
    $("code").textContent = "200";
    $("took").textContent = answers.map((answer) => `${answer.ms.toFixed(0)} ms`).join(" \u00b7 ");
    say(notes(answers[0].body), false);
    $("items").hidden = variants.length > 1;
    $("sides").hidden = variants.length === 1;
    if (variants.length > 1) compare(answers.map((answer) => answer.body), bodies.map(actionsFor));
    else showItems(answers[0].body.items, actionsFor(body));
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

/** What can be done with the items of an answer. */
function actionsFor(body) {
  return { explain: explainer(body), filterBy, add };
}

function showItems(items, actions) {
  const best = Math.max(0, ...items.map((item) => item.probability ?? 0));
  $("items").replaceChildren(...items.map((item) => card(item, best, actions)));
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
  if (isReady && (await showInfo()) && !wasReady) recommend();
  setTimeout(showStatus, isReady ? 10000 : 1000);
}

async function showInfo() {
  try {
    const { body } = await call("/info");
    $("served").textContent =
      `${body.bundle_name} \u00b7 ${body.num_items.toLocaleString("en")} items \u00b7 ${body.engine}`;
    $("k").max = body.limits.max_k;
    $("beam-width").max = body.limits.max_beam_width;
    const wasComparing = experiment && $("compare").checked;
    experiment = body.experiment;
    showChoice(experiment);
    showExperiment(experiment);
    if (wasComparing && !experiment) recommend(); // it has ended: one list again
    return true;
  } catch (error) {
    report(error);
    return false;
  }
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

searchWith({ pick: add, fail: report, undo: () => history.length && remove(history.length - 1) });
$("clear").addEventListener("click", () => {
  history.length = 0;
  showHistory();
  recommend();
  $("search").focus();
});
for (const id of ["k", "beam-width", "exclude-seen", "filter", "compare"]) $(id).addEventListener("input", later(recommend));
$("copy").addEventListener("click", copyCurl);
$("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  key.set($("key").value);
  $("key-form").hidden = true;
  say("", false);
  if (await showInfo()) recommend();
});
follow($("live"));
showHistory();
showStatus();
