// The frame: which page the address names, the links at the top, the live look, the token.

import { announce, fill, h, say, trouble } from './dom.js';
import { get, onTokenWanted, setToken, watch } from './server.js';
import { away, overview } from './overview.js';
import { groups, letters } from './letters.js';
import { letter } from './letter.js';
import { jobs, order, plan } from './redrive.js';

/** What every page is given: what the server is, the last look, and who wants to hear of the next. */
const context = { about: null, look: null, listeners: new Set() };

/** Pages by what stands behind `#/`; `:name` matches one part. */
const PAGES = [
  ['', overview],
  ['dlq/:pipeline', groups],
  ['dlq/:pipeline/letters', letters],
  ['dlq/:pipeline/group/:fingerprint', letters],
  ['dlq/:pipeline/letter/:place', letter],
  ['dlq/:pipeline/order', order],
  ['dlq/:pipeline/plan/:id', plan],
  ['dlq/:pipeline/jobs', jobs],
];

const main = document.getElementById('main');
const link = document.getElementById('link');
let current = null;
let lookAt = 0;

function match(path) {
  const parts = path.split('/').filter(Boolean);
  for (const [pattern, page] of PAGES) {
    const names = pattern.split('/').filter(Boolean);
    if (names.length !== parts.length) continue;
    const params = {};
    const fits = names.every((name, i) => {
      if (!name.startsWith(':')) return name === parts[i];
      try {
        params[name.slice(1)] = decodeURIComponent(parts[i]);
        return true;
      } catch {
        return false;
      }
    });
    if (fits) return { page, params };
  }
  return null;
}

function navigate(first) {
  if (!location.hash.startsWith('#/') && location.hash !== '') return; // an anchor within the page
  const [path, query = ''] = location.hash.slice(2).split('?');
  current?.abort();
  current = new AbortController();
  context.listeners.clear();
  const found = match(path);
  const known = !found?.params.pipeline || context.about.pipelines.some((p) => p.name === found.params.pipeline);
  const shown = found && known
    ? found.page({ ...context, params: found.params, query: new URLSearchParams(query), signal: current.signal })
    : { title: 'Not found', nodes: [h('h1', {}, 'There is no such page'), h('p', {}, h('a', { href: '#/' }, 'To the overview'))] };
  document.title = `${shown.title} · Retry Ladder`;
  fill(main, shown.nodes);
  for (const one of document.querySelectorAll('#nav a')) {
    const here = one.hash === '#/' ? path === '' : `#/${path}/`.startsWith(`${one.hash}/`);
    if (here) one.setAttribute('aria-current', 'page');
    else one.removeAttribute('aria-current');
  }
  if (!first) {
    window.scrollTo(0, 0);
    main.focus({ preventScroll: true });
    announce(shown.title);
  }
}

function links() {
  const one = (href, text) => h('a', { href }, text);
  const of = context.about.pipelines.map((p) => one(`#/dlq/${encodeURIComponent(p.name)}`, `${p.name} DLQ`));
  fill(document.getElementById('nav'), one('#/', 'Overview'), of);
}

function tellLink() {
  if (!context.look) return;
  const seconds = Math.round((Date.now() - lookAt) / 1000);
  const trouble = context.lost ?? (seconds > 15 ? `no look for ${seconds} s: Kafka is slow or away` : (away(context.look) ? 'no stage can be seen' : null));
  link.className = `link ${trouble ? 'bad' : 'good'}`;
  say(link, trouble || 'live');
}

onTokenWanted((why) => new Promise((resolve) => {
  const dialog = document.getElementById('ask');
  const form = document.getElementById('ask-form');
  const field = document.getElementById('token');
  say(document.getElementById('ask-error'), why);
  form.onsubmit = (event) => {
    event.preventDefault();
    if (!field.value.trim()) return;
    setToken(field.value.trim());
    field.value = '';
    dialog.close();
  };
  dialog.addEventListener('close', () => resolve(), { once: true });
  dialog.oncancel = (event) => event.preventDefault();
  if (!dialog.open) dialog.showModal();
}));

async function start() {
  try {
    context.about = await get('/api/about');
  } catch (error) {
    fill(main, trouble(error.message, h('button', { on: { click: () => location.reload() } }, 'Try again')));
    return;
  }
  links();
  window.addEventListener('hashchange', () => navigate(false));
  navigate(true);
  setInterval(tellLink, 1000);
  watch(
    (look) => {
      context.look = look;
      context.lost = null;
      lookAt = Date.now();
      tellLink();
      for (const listener of context.listeners) listener(look);
    },
    (why) => {
      context.lost = why;
      link.className = 'link bad';
      say(link, why);
    },
  );
}

start();
