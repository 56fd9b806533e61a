// Talks to the service the page came from.

/** An answer that is no success. */
export class Refused extends Error {
  constructor(status, body) {
    super(body?.error ?? `the service answered ${status}`);
    this.status = status;
    this.body = body;
  }
}

export const key = {
  get: () => sessionStorage.getItem("api-key") ?? "",
  set: (value) => sessionStorage.setItem("api-key", value),
};

export function headers() {
  return key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
}

/** Send a request; returns {status, body, ms}. Throws Refused, or the browser's error if nothing answers. */
export async function call(path, { method = "GET", body, signal } = {}) {
  const started = performance.now();
  const response = await fetch(path, {
    method,
    signal,
    headers: body === undefined ? headers() : { ...headers(), "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const answer = await response.json().catch(() => null);
  if (!response.ok) throw new Refused(response.status, answer);
  return { status: response.status, body: answer, ms: performance.now() - started };
}
