// Live numbers of this replica, from its own /metrics, read only while the panel is open; and those of an
// experiment, which /info has for all replicas.
import { $, h } from "./dom.js";

const EVERY_MS = 3000;
let timer = 0;
let before = null;

/** Prometheus text -> [{name, labels, value}]. */
function parse(text) {
  return text.split("\n").filter((line) => line.startsWith("gtirec_")).map((line) => {
    const [, name, labels, value] = line.match(/^(\w+)(?:\{(.*)\})? (\S+)/) ?? [];
    const pairs = [...(labels ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map((pair) => [pair[1], pair[2]]);
    return { name, labels: Object.fromEntries(pairs), value: Number(value) };
  });
}

function sum(samples, name, labels = {}) {
  return samples
    .filter((sample) => sample.name === name)
    .filter((sample) => Object.entries(labels).every(([key, value]) => sample.labels[key] === value))
    .reduce((total, sample) => total + sample.value, 0);
}

/** A quantile of a histogram by its buckets, in milliseconds; null without observations. */
function quantile(samples, name, labels, share) {
  const buckets = samples
    .filter((sample) => sample.name === `${name}_bucket`)
    .filter((sample) => Object.entries(labels).every(([key, value]) => sample.labels[key] === value))
    .map((sample) => [Number(sample.labels.le.replace("+Inf", "Infinity")), sample.value])
    .sort((one, other) => one[0] - other[0])
    .reduce((merged, [bound, count]) => { // one histogram per variant: their buckets add up
      if (merged.at(-1)?.[0] === bound) merged.at(-1)[1] += count;
      else merged.push([bound, count]);
      return merged;
    }, []);
  const total = buckets.at(-1)?.[1];
  if (!total) return null;
  return 1000 * buckets.find(([, count]) => count >= share * total)[0];
}

async function show() {
  try {
    const samples = parse(await fetch("/metrics").then((response) => response.text()));
    const route = { route: "/recommend" };
    const now = { at: performance.now(), requests: sum(samples, "gtirec_requests_total", route) };
    const rate = before ? (1000 * (now.requests - before.requests)) / (now.at - before.at) : 0;
    before = now;
    const returned = sum(samples, "gtirec_recommendations_returned_total");
    const share = (source) => {
      const part = sum(samples, "gtirec_recommendations_returned_total", { source });
      return returned ? `${Math.round((100 * part) / returned)} %` : "\u2013";
    };
    const ms = (share) => {
      const value = quantile(samples, "gtirec_request_duration_seconds", route, share);
      return value === null ? "\u2013" : Number.isFinite(value) ? `\u2264 ${value} ms` : "> 30 s";
    };
    const facts = [
      ["requests", now.requests], ["per second", rate.toFixed(1)], ["half within", ms(0.5)], ["99 % within", ms(0.99)],
      ["from the model", share("model")], ["siblings", share("sibling")], ["popular", share("popular")],
      ["beams in work", sum(samples, "gtirec_inflight_beam_rows")],
      ["engine", sum(samples, "gtirec_engine_up", { variant: "a" }) ? "up" : "down"],
      ["rebuilds", sum(samples, "gtirec_engine_rebuilds_total")],
    ];
    $("numbers").replaceChildren(...facts.map(([name, value]) =>
      h("div", {}, h("dt", { class: "quiet" }, name), h("dd", {}, String(value)))));
  } catch {
    $("numbers").replaceChildren(h("div", {}, h("dd", {}, "The service cannot be reached.")));
  }
}

/** Follow the panel: read while it is open. */
export function follow(panel) {
  panel.addEventListener("toggle", () => {
    clearInterval(timer);
    before = null;
    if (!panel.open) return;
    show();
    timer = setInterval(show, EVERY_MS);
  });
}

/** What the variants of an experiment have earned; nothing where none is running. */
export function showExperiment(experiment) {
  $("experiment").hidden = !experiment?.variants;
  if (!experiment?.variants) return;
  const kinds = [...new Set(Object.values(experiment.variants).flatMap((one) => Object.keys(one.events)))].sort();
  const name = experiment.name || experiment.experiment_id;
  $("experiment").replaceChildren(
    h("h3", {}, `Experiment ${name}: ${+(100 * experiment.share).toPrecision(3)} % of the users get B`),
    h("div", { class: "scroll" }, h("table", {},
      h("thead", {}, h("tr", {}, ...["", "bundle", "answers", "given by A instead", ...kinds.map((kind) => `${kind} per answer`)]
        .map((title) => h("th", { scope: "col" }, title)))),
      h("tbody", {}, ...Object.entries(experiment.variants).map(([variant, one]) => h("tr", {},
        h("th", { scope: "row" }, variant.toUpperCase()),
        h("td", {}, h("code", {}, one.bundle_id)),
        h("td", {}, String(one.answers)),
        h("td", {}, variant === "b" ? String(one.fallbacks) : "\u2013"),
        ...kinds.map((kind) => h("td", {}, rate(one.events[kind])))))))));
}

function rate(numbers) {
  if (!numbers || numbers.rate === null) return "\u2013";
  return `${numbers.rate.toPrecision(2)} (${numbers.low.toPrecision(2)} to ${numbers.high.toPrecision(2)})`;
}
