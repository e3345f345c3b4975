// Dealing with letters: the order, its dry run, its confirmation, its progress; and the jobs of everybody.

import { badge, count, fill, h, number, say, trouble, when } from './dom.js';
import { get, of, post } from './server.js';
import { FIELDS, crumbs, input, link, name, rememberName } from './letters.js';
import { targets } from './letter.js';

const EVERY_MS = 400;

/** The form: which letters, where to, how fast. Its button makes the dry run. */
export function order({ about, params: { pipeline }, query }) {
  const { stages } = about.pipelines.find((one) => one.name === pipeline);
  const discard = query.get('action') === 'discard';
  const all = query.get('all') === '1';
  const values = Object.fromEntries(FIELDS.map(([name]) => [name, query.get(name) ?? '']));
  const error = h('div', {});
  const button = h('button', { class: 'primary' }, 'Dry run');
  const chosen = FIELDS.filter(([name]) => values[name] && name !== 'state');
  const rate = h('input', { id: 'rate', name: 'rate', type: 'number', min: 1, step: 'any', placeholder: 'as fast as it goes' });
  const share = h('input', { id: 'stop', type: 'number', min: 0, max: 100, value: 50 });
  const to = h('select', { id: 'to' }, targets(stages).map(([value, word]) => h('option', { value }, word)));
  const reason = h('input', { id: 'reason', required: true, maxlength: 200, placeholder: 'test orders, cancelled by hand …' });
  const limit = h('input', { id: 'limit', type: 'number', min: 1, placeholder: 'all' });
  const who = h('input', { id: 'who', maxlength: 60, autocomplete: 'name', value: name() });
  const field = (label, element, hint) => h('div', {}, h('label', { for: element.id }, label), element, hint ? h('small', {}, hint) : null);

  async function submit(event) {
    event.preventDefault();
    const select = { ...Object.fromEntries(new FormData(selection)), limit: limit.value };
    const ask = { select, action: discard ? 'discard' : 'redrive', all, who: who.value };
    if (discard) ask.reason = reason.value;
    else Object.assign(ask, { to: to.value, rate: rate.value ? Number(rate.value) : null, stop_at: Number(share.value || 50) / 100 });
    rememberName(who.value);
    button.disabled = true;
    fill(error);
    try {
      const begun = await post(of(pipeline, 'plans'), ask);
      location.hash = link(pipeline, 'plan', begun.id);
    } catch (refused) {
      fill(error, trouble(refused.message));
      button.disabled = false;
      button.focus();
    }
  }

  const selection = h('form', { id: 'selection', class: 'fields' },
    FIELDS.filter(([name]) => name !== 'state').map((one) => input(one, values[one[0]])));
  selection.addEventListener('submit', submit);
  const word = discard ? 'Discard letters' : 'Redrive letters';
  return {
    title: `${word} · ${pipeline}`,
    nodes: [
      crumbs(pipeline, word),
      h('h1', {}, word),
      h('p', {}, discard
        ? 'They stay on the DLQ, marked as dealt with.'
        : 'A copy of each goes back into the ladder with its attempts at 0; each letter is sent at most once, however often this is asked for.'),
      h('section', { class: 'panel', 'aria-labelledby': 'which' },
        h('h2', { id: 'which' }, 'Which'),
        h('p', { class: 'chosen' }, chosen.length
          ? chosen.map(([name, label]) => badge(`${label}: ${values[name]}`))
          : all ? 'Every open letter.' : 'Nothing is selected yet.'),
        h('details', { open: !chosen.length && !all }, h('summary', {}, 'Change the selection'), selection)),
      h('form', { class: 'panel', on: { submit } },
        h('h2', {}, 'How'),
        h('div', { class: 'fields' },
          discard ? field('Reason', reason) : [
            field('Send to', to),
            field('Letters per second', rate),
            field('Stop when this share comes back, %', share, '100 never stops'),
          ],
          field('At most', limit),
          field('Your name', who, 'kept with the job')),
        error,
        h('p', { class: 'actions' }, button, h('span', { class: 'quiet' }, 'changes nothing yet'))),
    ],
  };
}

