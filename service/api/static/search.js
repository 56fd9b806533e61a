// The search field: titles as they are typed, picked by keyboard or pointer.
import { $, h } from "./dom.js";
import { call } from "./api.js";
import { sid } from "./cards.js";

const WAIT_MS = 120; // after the last key stroke

let found = []; // items in the list below the search field
let foundFor = null; // the query they were found for
let active = -1; // which of them the arrow keys are on
let searching = null; // AbortController of the search in flight
let onPick = () => {};
let onError = () => {};
let onBackspace = () => {};

/** Run an action once there was no further call for a moment. */
export function later(action) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, WAIT_MS);
  };
}

/** Begin: `pick` gets an item, `fail` an error, `undo` is called for a backspace in the empty field. */
export function searchWith({ pick, fail, undo }) {
  [onPick, onError, onBackspace] = [pick, fail, undo];
  $("search").addEventListener("input", later(search));
  $("search").addEventListener("focus", search);
  $("search").addEventListener("blur", () => setOpen(false));
  $("search").addEventListener("keydown", onSearchKey);
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
    onError(error);
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
  onPick(found[index]);
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
  } else if (event.key === "Backspace" && !$("search").value) {
    onBackspace();
  }
}
