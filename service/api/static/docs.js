// The API reference: draws /openapi.json, and sends real requests.
import { $, h, inline, pretty, prose } from "./dom.js";
import { headers, key } from "./api.js";

let schemas = {};

const resolve = (schema) => (schema?.$ref ? schemas[schema.$ref.split("/").at(-1)] : schema) ?? {};

/** A schema in a few words: "list of string or HistoryEvent". */
function typeOf(schema) {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.anyOf) return [...new Set(schema.anyOf.map(typeOf))].join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.type === "array") return `list of ${typeOf(schema.items ?? {})}`;
  if (schema.type === "object" && schema.additionalProperties?.type) return `map to ${typeOf(schema.additionalProperties)}`;
  return schema.format ? `${schema.type} (${schema.format})` : schema.type ?? "anything";
}

function limitsOf(schema) {
  const parts = [schema, ...(schema.anyOf ?? [])];
  const value = (name) => parts.map((part) => part[name]).find((each) => each !== undefined);
  const words = [];
  if (value("minimum") !== undefined) words.push(`>= ${value("minimum")}`);
  if (value("maximum") !== undefined) words.push(`<= ${value("maximum")}`);
  if (value("minLength") !== undefined) words.push(`${value("minLength")} to ${value("maxLength") ?? "any"} characters`);
  if (schema.default !== undefined && schema.default !== null) words.push(`default ${JSON.stringify(schema.default)}`);
  return words.join(", ");
}

function table(heads, rows) {
  return h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, ...heads.map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, ...rows.map((cells) => h("tr", {}, ...cells.map((cell) => h("td", {}, ...(typeof cell === "string" ? inline(cell) : [cell]))))))));
}

function fields(schema) {
  const required = new Set(schema.required ?? []);
  return Object.entries(schema.properties ?? {}).map(([name, field]) => [
    h("code", {}, name),
    `${typeOf(field)}${required.has(name) ? "" : ", optional"}`,
    [field.description ?? "", limitsOf(field)].filter(Boolean).join(" \u2014 "),
  ]);
}

/** Tables of a schema and of those it names, each once: a filter may hold filters. */
function schemaBlock(title, schema, seen = new Set()) {
  const body = resolve(schema);
  if (!body.properties || seen.has(body)) return [];
  seen.add(body);
  const nested = Object.values(body.properties)
    .flatMap((field) => [field, field.items ?? {}, ...(field.anyOf ?? []), ...(field.items?.anyOf ?? [])])
    .map((field) => field.$ref).filter(Boolean);
  return [
    h("h3", {}, title), table(["field", "type", "meaning"], fields(body)),
    ...[...new Set(nested)].flatMap((ref) => schemaBlock(ref.split("/").at(-1), { $ref: ref }, seen)),
  ];
}

function parameters(operation) {
  if (!operation.parameters?.length) return [];
  const rows = operation.parameters.map((each) => [
    h("code", {}, each.name), `${typeOf(each.schema)}, in ${each.in}${each.required ? "" : ", optional"}`,
    [each.description ?? each.schema.description ?? "", limitsOf(each.schema)].filter(Boolean).join(" \u2014 "),
  ]);
  return [h("h3", {}, "Parameters"), table(["name", "type", "meaning"], rows)];
}

function responses(operation) {
  const rows = Object.entries(operation.responses).map(([status, response]) => {
    const schema = response.content?.["application/json"]?.schema;
    return [h("code", {}, status), schema ? typeOf(schema) : "", response.description ?? ""];
  });
  return [h("h3", {}, "Answers"), table(["status", "body", "meaning"], rows)];
}

const LINES = "application/x-ndjson";
const bodySchema = (operation) => operation.requestBody?.content?.["application/json"]?.schema;
const bodyLines = (operation) => operation.requestBody?.content?.[LINES];
const answerSchema = (operation) => {
  const content = operation.responses["200"]?.content;
  return (content?.["application/json"] ?? content?.[LINES])?.schema;
};

/** Inputs, a Send button and the answer. */
function tryIt(method, path, operation) {
  const inputs = (operation.parameters ?? []).filter((each) => each.in !== "header").map((each) => ({
    each, input: h("input", { type: "text", value: each.schema.default ?? "", "aria-label": each.name }),
  }));
  const lines = bodyLines(operation);
  const examples = resolve(bodySchema(operation)).examples ?? [];
  const body = (lines || bodySchema(operation)) && h("textarea", { spellcheck: "false", "aria-label": "Request body" });
  if (body) body.value = lines ? lines.example ?? "" : pretty(examples[0] ?? {});
  const status = h("span", { class: "quiet", role: "status" });
  const output = h("pre", { hidden: true, tabindex: "0" });

  async function send() {
    const url = fillIn(path, inputs);
    const started = performance.now();
    output.hidden = false;
    try {
      const response = await fetch(url, {
        method: method.toUpperCase(), body: body?.value,
        headers: body ? { ...headers(), "Content-Type": lines ? LINES : "application/json" } : headers(),
      });
      const text = await response.text();
      const json = response.headers.get("content-type") === "application/json";
      output.textContent = json ? pretty(JSON.parse(text)) : text;
      status.textContent = `${response.status} in ${(performance.now() - started).toFixed(0)} ms`;
    } catch {
      output.textContent = "";
      status.textContent = "the service cannot be reached";
    }
  }

  return h("div", { class: "try" },
    ...inputs.map(({ each, input }) => h("label", {}, each.name, input)),
    body ? h("label", {}, "Body", body) : null,
    h("div", { class: "buttons" },
      h("button", { type: "button", onclick: send }, "Send"),
      ...examples.map((example, index) => h("button", {
        type: "button", class: "ghost", onclick: () => (body.value = pretty(example)),
      }, `Example ${index + 1}`)), status),
    output);
}

function fillIn(path, inputs) {
  const query = new URLSearchParams();
  let filled = path;
  for (const { each, input } of inputs) {
    if (each.in === "path") filled = filled.replace(`{${each.name}}`, encodeURIComponent(input.value));
    else if (input.value !== "") query.set(each.name, input.value);
  }
  return query.size ? `${filled}?${query}` : filled;
}

function operationBlock(method, path, operation) {
  return h("details", { class: "panel operation", open: path === "/recommend", id: operation.operationId },
    h("summary", {}, h("span", { class: `method ${method}` }, method.toUpperCase()),
      h("code", { class: "path" }, path), h("span", { class: "quiet" }, operation.summary ?? "")),
    ...prose(operation.description ?? ""),
    ...parameters(operation), ...schemaBlock("Body", bodySchema(operation)),
    ...schemaBlock("Answer", answerSchema(operation)),
    ...responses(operation), tryIt(method, path, operation));
}

async function draw() {
  const api = await fetch("/openapi.json").then((response) => response.json());
  schemas = api.components?.schemas ?? {};
  $("title").textContent = `${api.info.title} ${api.info.version}`;
  $("about").replaceChildren(...prose(api.info.description ?? ""));
  for (const [path, operations] of Object.entries(api.paths))
    for (const [method, operation] of Object.entries(operations))
      $("reference").append(operationBlock(method, path, operation));
}

$("key").value = key.get();
$("key").addEventListener("input", () => key.set($("key").value));
$("key-form").addEventListener("submit", (event) => event.preventDefault());
draw();
