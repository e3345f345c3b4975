// One letter: what it says, what happened to it, and what can be done.

import { badge, count, duration, exact, fill, h, number, trouble, when } from './dom.js';
import { get, of, post } from './server.js';
import { crumbs, selectionLink, state } from './letters.js';

export function letter({ about, params: { pipeline, place }, signal }) {
  const body = h('div', {}, h('p', { class: 'quiet', role: 'status' }, 'Reading …'));
  get(of(pipeline, 'letters', place), signal).then(
    (seen) => fill(body, show(about, pipeline, place, seen)),
    (error) => signal.aborted || fill(body, h('h1', {}, `Letter ${place}`), trouble(error.message)));
  return { title: `Letter ${place} · ${pipeline}`, nodes: [crumbs(pipeline, `Letter ${place}`), body] };
}

function show(about, pipeline, place, seen) {
  const of = about.pipelines.find((one) => one.name === pipeline);
  const [partition, offset] = place.split(':');
  const only = { partition, offsets: `${offset}..${offset}` };
  const group = `#/dlq/${encodeURIComponent(pipeline)}/group/${encodeURIComponent(seen.fingerprint)}`;
  const fact = (word, ...value) => h('div', {}, h('dt', {}, word), h('dd', {}, ...value));
  const can = about.show_values && seen.state === 'open';
  const editor = h('div', {});
  const trace = seen.trace_id && `${about.jaeger}/trace/${encodeURIComponent(seen.trace_id)}`;
  return [
    h('div', { class: 'head' }, h('h1', { class: 'id' }, seen.event_id || `Letter ${place}`),
      h('p', { class: 'actions' },
        seen.state === 'open' ? h('a', { class: 'button primary', href: selectionLink(pipeline, 'order', only) }, 'Redrive this …') : null,
        can ? h('button', { on: { click: ({ target }) => correct(target, editor, pipeline, place, of, seen) } }, 'Correct its value …') : null,
        seen.state === 'open' ? h('a', { class: 'button', href: selectionLink(pipeline, 'order', { ...only, action: 'discard' }) }, 'Discard …') : null,
        trace ? h('a', { class: 'button', href: trace, rel: 'noreferrer', target: '_blank' }, 'Trace') : null)),
    h('p', { class: 'lead' }, badge(seen.class), ' ', h('span', { class: 'error' }, seen.error)),
    h('dl', { class: 'facts' },
      fact('State', state(seen.state)),
      fact('Dead since', when(seen.dead_lettered_at_ms)),
      fact('Failed last on', seen.failed_stage ?? 'unknown'),
      fact('Attempts', number(seen.attempts)),
      fact('Redrives', number(seen.redrives)),
      fact('Key', seen.key ? h('code', {}, seen.key.text ?? `0x${seen.key.hex}`) : 'none'),
      fact('On the DLQ', h('code', {}, place)),
      fact('On main', h('code', {}, seen.origin)),
      fact('Group', h('a', { href: group }, h('code', {}, seen.fingerprint))),
      seen.trace_id ? fact('Trace', h('code', {}, seen.trace_id)) : null),
    h('h2', {}, 'Attempts'),
    timeline(seen),
    h('h2', {}, 'Value', h('small', {}, ` ${of.message}${seen.value.size === null ? '' : ` · ${count(seen.value.size, 'byte')}`}`)),
    editor,
    value(about, seen.value),
    h('h2', {}, 'Headers'),
    headers(seen.headers),
  ];
}

function timeline(seen) {
  if (!seen.history.length) return h('p', { class: 'quiet' }, 'Its headers tell of none.');
  const items = seen.history.map((one, i) => h('li', {},
    h('p', {}, h('strong', {}, one.stage), ' ', badge(one.class), ' ', h('span', { class: 'error' }, one.message)),
    h('p', { class: 'quiet' }, exact(one.start_ms), ` · took ${duration(one.duration_ms)}`, i && one.start_ms > seen.history[i - 1].start_ms
      ? ` · ${duration(one.start_ms - seen.history[i - 1].start_ms)} after the one before` : '')));
  return h('ol', { class: 'timeline' }, items,
    h('li', { class: 'end' }, h('p', {}, h('strong', {}, 'DLQ')), h('p', { class: 'quiet' }, exact(seen.dead_lettered_at_ms))));
}

