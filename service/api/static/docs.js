// The API reference, drawn from /openapi.json without a library, so that it works with no network.
"use strict";

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function resolve(schema, api) {
  return schema && schema.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema || {};
}

function typeName(schema, api) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map((one) => typeName(one, api)).join(" or ");
  if (schema.type === "array") return `list of ${typeName(schema.items || {}, api)}`;
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  return schema.type || "any";
}

function fieldTable(title, fields) {
  const box = element("div");
  box.append(element("h3", "", title));
  const table = element("table");
  for (const [name, type, description] of fields) {
    const row = element("tr");
    const first = element("td");
    first.append(element("code", "", name));
    row.append(first, element("td", "quiet", type), element("td", "", description));
    table.append(row);
  }
  box.append(table);
  return box;
}

function schemaFields(schema, api) {
  const required = new Set(schema.required || []);
  return Object.entries(schema.properties || {}).map(([name, field]) => [
    required.has(name) ? `${name} *` : name,
    typeName(field, api),
    field.description || "",
  ]);
}

function drawOperation(path, verb, operation, api) {
  const section = element("section", "wide endpoint");
  const heading = element("h2");
  heading.append(element("span", "verb", verb.toUpperCase()), element("code", "", path));
  section.append(heading, element("p", "", operation.summary || ""));
  if (operation.description) section.append(element("p", "quiet", operation.description));
  if (operation.parameters) {
    const rows = operation.parameters.map((one) => [one.name, typeName(one.schema, api), one.description || ""]);
    section.append(fieldTable("Parameters", rows));
  }
  const content = operation.requestBody && operation.requestBody.content["application/json"];
  if (content) {
    const schema = resolve(content.schema, api);
    section.append(fieldTable("Request", schemaFields(schema, api)));
    for (const example of schema.examples || []) {
      section.append(element("pre", "", JSON.stringify(example, null, 2)));
    }
  }
  const ok = operation.responses["200"];
  const answer = ok && ok.content && ok.content["application/json"];
  if (answer) {
    const fields = schemaFields(resolve(answer.schema, api), api);
    if (fields.length) section.append(fieldTable("Answer", fields));
  }
  const statuses = Object.entries(operation.responses).map(([status, one]) => [status, "", one.description || ""]);
  section.append(fieldTable("Statuses", statuses));
  return section;
}

async function draw() {
  const api = await (await fetch("/openapi.json")).json();
  for (const [path, verbs] of Object.entries(api.paths)) {
    for (const [verb, operation] of Object.entries(verbs)) {
      document.getElementById("reference").append(drawOperation(path, verb, operation, api));
    }
  }
}

draw();
