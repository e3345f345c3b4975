// Talks to the server that this page came from. The token, where one is needed, stays in this tab.

const KEY = 'ladder-console-token';

/** The server's answer when it would not. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let ask = null;

/** `tokenWanted(why)` is called when a token is needed and has to resolve once there is another. */
export const onTokenWanted = (listener) => { ask = listener; };

/** Keeps the token. */
export const setToken = (token) => sessionStorage.setItem(KEY, token);

function headers(more = {}) {
  const token = sessionStorage.getItem(KEY);
  return { 'X-Ladder-Console': '1', ...(token ? { Authorization: `Bearer ${token}` } : {}), ...more };
}

async function send(path, options) {
  for (;;) {
    let response;
    try {
      response = await fetch(path, { ...options, headers: headers(options.headers), cache: 'no-store' });
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      throw new Refused(0, 'the console does not answer; is `pipeline console` still running?');
    }
    if (response.status === 401 && ask) {
      const { error } = await response.json();
      await ask(sessionStorage.getItem(KEY) ? error : '');
      continue;
    }
    return response;
  }
}

async function json(path, options) {
  const response = await send(path, options);
  let body = null;
  try {
    body = await response.json();
  } catch {
    throw new Refused(response.status, response.status === 413 ? 'too large' : `the console answered ${response.status}`);
  }
  if (!response.ok) throw new Refused(response.status, body.error ?? `the console answered ${response.status}`);
  return body;
}

/** The path of a pipeline's things. */
export const of = (pipeline, ...parts) =>
  ['/api/pipelines', pipeline, ...parts].map((part, i) => (i ? encodeURIComponent(part) : part)).join('/');

export const get = (path, signal) => json(path, { method: 'GET', signal });

export const post = (path, body = {}) =>
  json(path, { method: 'POST', body: JSON.stringify(body), headers: { 'Content-Type': 'application/json' } });

/** Calls `told` with each look at the stages, and `lost` with why there is none; for ever. */
export async function watch(told, lost) {
  for (;;) {
    try {
      const response = await send('/api/live', { method: 'GET' });
      if (!response.ok) throw new Refused(response.status, (await response.json()).error);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = '';
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const events = (rest + value).split('\n\n');
        rest = events.pop();
        for (const event of events) {
          const data = event.split('\n').filter((line) => line.startsWith('data:')).map((line) => line.slice(5)).join('\n');
          if (data) told(JSON.parse(data));
        }
      }
      lost('the console has ended');
    } catch (error) {
      lost(error.message);
    }
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}
