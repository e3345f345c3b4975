// Groups of like errors, and pages of letters.

import { badge, count, fill, h, number, say, trouble, when } from './dom.js';
import { get, of } from './server.js';

/** Fields of a selection, in the words of the command line. */
export const FIELDS = [
  ['event_id', 'Event id', 'order-19'],
  ['key', 'Key', 'customer-7'],
  ['class', 'Class', ['', 'transient', 'permanent', 'poison', 'exhausted', 'expired']],
  ['state', 'State', ['', 'open', 'redriven', 'discarded']],
  ['since', 'Since', '2h, or 2026-11-21T14:00:00Z'],
  ['until', 'Until', '1h'],
  ['header', 'Header', 'NAME=VALUE'],
  ['partition', 'Partition', '3'],
  ['offsets', 'Offsets', '100..200'],
  ['fingerprint', 'Fingerprint', '1f0c39a2b4d6'],
];

const NAME = 'ladder-console-name';

/** The name that jobs and pauses are kept under, as typed last. */
export const name = () => localStorage.getItem(NAME) ?? '';
export const rememberName = (typed) => localStorage.setItem(NAME, typed);

export const link = (pipeline, ...parts) => `#/dlq/${[pipeline, ...parts].map(encodeURIComponent).join('/').replaceAll('%3A', ':')}`;

/** The address of a page about a selection. */
export function selectionLink(pipeline, page, select) {
  const query = new URLSearchParams(Object.entries(select).filter(([, value]) => value)).toString();
  return `${link(pipeline, page)}${query ? `?${query}` : ''}`;
}

/** The way back, at the top of each page. */
export const crumbs = (pipeline, ...more) => h('nav', { class: 'crumbs', 'aria-label': 'Where this is' },
  h('a', { href: link(pipeline) }, `${pipeline} DLQ`), more.map((one) => [h('span', { 'aria-hidden': 'true' }, ' / '), one]));

/** What became of a letter. */
export const state = (fate) => badge(fate, fate === 'open' ? 'open' : '');

/** The DLQ of a pipeline: its groups. */
export function groups({ params: { pipeline }, signal }) {
  const status = h('p', { class: 'quiet', role: 'status' }, 'Reading the DLQ …');
  const bar = h('progress', { hidden: true, max: 1, value: 0, 'aria-label': 'Dead letters read' });
  const body = h('tbody', {});
  const table = h('table', { class: 'cards', hidden: true },
    h('thead', {}, h('tr', {}, ['Error', 'Open', 'Dealt with', 'First', 'Last'].map((t) => h('th', { scope: 'col' }, t)))), body);
  const empty = h('div', { class: 'empty', hidden: true },
    h('p', { class: 'big' }, 'No dead letters'), h('p', { class: 'quiet' }, 'Every event of this pipeline succeeded, or still has a try left.'));
  const error = h('div', {});
  const more = h('p', { class: 'quiet' });
  const all = h('a', { class: 'button', href: `${link(pipeline, 'order')}?all=1`, hidden: true }, 'Redrive all …');
  let shown = '';

  async function refresh() {
    let next = 5000;
    try {
      const seen = await get(of(pipeline, 'groups'), signal);
      fill(error, seen.error ? trouble(seen.error) : null);
      const rows = JSON.stringify(seen.groups);
      if (rows !== shown) {
        shown = rows;
        fill(body, seen.groups.map((group) => row(pipeline, group)));
      }
      table.hidden = seen.groups.length === 0;
      all.hidden = !seen.open;
      empty.hidden = !(seen.known && !seen.reading && seen.groups.length === 0);
      const initial = seen.reading && (seen.total > 10000 || !seen.known) && !seen.error;
      bar.hidden = !initial;
      bar.max = Math.max(1, seen.total);
      bar.value = seen.read;
      const kinds = count(seen.groups.length + seen.more_groups, 'kind');
      say(status, initial && seen.total ? `Reading the DLQ: ${number(seen.read)} of ${count(seen.total, 'letter')} …`
        : seen.known ? seen.groups.length ? `${count(seen.open, 'open letter')}, ${kinds} of errors` : '' : seen.error ? '' : 'Reading the DLQ …');
      const notes = [];
      if (seen.more_groups) notes.push(`${count(seen.more_groups, 'smaller group')} with ${count(seen.more_letters, 'letter')} not shown.`);
      if (seen.left_out) notes.push(`${count(seen.left_out, 'older letter')} not counted.`);
      say(more, notes.join(' '));
      if (seen.reading) next = 500;
    } catch (failed) {
      if (signal.aborted) return;
      fill(error, trouble(failed.message));
    }
    setTimeout(() => signal.aborted || refresh(), document.hidden ? 5000 : next);
  }
  refresh();

  return {
    title: `${pipeline} DLQ`,
    nodes: [
      h('div', { class: 'head' }, h('h1', {}, `${pipeline} DLQ`),
        h('p', { class: 'actions' },
          h('a', { class: 'button', href: link(pipeline, 'letters') }, 'Find letters'),
          h('a', { class: 'button', href: link(pipeline, 'jobs') }, 'Jobs'),
          all)),
      error, status, bar, table, empty, more,
    ],
  };
}

