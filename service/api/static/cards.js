// How items look.
import { h } from "./dom.js";
import { why } from "./why.js";

const SOURCES = {
  model: "decoded by the model",
  sibling: "shares the beginning of its ID with a decoded item",
  popular: "among the most popular items",
};

/** Facts of an item that can be filtered by; pressing one keeps only items like it. */
function facts(metadata, filterBy) {
  return Object.entries(metadata)
    .filter(([, value]) => ["string", "number", "boolean"].includes(typeof value) && String(value).length <= 40)
    .slice(0, 4)
    .map(([name, value]) => h("button", {
      type: "button", class: "fact", title: `Only items with ${name} = ${value}`,
      onclick: () => filterBy(name, value),
    }, `${name}: ${value}`));
}

/** One recommendation. `best` is the largest probability of its list; `actions` has explain, filterBy, add. */
export function card(item, best, { explain, filterBy, add }) {
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
        ...facts(item.metadata, filterBy)),
      why(item, () => explain(item.item_id))),
    h("div", { class: "score", title: item.logprob === null ? "" : `logprob ${item.logprob.toFixed(3)}` },
      h("span", {}, percent(item.probability)),
      h("span", { class: "track", "aria-hidden": "true" }, fill)),
    h("button", {
      type: "button", class: "ghost add", "aria-label": `Add ${name} to the history`, title: "Add to the history",
      onclick: () => add({ item_id: item.item_id, title: item.title }),
    }, "+"));
}

export function percent(probability) {
  if (probability === null) return "\u2013";
  const value = 100 * probability;
  return value < 0.001 ? "< 0.001 %" : `${value.toPrecision(value < 1 ? 2 : 3)} %`;
}

/** A semantic ID, each code in the colour of its level. */
export function sid(text) {
  const tokens = text.match(/<[^>]*>/g) ?? [];
  const spelled = tokens.map((token, level) =>
    h("span", { class: `level-${level % 4}` }, token.slice(1, -1).replace("_", "\u2009")));
  return h("code", { class: "sid", title: `semantic ID ${text}` }, ...spelled);
}