/** A plan: dry run, confirmation, progress, end. Its address may be given to a colleague. */
export function plan({ params: { pipeline, id }, signal }) {
  const body = h('div', {});
  const status = h('p', { class: 'lead', role: 'status', 'aria-live': 'polite' }, 'Reading …');
  const bar = h('progress', { 'aria-label': 'Progress', hidden: true });
  const error = h('div', {});
  let phase = '';
  let timer = 0;

  async function act(button, what, ask) {
    button.disabled = true;
    fill(error);
    try {
      draw(await post(of(pipeline, 'plans', id, what), ask));
    } catch (refused) {
      if (refused.status !== 409) button.disabled = false;
      fill(error, trouble(refused.message));
    }
    tick(0);
  }

  const tick = (ms) => {
    clearTimeout(timer);
    timer = setTimeout(look, ms);
  };

  async function look() {
    if (signal.aborted) return;
    try {
      const seen = await get(of(pipeline, 'plans', id), signal);
      draw(seen);
      if (['planning', 'running'].includes(seen.phase)) tick(EVERY_MS);
    } catch (failed) {
      if (signal.aborted) return;
      fill(error, trouble(failed.message));
      if (failed.status === 404) {
        say(status, '');
        fill(body, h('p', {}, h('a', { href: link(pipeline, 'jobs') }, 'What became of it is told by the jobs.')));
      } else {
        tick(2000);
      }
    }
  }

  function draw(seen) {
    const { job } = seen;
    const discard = job?.fate === 'discarded';
    const done = discard ? 'discarded' : 'redriven';
    const stop = h('button', { disabled: seen.stopping, on: { click: (event) => act(event.target, 'stop') } }, 'Stop');
    const changed = phase !== seen.phase;
    phase = seen.phase;
    bar.hidden = !['planning', 'running'].includes(phase);
    if (phase === 'planning') {
      bar.max = Math.max(1, seen.total);
      bar.value = seen.read;
      say(status, `Dry run: ${number(seen.read)} of ${count(seen.total, 'letter')} read …`);
      if (changed) fill(body, h('p', { class: 'actions' }, stop));
    } else if (phase === 'planned' && changed) {
      const words = `${discard ? 'Discard' : 'Redrive'} ${count(job.planned, 'letter')}`;
      const go = h('button', { class: 'primary', id: 'go', disabled: job.planned === 0, on: { click: (event) => act(event.target, 'run') } }, words);
      say(status, job.planned
        ? `${count(job.planned, 'open letter')} would be ${done}${job.to ? ` to ${place(job.to)}` : ''}; nothing has moved yet.`
        : 'Nothing to do: no open letter is selected.');
      fill(body, facts(seen), h('h2', {}, job.planned > seen.sample.length ? `The first ${seen.sample.length}` : 'Letters'), sample(pipeline, seen.sample),
        h('p', { class: 'actions' }, go, h('a', { class: 'button', href: link(pipeline) }, 'Leave it')));
      go.focus({ preventScroll: true });
    } else if (phase === 'running') {
      bar.max = Math.max(1, job.planned);
      bar.value = job.moved;
      say(status, `${number(job.moved)} of ${count(job.planned, 'letter')} ${done}${job.relapsed ? `, ${number(job.relapsed)} came back` : ''}${seen.stopping ? '; stopping …' : ' …'}`);
      if (changed) {
        fill(body, facts(seen), h('p', { class: 'quiet' }, 'It goes on when this page is closed.'), h('p', { class: 'actions' }, stop));
      } else if (seen.stopping) {
        for (const one of body.querySelectorAll('button')) one.disabled = true;
      }
    } else if (phase === 'ended' && changed) {
      const why = job.state.stopped;
      say(status, why ? `Stopped after ${count(job.moved, 'letter')}: ${why}` : `Done: ${count(job.moved, 'letter')} ${done}.`);
      fill(body, facts(seen), h('p', { class: 'actions' },
        h('a', { class: 'button', href: link(pipeline) }, 'To the DLQ'), h('a', { class: 'button', href: link(pipeline, 'jobs') }, 'Jobs')));
    } else if (phase === 'failed') {
      say(status, seen.error);
      const again = (text, ask) => h('button', { on: { click: (event) => { phase = ''; act(event.target, 'run', ask); } } }, text);
      if (changed) {
        fill(body, h('p', { class: 'actions' },
          seen.busy ? again('Take over: stop that job and run this one', { take_over: true }) : null,
          seen.job ? again('Try again') : null,
          h('a', { class: 'button', href: link(pipeline) }, 'To the DLQ')));
      }
    }
    status.className = `lead ${phase === 'failed' || job?.state?.stopped ? 'bad' : ''}`;
    main.dataset.phase = phase;
    // What had the focus may be gone: the keyboard goes on from here.
    if (changed && document.activeElement === document.body) main.focus({ preventScroll: true });
  }

  const main = h('section', { class: 'panel', id: 'plan', tabindex: -1 }, status, bar, error, body);
  look();
  return { title: `Plan · ${pipeline}`, nodes: [crumbs(pipeline, h('a', { href: link(pipeline, 'jobs') }, 'Jobs')), h('h1', {}, 'Plan'), main] };
}