function value(about, content) {
  if (content.size === null) return h('p', { class: 'quiet' }, 'None: a tombstone.');
  if (!about.show_values) return h('p', { class: 'quiet' }, 'Values are hidden here (console.show_values: false).');
  if (content.json !== undefined) {
    return [h('pre', { class: 'value', tabindex: 0 }, JSON.stringify(content.json, null, 2)),
      content.unknown_fields && h('p', { class: 'quiet' }, `Not shown, as the message's declaration does not have them: ${fields(content.unknown_fields)}.`)];
  }
  const shown = (pair) => (/^[2-6]|^7[^f]/.test(pair) ? String.fromCharCode(parseInt(pair, 16)) : '.');
  return [h('p', { class: 'bad' }, content.problem), h('pre', { class: 'value', tabindex: 0 }, content.hex.replace(/(..)/g, '$1 ')),
    h('p', { class: 'quiet' }, 'The same as text'), h('pre', { class: 'value', tabindex: 0 }, content.hex.replace(/../g, shown))];
}

/** Paths of unknown fields in words. */
const fields = (paths) => `${paths.length === 1 ? 'field' : 'fields'} ${paths.join(', ')}`;

function headers(all) {
  const text = (one) => (one === null ? h('span', { class: 'quiet' }, 'null') : one.text !== undefined ? one.text : `0x${one.hex}`);
  return h('table', { class: 'headers' }, h('thead', {}, h('tr', {}, h('th', { scope: 'col' }, 'Name'), h('th', { scope: 'col' }, 'Value'))),
    h('tbody', {}, all.map(([name, one]) => h('tr', {}, h('th', { scope: 'row' }, name), h('td', {}, text(one))))));
}

/** Another value for the same event. */
function correct(opener, editor, pipeline, place, { stages, message }, seen) {
  const text = h('textarea', { id: 'corrected', rows: 16, spellcheck: 'false', name: 'json' });
  const before = seen.value.json === undefined ? '{\n}' : JSON.stringify(seen.value.json, null, 2);
  text.value = before;
  const close = () => {
    fill(editor);
    opener.focus();
  };
  const to = h('select', { id: 'corrected-to' }, targets(stages).map(([value, word]) => h('option', { value }, word)));
  const unknown = seen.value.unknown_fields;
  const drop = h('input', { id: 'drop', type: 'checkbox' });
  const error = h('div', {});
  const button = h('button', { class: 'primary' }, 'Dry run');
  const form = h('form', { class: 'panel', on: { submit: async (event) => {
    event.preventDefault();
    fill(error);
    try {
      JSON.parse(text.value);
    } catch (wrong) {
      fill(error, trouble(`this is no JSON: ${wrong.message}`));
      return;
    }
    button.disabled = true;
    try {
      const begun = await post(of(pipeline, 'letters', place, 'plans'), { json: text.value, drop_unknown: drop.checked, to: to.value });
      location.hash = `#/dlq/${encodeURIComponent(pipeline)}/plan/${begun.id}`;
    } catch (refused) {
      fill(error, trouble(refused.message));
      button.disabled = false;
      button.focus();
    }
  } } },
  h('label', { for: 'corrected' }, `Corrected value, ${message} as JSON`), text,
  h('p', { class: 'quiet' }, 'The copy has the same event id, key and headers; the letter stays on the DLQ as it is, marked as redriven.'),
  unknown ? h('label', { class: 'check' }, drop, ` Drop ${fields(unknown)}, which the message's declaration does not have; kept otherwise`) : null,
  h('label', { for: 'corrected-to' }, 'Send it to'), to, error, h('p', { class: 'actions' }, button, h('button', { type: 'button', on: { click: close } }, 'Cancel')));
  // Esc throws nothing away that somebody typed.
  form.addEventListener('keydown', (event) => event.key === 'Escape' && text.value === before && close());
  fill(editor, form);
  text.focus();
}

/** Where letters may be sent. */
export function targets(stages) {
  const retries = stages.slice(1, -1);
  return [
    ...(retries.length ? [['start', `start (${retries[0].stage}, due now)`]] : []),
    ...retries.map(({ stage, delay_ms }) => [stage, `${stage} (due after ${duration(delay_ms)})`]),
    ['main', 'main (other groups read it as a new event)'],
  ];
}