function row(pipeline, group) {
  const href = (group.fingerprint ? link(pipeline, 'group', group.fingerprint) : link(pipeline, 'letters')) + (group.open ? '?state=open' : '');
  const done = [group.redriven ? `${number(group.redriven)} redriven` : '', group.discarded ? `${number(group.discarded)} discarded` : ''];
  return h('tr', { 'data-fingerprint': group.fingerprint },
    h('td', { class: 'wide' }, badge(group.class), ' ', h('a', { class: 'error', href }, group.error || '(no text)'),
      group.sample.error === group.error ? null : h('small', { class: 'example' }, group.sample.error)),
    h('td', { 'data-label': 'open', class: `number ${group.open ? 'strong' : 'quiet'}` }, number(group.open)),
    h('td', { 'data-label': 'dealt with', class: 'quiet' }, done.filter(Boolean).join(', ') || '–'),
    h('td', { 'data-label': 'first' }, when(group.first_ms)),
    h('td', { 'data-label': 'last' }, when(group.last_ms)));
}

/** Letters of a selection, or of one group. */
export function letters({ params: { pipeline, fingerprint }, query, signal }) {
  const select = Object.fromEntries(FIELDS.map(([name]) => [name, query.get(name) ?? '']));
  if (fingerprint) select.fingerprint = fingerprint;
  const body = h('tbody', {});
  const table = h('table', { class: 'cards', hidden: true },
    h('thead', {}, h('tr', {}, ['Event', 'Error', 'Attempts', 'Dead since', 'State'].map((t) => h('th', { scope: 'col' }, t)))), body);
  const status = h('p', { class: 'quiet', role: 'status' });
  const error = h('div', {});
  const more = h('button', { hidden: true, on: { click: () => load() } }, 'More letters');
  const heading = h('p', { class: 'error lead' });
  let next = null;
  let shown = 0;

  async function load() {
    more.disabled = true;
    const wanted = shown + 50;
    fill(error);
    try {
      do {
        const ask = new URLSearchParams(Object.entries(select).filter(([, value]) => value));
        if (next) ask.set('from', next);
        const page = await get(`${of(pipeline, 'letters')}?${ask}`, signal);
        body.append(...page.letters.map((one) => line(pipeline, one)));
        if (fingerprint && !heading.textContent && page.letters.length) {
          fill(heading, badge(page.letters[0].class), ' ', page.letters[0].error);
        }
        shown += page.letters.length;
        next = page.next;
        table.hidden = shown === 0;
        const looked = page.total > 0 ? `, ${Math.floor((page.passed / page.total) * 100)} % looked through` : '';
        say(status, next ? `${count(shown, 'letter')} so far${looked}` : shown ? count(shown, 'letter') : 'No letter matches.');
      } while (next && shown < wanted);
    } catch (failed) {
      if (!signal.aborted) fill(error, trouble(failed.message));
    }
    more.disabled = false;
    more.hidden = !next && !error.childElementCount;
  }
  load();

  const title = fingerprint ? `Group ${fingerprint}` : 'Letters';
  return {
    title: `${title} · ${pipeline}`,
    nodes: [
      crumbs(pipeline, title),
      h('div', { class: 'head' }, h('h1', {}, title),
        h('p', { class: 'actions' },
          h('a', { class: 'button primary', href: selectionLink(pipeline, 'order', select) }, 'Redrive these …'),
          h('a', { class: 'button', href: selectionLink(pipeline, 'order', { ...select, action: 'discard' }) }, 'Discard these …'))),
      heading, finder(pipeline, select), error, status, table, h('p', {}, more),
    ],
  };
}

function line(pipeline, letter) {
  const place = `${letter.partition}:${letter.offset}`;
  return h('tr', { 'data-place': place },
    h('td', { class: 'id' }, h('a', { href: link(pipeline, 'letter', place) }, letter.event_id || place)),
    h('td', { class: 'wide' }, badge(letter.class), ' ', h('span', { class: 'error' }, letter.error)),
    h('td', { 'data-label': 'attempts', class: 'number' }, number(letter.attempts)),
    h('td', { 'data-label': 'dead since' }, when(letter.dead_lettered_at_ms)),
    h('td', { 'data-label': 'state' }, state(letter.state), letter.redrives ? h('small', {}, ` redriven ${letter.redrives}×`) : null));
}

/** A form that narrows the selection. */
function finder(pipeline, select) {
  const used = FIELDS.some(([name]) => select[name]);
  const form = h('form', { class: 'fields', on: { submit: (event) => {
    event.preventDefault();
    location.hash = selectionLink(pipeline, 'letters', Object.fromEntries(new FormData(form)));
  } } }, FIELDS.map((field) => input(field, select[field[0]])), h('p', { class: 'submit' }, h('button', {}, 'Find')));
  return h('details', { open: !used && innerWidth > 700 }, h('summary', {}, used ? 'Narrow the selection' : 'Selection'), form);
}

/** A labelled field. */
export function input([name, label, hint], value = '') {
  const id = `field-${name}`;
  const field = Array.isArray(hint)
    ? h('select', { id, name }, hint.map((one) => h('option', { value: one, selected: one === value }, one || 'any')))
    : h('input', { id, name, value, placeholder: hint, autocomplete: 'off', spellcheck: 'false' });
  return h('div', {}, h('label', { for: id }, label), field);
}
