// Why an item: the model's own scores without each history item, and what the codes of its ID mean.
import { h } from "./dom.js";

/** A panel that asks once, when it is first opened. `ask` gives {explanation, titles}. */
export function why(item, ask) {
  const body = h("div", { class: "why" });
  return h("details", { ontoggle: async (event) => {
    if (!event.target.open || body.childElementCount) return;
    body.replaceChildren(h("p", { class: "quiet" }, "asking the model again ..."));
    try {
      const { explanation, titles } = await ask();
      body.replaceChildren(...parts(item, explanation, titles));
    } catch (error) {
      body.replaceChildren(h("p", { class: "quiet" }, `It cannot be said now: ${error.message}`));
    }
  } }, h("summary", { "aria-label": `Why ${item.title || item.item_id}` }, "why?"), body);
}

function parts(item, explanation, titles) {
  const shown = [];
  const effects = explanation.effects.filter((effect) => Math.abs(effect.logprob_change) >= 0.01);
  if (effects.length) shown.push(h("h4", {}, "What the history did for it"), bars(effects, titles));
  const words = explanation.code_words.map((some, level) => meaning(item.semantic_id, level, some));
  shown.push(h("h4", {}, "What its codes mean"), h("ul", {}, ...words));
  const shared = explanation.shared.map((one) => h("li", {},
    `begins like ${titles(one.item_id)} (${one.levels} of ${explanation.code_words.length} codes)`));
  if (shared.length) shown.push(h("h4", {}, "Relatives in the history"), h("ul", {}, ...shared));
  if (!effects.length) shown.push(h("p", { class: "quiet" }, "No single item of the history moved its score."));
  return shown;
}

function bars(effects, titles) {
  const largest = Math.max(...effects.map((effect) => Math.abs(effect.logprob_change)));
  return h("ul", { class: "bars" }, ...effects.map((effect) => {
    const bar = h("span", { class: effect.logprob_change > 0 ? "fill" : "fill against" });
    bar.style.width = `${(100 * Math.abs(effect.logprob_change)) / largest}%`;
    const factor = Math.exp(effect.logprob_change);
    return h("li", {},
      h("span", {}, titles(effect.item_id)),
      h("span", { class: "track", "aria-hidden": "true" }, bar),
      h("span", { class: "quiet", title: `logprob ${effect.logprob_change.toFixed(3)}` }, `\u00d7 ${factor.toPrecision(2)}`));
  }));
}

function meaning(semanticId, level, words) {
  const tokens = semanticId.match(/<[^>]*>/g) ?? [];
  return h("li", {},
    h("code", {}, tokens.slice(0, level + 1).join("")),
    words.length ? ` ${words.join(", ")}` : h("span", { class: "quiet" }, " no telling words"));
}
