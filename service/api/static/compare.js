// Two bundles side by side: the same history, an experiment's A and B, and where their answers differ.
import { $, h } from "./dom.js";
import { card } from "./cards.js";

/** Offer the comparison while an experiment is running. */
export function showChoice(experiment) {
  $("compare-choice").hidden = !experiment;
  if (!experiment) return;
  const name = experiment.name ? ` (${experiment.name})` : "";
  $("compare-choice").title = `Experiment ${experiment.experiment_id}${name}`;
}

/** Show two answers in two columns. `actions`: for each, what its cards can do. */
export function compare(answers, actions) {
  const places = answers.map((answer) => new Map(answer.items.map((item) => [item.item_id, item.rank])));
  const best = Math.max(0, ...answers.flatMap((answer) => answer.items.map((item) => item.probability ?? 0)));
  $("sides").replaceChildren(
    h("p", { class: "quiet", role: "status" }, summary(answers, places)),
    ...answers.map((answer, index) => side(answer, "ab"[index], places[1 - index], best, actions[index])),
  );
}

function side(answer, variant, elsewhere, best, actions) {
  const title = variant === "a" ? "A, the active bundle" : "B, the one being tried";
  const other = variant === "a" ? "B" : "A";
  return h("section", { class: "side", "aria-label": title },
    h("h3", {}, title),
    h("p", { class: "quiet" }, h("code", {}, answer.bundle_id)),
    answer.variant === variant ? null : h("p", { class: "notice" }, `${variant.toUpperCase()} cannot answer now; this is ${other}'s answer.`),
    h("ol", { class: "items" }, ...answer.items.map((item) => marked(item, elsewhere, other, best, actions))));
}

/** A card with a mark that says where the other column has the item. */
function marked(item, elsewhere, other, best, actions) {
  const element = card(item, best, actions);
  element.dataset.item = item.item_id;
  const rank = elsewhere.get(item.item_id);
  const up = rank === undefined ? 0 : rank - item.rank;
  const [kind, text, meaning] = rank === undefined
    ? ["only", "only here", `not among ${other}'s items`]
    : up > 0 ? ["up", `\u25b2 ${up}`, `${places(up)} higher than in ${other}`]
    : up < 0 ? ["down", `\u25bc ${-up}`, `${places(-up)} lower than in ${other}`]
    : ["same", "=", `the same place as in ${other}`];
  element.classList.add(`is-${kind}`);
  element.querySelector(".facts").prepend(
    h("span", { class: `mark ${kind}`, title: meaning },
      h("span", { "aria-hidden": "true" }, text), h("span", { class: "hidden" }, meaning)));
  for (const [event, isOn] of [["pointerenter", true], ["pointerleave", false], ["focusin", true], ["focusout", false]]) {
    element.addEventListener(event, () => showTwin(item.item_id, isOn));
  }
  return element;
}

function showTwin(itemId, isOn) {
  for (const one of $("sides").querySelectorAll("li[data-item]")) {
    if (one.dataset.item === itemId) one.classList.toggle("twin", isOn);
  }
}

function places(number) {
  return number === 1 ? "1 place" : `${number} places`;
}

function summary([a, b], [inA, inB]) {
  const shared = a.items.filter((item) => inB.has(item.item_id));
  const moves = shared.map((item) => Math.abs(item.rank - inB.get(item.item_id)));
  const same = moves.filter((move) => move === 0).length;
  const alone = `${a.items.length - shared.length} only in A, ${b.items.filter((item) => !inA.has(item.item_id)).length} only in B`;
  return `${shared.length} items in both (${same} at the same place), ${alone}.`;
}