/** A target in words. */
const place = (to) => (to === 'start' ? 'the first retry stage' : to);

function facts(seen) {
  const { job } = seen;
  const fact = (word, value) => h('div', {}, h('dt', {}, word), h('dd', {}, value));
  return h('dl', { class: 'facts' },
    fact('Letters', h('code', {}, job.selection)),
    job.to ? fact('To', place(job.to)) : null,
    job.reason ? fact('Reason', job.reason) : null,
    seen.rate ? fact('At most', `${seen.rate} a second`) : null,
    job.to && seen.stop_at !== null ? fact('Stops when', `${Math.round(seen.stop_at * 100)} % come back`) : null,
    seen.corrected ? fact('Value', 'corrected') : null,
    seen.unknown && Object.keys(seen.unknown).length
      ? fact('Fields beyond the declaration', `${Object.keys(seen.unknown).join(', ')}: ${seen.drop_unknown ? 'DROPPED' : 'kept'}`) : null,
    seen.already ? fact('Dealt with before', number(seen.already)) : null,
    job.relapsed ? fact('Came back', number(job.relapsed)) : null,
    fact('Asked by', job.who));
}

function sample(pipeline, letters) {
  return h('ul', { class: 'sample' }, letters.map((one) => h('li', {},
    h('a', { href: link(pipeline, 'letter', `${one.partition}:${one.offset}`) }, one.event_id), ' ', badge(one.class), ' ', h('span', { class: 'error' }, one.error))));
}

/** Everybody's jobs, the newest first. */
export function jobs({ params: { pipeline }, signal }) {
  const status = h('p', { class: 'quiet', role: 'status' }, 'Reading …');
  const body = h('tbody', {});
  const table = h('table', { class: 'cards', hidden: true },
    h('thead', {}, h('tr', {}, ['Job', 'Letters', 'State', 'Who', 'When'].map((t) => h('th', { scope: 'col' }, t)))), body);
  const error = h('div', {});
  let shown = '';
  async function refresh() {
    try {
      const seen = await get(of(pipeline, 'jobs'), signal);
      fill(error);
      const text = JSON.stringify(seen);
      if (text !== shown) fill(body, seen.jobs.map((job) => line(pipeline, job)));
      shown = text;
      table.hidden = seen.jobs.length === 0;
      say(status, seen.jobs.length ? `${count(seen.jobs.length, 'job')}${seen.more ? ` and ${number(seen.more)} older` : ''}` : 'Nobody has redriven or discarded anything yet.');
    } catch (failed) {
      if (signal.aborted) return;
      fill(error, trouble(failed.message));
    }
    setTimeout(() => signal.aborted || refresh(), document.hidden ? 10000 : 2000);
  }
  refresh();
  return { title: `Jobs · ${pipeline}`, nodes: [crumbs(pipeline, 'Jobs'), h('h1', {}, 'Jobs'), error, status, table] };
}

function line(pipeline, job) {
  const word = job.fate === 'redriven' ? `redrive to ${place(job.to ?? 'start')}` : 'discard';
  const name = job.plan ? h('a', { href: link(pipeline, 'plan', job.plan) }, job.id) : job.id;
  const state = job.interrupted ? [badge('interrupted', 'warn'), h('small', {}, ' ask for the same again to go on')]
    : job.state === 'running' ? badge('running', 'open')
      : job.state === 'done' ? badge('done')
        : [badge('stopped', 'warn'), h('small', {}, ` ${job.state.stopped}`)];
  return h('tr', {},
    h('td', { class: 'wide' }, h('strong', {}, word), ' ', h('code', {}, job.selection), job.reason ? h('small', {}, ` ${job.reason}`) : null, h('small', { class: 'quiet' }, ' ', name)),
    h('td', { 'data-label': 'letters', class: 'number' }, `${number(job.moved)} of ${number(job.planned)}`, job.relapsed ? h('small', {}, ` ${number(job.relapsed)} came back`) : null),
    h('td', { 'data-label': 'state' }, state),
    h('td', { 'data-label': 'who' }, job.who),
    h('td', { 'data-label': 'when' }, when(job.started_ms)));
}
